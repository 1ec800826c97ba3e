"""Which nodes `embedkeep embed` asks: an address, or a cache that `embedkeep up` runs here."""

from dataclasses import dataclass
from pathlib import Path

from embedkeep.client.transports.choosing import shown
from embedkeep.config import ClientTls
from embedkeep.errors import InvalidConfig
from embedkeep.runs import find


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Whom to dial."""

    address: str
    """A client's target; of several nodes one that is balanced over them."""
    tls: ClientTls | None = None
    """What `up` wrote down about a cache that runs here. None: plain text, or not known."""


def target_of(wanted: str | None, root: Path) -> Target:
    """The node that *wanted* means.

    Args:
        wanted: An address, several with commas between them, the name of a running cache, or
            None: the only one that runs.
        root: Where `embedkeep up` keeps its state.

    Raises:
        InvalidConfig: No such cache runs, or it is not clear which is meant.
    """
    if wanted is not None and ":" in wanted:
        return Target(address=_target(wanted))
    try:
        runs = find(root, wanted)
    except InvalidConfig as error:
        raise InvalidConfig(f"{error}, or give its address", field="--address") from None
    if len(runs) > 1:
        names = ", ".join(run.name for run in runs)
        raise InvalidConfig(f"several caches run here ({names}): name one", field="--address")
    return Target(address=runs[0].url, tls=runs[0].way_in)


def _target(given: str) -> str:
    try:
        return shown(given)
    except InvalidConfig as error:
        said = str(error).removeprefix(f"{error.field}: ")
        raise InvalidConfig(said, field="--address") from error
