"""Order of service: three lanes, and inside each the flows in turns. Pure: no I/O, no clock.

Demand before bulk before background (warm-up and shadow checks). Inside a lane the flows take
turns by deficit round robin counted in sizes (Shreedhar and Varghese 1995), so that no flow's
long texts or many texts crowd out another's.

Nothing starves: while a lower lane's oldest entry has waited longer than max_wait_s, every
fourth turn is that lane's. Not more than that: else a backlog of bulk work, all of it overdue,
would stand before every person's question.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Generic, TypeVar

T = TypeVar("T")

LIFT_EVERY: Final = 4
"""While a lower lane is overdue, one turn in so many is its own."""

_FEW: Final = 16
"""Entries that left a flow and are still in its line, before the line is made anew."""


class Lane(IntEnum):
    """Order of service, first served first."""

    DEMAND = 0
    BULK = 1
    BACKGROUND = 2


@dataclass(slots=True, eq=False, kw_only=True)
class Queued(Generic[T]):
    """An entry of a lane. Compared by identity."""

    payload: T
    size: int
    """What it costs, in the unit of its `Lanes`."""
    lane: Lane
    flow: bytes
    arrived_s: float
    waiting: bool = False
    """Kept by `Lanes`: not yet taken, not dropped."""


@dataclass(slots=True)
class _Flow(Generic[T]):
    line: deque[Queued[T]] = field(default_factory=deque)
    """Those that wait, and some that were dropped; the first one waits."""
    waiting: int = 0
    deficit: int = 0
    """Sizes that it may still have served in this turn."""

    def tidy(self) -> None:
        """Keep the first one waiting, and the line's length within twice what waits."""
        line = self.line
        while line and not line[0].waiting:
            line.popleft()
        if len(line) > 2 * self.waiting + _FEW:
            self.line = deque(entry for entry in line if entry.waiting)


class _Queue(Generic[T]):
    """One lane: flows that take turns."""

    def __init__(self, quantum: int) -> None:
        self._quantum = quantum
        self._flows: OrderedDict[bytes, _Flow[T]] = OrderedDict()  # whose turn it is comes first

    def __bool__(self) -> bool:
        return bool(self._flows)

    def add(self, entry: Queued[T]) -> None:
        if (flow := self._flows.get(entry.flow)) is None:
            flow = self._flows[entry.flow] = _Flow()
        flow.line.append(entry)
        flow.waiting += 1

    def oldest_s(self) -> float:
        """When the first of those that are next in their flows came."""
        return min(flow.line[0].arrived_s for flow in self._flows.values())

    def take(self, *, most_size: int, most: int) -> list[Queued[T]]:
        taken: list[Queued[T]] = []
        used = 0
        while self._flows and len(taken) < most:
            name = next(iter(self._flows))
            flow = self._flows[name]
            head = flow.line[0]
            if flow.deficit < head.size:
                flow.deficit += self._quantum
                self._flows.move_to_end(name)
                continue
            if taken and used + head.size > most_size:
                break
            head.waiting = False
            taken.append(head)
            flow.deficit -= head.size
            used += head.size
            self._left(name, flow)
        return taken

    def drop(self, entry: Queued[T]) -> None:
        entry.waiting = False
        self._left(entry.flow, self._flows[entry.flow])

    def _left(self, name: bytes, flow: _Flow[T]) -> None:
        flow.waiting -= 1
        if flow.waiting:
            flow.tidy()
        else:
            del self._flows[name]


class Lanes(Generic[T]):
    """What waits, and who is next.

    Args:
        quantum: A flow's turn, in sizes. Two flows that always have work differ by at most two
            of these and one entry.
        max_wait_s: A lower lane whose entry waits longer is lifted.
    """

    def __init__(self, *, quantum: int, max_wait_s: float) -> None:
        self._queues: dict[Lane, _Queue[T]] = {lane: _Queue(quantum) for lane in Lane}
        self._max_wait_s = max_wait_s
        self._since_lifted = LIFT_EVERY

    def add(self, entry: Queued[T]) -> None:
        """Queue *entry* as the last of its flow."""
        entry.waiting = True
        self._queues[entry.lane].add(entry)

    def drop(self, entry: Queued[T]) -> bool:
        """Take *entry* out; whether it still waited. Costs the same however many wait."""
        if not entry.waiting:
            return False
        self._queues[entry.lane].drop(entry)
        return True

    def waits(self, lane: Lane) -> bool:
        """Whether *lane* has an entry."""
        return bool(self._queues[lane])

    def turn(self, now_s: float) -> Lane | None:
        """The lane to `take` from now; None: nothing waits. Counts as a turn."""
        waiting = [lane for lane in Lane if self._queues[lane]]
        if not waiting:
            return None
        first, *lower = waiting
        overdue = [
            (oldest_s, lane)
            for lane in lower
            if now_s - (oldest_s := self._queues[lane].oldest_s()) > self._max_wait_s
        ]
        self._since_lifted += 1
        if not overdue or self._since_lifted < LIFT_EVERY:
            return first
        self._since_lifted = 0
        return min(overdue)[1]

    def take(self, lane: Lane, *, most_size: int, most: int) -> list[Queued[T]]:
        """Take out the next of *lane*: up to *most* and *most_size* together, or a single one."""
        return self._queues[lane].take(most_size=most_size, most=most)
