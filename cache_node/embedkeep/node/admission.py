"""How much of whom may wait. Pure counting; nothing here waits.

Each tenant may use as much of the bound as is free, so a tenant alone gets half of it, two get a
third each, and there is always room for one that comes new. A burst of one thus cannot fill the
queue for all. Each urgency of a tenant counts for itself, and the less urgent stop earlier, so
that background work is never why a person is refused.

Source: dynamic thresholds, Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998,
with alpha = 1.
"""

from collections.abc import Hashable
from enum import IntEnum
from typing import Final

from embedkeep.errors import Overloaded, pushback_s
from embedkeep.smoothing import smoothed


class Urgency(IntEnum):
    """Who waits for an answer; the most urgent first."""

    DEMAND = 0
    BULK = 1
    BACKGROUND = 2


SHARES: Final = {Urgency.DEMAND: 1.0, Urgency.BULK: 0.75, Urgency.BACKGROUND: 0.5}
"""How full the bound may be for one more of that urgency; the embedder's queue has the same."""


class Stay:
    """How long what is let in stays, smoothed."""

    def __init__(self) -> None:
        self.mean_s: float | None = None
        """None: nothing was seen yet."""

    def seen(self, seconds: float) -> None:
        """Something has left that was answered."""
        self.mean_s = smoothed(self.mean_s, seconds)


class Admission:
    """What waits, by tenant and urgency, under one bound.

    Args:
        bound: Of all together.
        what: Its plural, for messages.
        stay: Of what waits: whoever is refused may come again when that time is over.
    """

    def __init__(self, bound: int, *, what: str, stay: Stay) -> None:
        self._bound = bound
        self._what = what
        self._stay = stay
        self._total = 0
        self._waiting: dict[tuple[Hashable, Urgency], int] = {}

    @property
    def total(self) -> int:
        """How many wait now."""
        return self._total

    def enter(self, tenant: Hashable, count: int, urgency: Urgency = Urgency.DEMAND) -> None:
        """Count in.

        A request that alone is larger than its tenant's share is let in when nothing of the
        tenant waits and the bound has room: it could otherwise never be answered.

        Raises:
            Overloaded: No room; nothing was counted.
        """
        who = (tenant, urgency)
        mine = self._waiting.get(who, 0)
        bound = int(self._bound * SHARES[urgency])
        free = bound - self._total
        if count > free or (mine > 0 and mine + count > free - count):
            raise Overloaded(
                f"{self._total} {self._what} wait, {mine} of them yours; {count} more do not fit "
                f"the bound of {bound}",
                retry_after_s=pushback_s(self._stay.mean_s),
            )
        self._waiting[who] = mine + count
        self._total += count

    def leave(self, tenant: Hashable, count: int, urgency: Urgency = Urgency.DEMAND) -> None:
        """Count out."""
        who = (tenant, urgency)
        self._total -= count
        if left := self._waiting[who] - count:
            self._waiting[who] = left
        else:
            del self._waiting[who]
