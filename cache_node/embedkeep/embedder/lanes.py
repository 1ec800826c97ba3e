"""Order of service: three lanes, and inside each the flows fairly. Pure: no I/O, no clock.

Demand before bulk before background (warm-up and shadow checks). Inside a lane, who has been
served least comes next, counted in sizes, so that no flow's long texts or many texts crowd out
another's. One that comes new, or asks seldom, waits for a single entry of each other flow at most,
however many those have: that is start-time fair queueing (Goyal, Vin and Cheng, IEEE/ACM
Transactions on Networking 5(5), 1997). Round robin lets it wait for a whole turn of each.

Nothing starves: while a lower lane's oldest entry has waited longer than max_wait_s, every
fourth turn is that lane's. Not more than that: else a backlog of bulk work, all of it overdue,
would stand before every person's question.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum
from heapq import heappop, heappush, heapreplace
from typing import Final, Generic, TypeVar

from embedkeep.embedder.waiting import Ahead, Backlog, Speed, ahead_of

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
    served: int = 0
    """Kept by `Lanes`: what its flow had been served when it came; once it was taken, what it was
    served from then on, this one included."""


@dataclass(slots=True, eq=False)
class _Flow(Generic[T]):
    line: deque[Queued[T]] = field(default_factory=deque)
    """Those that wait, and some that were dropped; the first one waits."""
    waiting: int = 0
    size: int = 0
    """Of all that wait."""
    served: int = 0
    """Of all that was taken."""
    speed: Speed | None = None
    """None: none of it was seen to end."""

    def tidy(self) -> None:
        """Keep the first one waiting, and the line's length within twice what waits."""
        line = self.line
        while line and not line[0].waiting:
            line.popleft()
        if len(line) > 2 * self.waiting + _FEW:
            self.line = deque(entry for entry in line if entry.waiting)


class _Queue(Generic[T]):
    """One lane.

    Each flow has a start: what it was served since there was something to do, or what the least
    served one had been when it came. The flow with the lowest start is next. One that has nothing
    more is remembered until it would be next, so that it gains nothing by asking bit by bit.

    What is taken together ends together. So where not all fits, those who come new and have few
    are not made to wait for what others have beyond their turn: it is left for the next time.
    """

    def __init__(self) -> None:
        self._flows: dict[bytes, _Flow[T]] = {}
        self._order: list[tuple[int, int, bytes]] = []
        """A heap with an entry for each flow: its start, when it joined, its name."""
        self._now = 0
        """The start of the flow that was served last: no other's is lower."""
        self._joined = 0
        self._waiting = 0
        self._size = 0
        """Of all that wait."""
        self.largest = 0
        """Size of the largest entry since the lane was empty."""

    def __bool__(self) -> bool:
        return self._waiting > 0

    def add(self, entry: Queued[T]) -> None:
        if (flow := self._flows.get(entry.flow)) is None:
            flow = self._flows[entry.flow] = _Flow()
            self._joined += 1
            heappush(self._order, (self._now, self._joined, entry.flow))
        flow.line.append(entry)
        flow.waiting += 1
        flow.size += entry.size
        entry.served = flow.served
        self._waiting += 1
        self._size += entry.size
        self.largest = max(self.largest, entry.size)

    def all(self) -> Ahead:
        """All that wait."""
        return Ahead(size=self._size, entries=self._waiting)

    def ended(self, entry: Queued[T], took_s: float) -> None:
        """Learn from one that was taken, if its flow is still known."""
        if entry.served and (flow := self._flows.get(entry.flow)) is not None:
            flow.speed = Speed.after(flow.speed, took_s=took_s, size=entry.served)

    def own_s(self, name: bytes, more: int) -> float:
        """What the flow *name* takes with so many entries more. 0: nobody knows."""
        if (flow := self._flows.get(name)) is None or flow.speed is None:
            return 0.0
        return flow.speed.seconds(Ahead(size=flow.size, entries=flow.waiting), more=more)

    def ahead_of(self, name: bytes) -> Ahead:
        """What is served before one who would come to the flow *name* now."""
        mine = Backlog(start=self._now, size=0, entries=0)
        others: list[Backlog] = []
        for start, _, each in self._order:
            flow = self._flows[each]
            backlog = Backlog(start=start, size=flow.size, entries=flow.waiting)
            if each == name:
                mine = backlog
            elif flow.waiting:
                others.append(backlog)
        return ahead_of(mine, others)

    def oldest_s(self) -> float:
        """When the first of those that are next in their flows came."""
        return min(flow.line[0].arrived_s for flow in self._flows.values() if flow.waiting)

    def take(self, *, most_size: int, most: int) -> list[Queued[T]]:
        taken: list[Queued[T]] = []
        used = 0
        fits = self._size <= most_size and self._waiting <= most
        first: int | None = None
        through = False  # some flow has nothing more
        while self._waiting and len(taken) < most:
            start, joined, name = self._order[0]
            flow = self._flows[name]
            if not flow.waiting:
                heappop(self._order)
                del self._flows[name]
                continue
            head = flow.line[0]
            if first is None:
                first = start
            elif used + head.size > most_size or (through and not fits and start > first):
                break
            self._now = start
            # Even an entry of no size takes a turn.
            heapreplace(self._order, (start + max(head.size, 1), joined, name))
            used += head.size
            flow.served += head.size
            head.served = flow.served - head.served
            taken.append(head)
            self._leave(head, flow)
            through = through or not flow.waiting
        return taken

    def drop(self, entry: Queued[T]) -> None:
        self._leave(entry, self._flows[entry.flow])

    def _leave(self, entry: Queued[T], flow: _Flow[T]) -> None:
        entry.waiting = False
        flow.waiting -= 1
        flow.size -= entry.size
        flow.tidy()
        self._waiting -= 1
        self._size -= entry.size
        if not self._waiting:  # nobody is owed anything
            self.largest = 0
            self._flows.clear()
            self._order.clear()
            self._now = 0


class Lanes(Generic[T]):
    """What waits, and who is next. Two flows that always have work differ by at most two entries.

    Args:
        max_wait_s: A lower lane whose entry waits longer is lifted.
    """

    def __init__(self, *, max_wait_s: float) -> None:
        self._queues: dict[Lane, _Queue[T]] = {lane: _Queue() for lane in Lane}
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

    def all(self, lane: Lane) -> Ahead:
        """All that waits in *lane*."""
        return self._queues[lane].all()

    def ahead_of(self, lane: Lane, flow: bytes) -> Ahead:
        """What *lane* serves before one who would come to *flow* now.

        See `embedkeep.embedder.waiting`. It costs the more, the more flows wait.
        """
        return self._queues[lane].ahead_of(flow)

    def ended(self, entry: Queued[T], took_s: float) -> None:
        """*entry*, which was taken, has been answered so long after it came."""
        self._queues[entry.lane].ended(entry, took_s)

    def own_s(self, lane: Lane, flow: bytes, more: int) -> float:
        """What *flow* takes with *more* entries in *lane*, as it was served lately.

        0: it has nothing there, or nothing was answered since it has.
        """
        return self._queues[lane].own_s(flow, more)

    def largest(self, lane: Lane) -> int:
        """Size of the largest entry since *lane* was empty."""
        return self._queues[lane].largest

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
