"""How what a tenant withdraws is told in Valkey, so that no other node answers it either.

Nodes hear of it by numbers that only grow, of which Valkey keeps the largest. When several nodes
withdraw something at once, a number that is no larger than another's is no news to anybody. So
each node first hears of all others, and only then chooses a number that is.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from embedkeep.errors import Unavailable
from embedkeep.keys import Key
from embedkeep.node.tenants import Partition
from embedkeep.node.tiers import Tier

RETRY_S: Final = 1.0
"""About when a Valkey that is away may be back, seconds."""

log = structlog.stdlib.get_logger()


async def delete(
    keys: Sequence[Key], tenant: Partition, tier: Tier, *, clock_ms: Callable[[], int]
) -> None:
    """Delete *keys*; then have other nodes drop what their memory holds of *tenant*.

    Only then: one that dropped them sooner could read them from Valkey again.

    Raises:
        Unavailable: Some may not be deleted, or not all of Valkey was told.
    """
    failed: Unavailable | None = None
    try:
        await tier.delete(keys)
    except Unavailable as error:
        failed = error
    try:
        await tell(tenant, tier, clock_ms=clock_ms)
    except Unavailable as error:
        if failed is None:
            raise
        log.warning("not all of Valkey was told what was forgotten", why=str(error))
    if failed is not None:
        raise Unavailable(
            f"forgotten on this node; not in all of Valkey, so repeat the call: {failed}",
            retry_after_s=RETRY_S,
        ) from failed


async def tell(tenant: Partition, tier: Tier, *, clock_ms: Callable[[], int]) -> None:
    """Have other nodes drop what their memory holds of *tenant*, once Valkey holds something else.

    This node's own is the caller's to drop: its number may hide that of another node.

    Raises:
        Unavailable: Not all of Valkey was told.
    """
    with contextlib.suppress(Unavailable):  # raised below, if it lasts
        await tier.share()
    tenant.forgotten = max(clock_ms(), tenant.forgotten + 1)
    await tier.share()


async def start_epoch(tenant: Partition, tier: Tier, *, start: Callable[[], None]) -> None:
    """Withdraw all of *tenant* by an epoch that is new to every node.

    Args:
        start: Moves this node to a later epoch than it knows. Called at once, and again where
            others were further, by a clock that is ahead: they have stored under theirs.

    Raises:
        Unavailable: Not all of Valkey was told.
    """
    start()
    ours = tenant.epoch
    try:
        await tier.share()
    except Unavailable:
        if tenant.epoch == ours:
            raise
    if tenant.epoch != ours:
        start()
        await tier.share()
