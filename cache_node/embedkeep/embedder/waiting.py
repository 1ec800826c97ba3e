"""How long a newcomer will wait for a device. Pure: frozen data in, seconds out.

Two answers, both from what was measured. What surely goes first takes so long at least: never more
than it turns out to be, as far as the device keeps its pace. That leaves out what comes later and
goes first all the same, as other flows' entries do. So where a flow has entries waiting, it is also
seen how quickly it is served, with all that others get meanwhile.

That the time which a queue takes says how full it is, and not its length, is from Cho, Saeed,
Fried, Park, Alizadeh and Belay, "Overload Control for µs-scale RPCs with Breakwater", OSDI 2020.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import Self

from embedkeep.smoothing import smoothed


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What one flow has waiting in a lane."""

    start: int
    """What it was served before, in the lane's unit; see `embedkeep.embedder.lanes`."""
    size: int
    """Of all its entries."""
    entries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """What is served before somebody."""

    size: int
    entries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCost:
    """What a batch takes, as measured: ``fixed_s + size * unit_s`` seconds."""

    fixed_s: float
    unit_s: float

    def divided_by(self, devices: int) -> Self:
        """Of so many at once."""
        return type(self)(fixed_s=self.fixed_s / devices, unit_s=self.unit_s / devices)

    def seconds(self, ahead: Ahead, *, batch_size: int, batch_entries: int) -> float:
        """What all of *ahead* takes, in as few batches as hold it.

        Args:
            batch_size: Of a batch, at most; at least 1.
            batch_entries: The same, counted.
        """
        batches = max(ceil(ahead.size / batch_size), ceil(ahead.entries / batch_entries))
        return batches * self.fixed_s + ahead.size * self.unit_s


def ahead_of(mine: Backlog, others: Iterable[Backlog]) -> Ahead:
    """What a lane serves before one who comes last in *mine*.

    Its own, and of each other flow what comes up to the same start: start-time fair queueing, see
    `embedkeep.embedder.lanes`. Exact up to an entry of each other flow.
    """
    turn = mine.start + mine.size
    size, entries = mine.size, mine.entries
    for other in others:
        if (served := min(other.size, turn - other.start)) > 0:
            size += served
            entries += other.entries if served == other.size else 1  # at least
    return Ahead(size=size, entries=entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How quickly a flow is served while others are too."""

    unit_s: float
    """What a unit takes, lately."""

    @classmethod
    def after(cls, before: Self | None, *, took_s: float, size: int) -> Self:
        """Learn that *size* of the flow took so long."""
        return cls(unit_s=smoothed(before.unit_s if before else None, took_s / size))

    def seconds(self, waiting: Ahead, *, more: int) -> float:
        """What the flow takes until *more* entries, of the usual size, have been answered too.

        0: nothing of it waits.
        """
        if not waiting.entries:
            return 0.0
        return self.unit_s * waiting.size * (1 + more / waiting.entries)
