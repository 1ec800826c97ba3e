"""What people ask for, on its way into their tenants' histories.

Nobody waits for it. A request only counts its texts in memory, within a bound; every few seconds
they are written to Valkey, and what cannot be written is dropped and counted. Whatever its tenant
withdraws meanwhile leaves the bound at once, and Valkey by a script that raises a fence first (see
`embedkeep.history`).
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Final

import structlog

from embedkeep.config import History
from embedkeep.errors import Unavailable
from embedkeep.history import (
    BATCH_TEXTS,
    TEXT_OVERHEAD_BYTES,
    Asked,
    Command,
    Fence,
    add_command,
    fence_name,
    forget_command,
)
from embedkeep.node.forgetting import RETRY_S
from embedkeep.node.metrics import Metrics, Noted
from embedkeep.node.tenants import Partition, Tenants
from embedkeep.node.tiers import Tier

BATCH_BYTES: Final = 256 << 10
"""Of texts in one script's call: a longer command would hold up the entries behind it."""

log = structlog.stdlib.get_logger()


class _Waiting:
    """Of one tenant, not written yet."""

    __slots__ = ("counts", "nbytes")

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] = {}
        """Asks by prompt and text."""
        self.nbytes = 0

    def take(self) -> list[tuple[Asked, int]]:
        """Take out as many as go into one call, in the order in which they came."""
        taken: list[tuple[Asked, int]] = []
        room = BATCH_BYTES
        for prompt, text in islice(self.counts, BATCH_TEXTS):
            room -= _nbytes(prompt, text)
            if taken and room < 0:
                break
            taken.append((Asked(prompt=prompt, text=text), self.counts[prompt, text]))
        for asked, _ in taken:
            del self.counts[asked.prompt, asked.text]
            self.nbytes -= _nbytes(asked.prompt, asked.text)
        return taken


class Recorder:
    """Counts what is asked for. `run` must run beside it.

    Args:
        config: How much may be kept, and how long.
        tenants: Whose histories there are.
        metrics: Where it is counted what became of asks.
        clock_s: Unix time, seconds.
    """

    def __init__(
        self,
        config: History,
        *,
        tenants: Tenants,
        metrics: Metrics,
        clock_s: Callable[[], float],
    ) -> None:
        self._config = config
        self._partitions = {partition.tag: partition for partition in tenants.partitions}
        self._noted = metrics.noted
        self._clock_s = clock_s
        self._waiting: dict[bytes, _Waiting] = {}
        self._nbytes = 0
        self._full = asyncio.Event()
        metrics.history_waiting.set_function(lambda: self._nbytes)

    def note(self, texts: Sequence[str], prompt: str, tenant: Partition) -> None:
        """Count *texts* as asked for by *tenant*. Does not wait."""
        if not texts:
            return
        config, waiting = self._config, self._waiting.setdefault(tenant.tag, _Waiting())
        counts = waiting.counts
        for text in texts:
            named = (prompt, text)
            if (times := counts.get(named)) is not None:
                counts[named] = times + 1
                continue
            nbytes = _nbytes(prompt, text)
            if nbytes - TEXT_OVERHEAD_BYTES > config.max_text_bytes:
                self._noted[Noted.TOO_LONG].inc()
            elif nbytes + waiting.nbytes > config.max_waiting_bytes - self._nbytes - nbytes:
                # As in `admission`: a tenant may use as much as is free beside it.
                self._noted[Noted.NO_ROOM].inc()
                self._full.set()
            else:
                counts[named] = 1
                waiting.nbytes += nbytes
                self._nbytes += nbytes

    def drop(self, tenant: Partition) -> None:
        """Forget what *tenant* has asked for and is not written yet."""
        if (waiting := self._waiting.pop(tenant.tag, None)) is not None:
            self._nbytes -= waiting.nbytes
            self._noted[Noted.WITHDRAWN].inc(sum(waiting.counts.values()))

    async def run(self, tier: Tier) -> None:
        """Write what is noted to *tier*, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._config.flush_s):
                    await self._full.wait()
            self._full.clear()
            await self.flush(tier)

    async def flush(self, tier: Tier) -> None:
        """Write what is noted now, or drop it."""
        for tag in list(self._waiting):
            # What comes while this writes waits for the next time, so that no tenant holds it up.
            left = len(self._waiting[tag].counts) if tag in self._waiting else 0
            while left > 0 and tag in self._waiting:
                left -= await self._write(tag, tier)

    async def forget(self, texts: Sequence[str] | None, prompt: str, tenant: Partition,
                     tier: Tier) -> None:  # fmt: skip
        """Forget *texts* under this prompt, or all of *tenant* where None, here and in Valkey.

        The plan goes too, since they may stand in it. Call it once the tenant's numbers have moved.

        Raises:
            Unavailable: Valkey may still hold them.
        """
        self.drop(tenant)
        asked = None if texts is None else [Asked(prompt=prompt, text=text) for text in texts]
        try:
            await _forget(asked, tenant, tier)
            await tier.share()  # until replicas have forgotten too: one may take over
        except Unavailable as error:
            raise Unavailable(
                f"forgotten, but not in the history of what was asked for, so repeat the call: "
                f"{error}",
                retry_after_s=RETRY_S,
            ) from error

    async def _write(self, tag: bytes, tier: Tier) -> int:
        """Write one call's worth of a tenant, or drop it; how many texts that were."""
        waiting, tenant = self._waiting[tag], self._partitions[tag]
        before = waiting.nbytes
        # Taken, stamped and sent without a pause between, so that nothing withdrawn is in it.
        taken = waiting.take()
        self._nbytes -= before - waiting.nbytes
        if not waiting.counts:
            del self._waiting[tag]
        asks = sum(times for _, times in taken)
        try:
            (reply,) = await tier.ask(fence_name(tag), [self._add(tenant, taken)])
        except Unavailable as error:
            log.debug("history not written", why=str(error))
            self._noted[Noted.LOST].inc(asks)
        else:
            self._noted[Noted.WRITTEN if reply == 1 else Noted.WITHDRAWN].inc(asks)
        return len(taken)

    def _add(self, tenant: Partition, counts: Sequence[tuple[Asked, int]]) -> Command:
        config = self._config
        return add_command(
            tenant.tag,
            counts,
            fence=_fence(tenant),
            now_s=self._clock_s(),
            retention_s=config.retention_s,
            max_texts=config.max_texts,
            max_bytes=config.max_bytes,
        )


async def forget_kept(tenants: Tenants, tier: Tier, *, retry_s: float) -> None:
    """Delete the histories of all *tenants*: texts are not to be kept any more."""
    await tier.tried.wait()
    for tenant in tenants.partitions:
        while True:
            with suppress(Unavailable):
                await _forget(None, tenant, tier)
                break
            await asyncio.sleep(retry_s)


async def _forget(texts: Sequence[Asked] | None, tenant: Partition, tier: Tier) -> None:
    command = forget_command(tenant.tag, texts, fence=_fence(tenant))
    await tier.ask(fence_name(tenant.tag), [command])


def _fence(tenant: Partition) -> Fence:
    return Fence(epoch=tenant.epoch, forgotten=tenant.forgotten)


def _nbytes(prompt: str, text: str) -> int:
    """What a text takes, at most; told without encoding it."""
    return (
        sum(len(part) if part.isascii() else 4 * len(part) for part in (prompt, text))
        + TEXT_OVERHEAD_BYTES
    )
