"""Who is served next, and how many at once. Pure: no I/O, no clock, no threads.

Three lanes: demand before bulk before background (warm-up and shadow checks). A batch holds one
lane only, and as much of it as the cost model expects to fit the lane's target time, or a single
input. Inside a lane the flows take turns by deficit round robin counted in tokens (Shreedhar and
Varghese 1995), so that no flow's long texts or many texts crowd out another's.

Nothing starves: while a lower lane's oldest input has waited longer than max_wait_s, every
fourth batch is that lane's. Not more than that: else a backlog of bulk work, all of it overdue,
would stand before every person's question.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Generic, TypeVar

from embedkeep.config import Batching
from embedkeep.errors import Overloaded

T = TypeVar("T")

QUANTUM_TOKENS: Final = 256
"""A flow's turn. Two flows that always have work differ by at most two of these and one input."""

LIFT_EVERY: Final = 4
"""While a lower lane is overdue, one batch in so many is its own."""


class Lane(IntEnum):
    """Order of service, first served first."""

    DEMAND = 0
    BULK = 1
    BACKGROUND = 2


_QUEUE_SHARES: Final = {Lane.DEMAND: 1.0, Lane.BULK: 0.75, Lane.BACKGROUND: 0.5}
"""How full the queue may be for a lane's input to be taken in: background work that fills it up
must not be why a person is refused."""


@dataclass(slots=True, eq=False, kw_only=True)
class Item(Generic[T]):
    """One input in the queue. Compared by identity."""

    payload: T
    tokens: int
    lane: Lane
    flow: bytes
    arrived_s: float


class CostModel:
    """What a batch costs: ``fixed + tokens * token`` seconds, fitted to what was measured.

    Least squares over past batches, each counting 3 % less with every newer one, so that it
    follows a device that becomes slower. While all batches had about the same size, only the
    level follows and the ratio of the two parts stays.
    """

    _KEEP: Final = 0.97
    _MOST_ABOVE: Final = 4.0
    """A batch this many times over its expected time counts as this: one stall is no trend."""

    def __init__(self, *, fixed_s: float = 0.002, token_s: float = 0.0002) -> None:
        self.fixed_s = fixed_s
        self.token_s = token_s
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        self._seen = 0

    def seconds(self, tokens: int) -> float:
        """What a batch of *tokens* should take."""
        return self.fixed_s + self.token_s * tokens

    def tokens_within(self, seconds: float) -> int:
        """The largest batch that should end within *seconds*; 0: not even the fixed part does."""
        return max(0, int((seconds - self.fixed_s) / self.token_s))

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn from one batch."""
        self._seen += 1
        if self._seen > 3:  # the first ones must be free to set the level
            seconds = min(seconds, self._MOST_ABOVE * self.seconds(tokens))
        keep = self._KEEP
        self._weight = self._weight * keep + 1
        self._x = self._x * keep + tokens
        self._y = self._y * keep + seconds
        self._xx = self._xx * keep + tokens * tokens
        self._xy = self._xy * keep + tokens * seconds
        self._fit()

    def _fit(self) -> None:
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        spread = self._xx / self._weight - mean_x * mean_x
        if spread < 0.01 * mean_x * mean_x:  # all of one size: within 10 %
            scale = mean_y / self.seconds(int(mean_x))
            fixed, token = self.fixed_s * scale, self.token_s * scale
        else:
            token = (self._xy / self._weight - mean_x * mean_y) / spread
            fixed = mean_y - token * mean_x
        if fixed < 0:
            fixed, token = 0.0, self._xy / self._xx
        if token <= 0:
            fixed, token = mean_y, 0.0
        self.fixed_s = fixed
        self.token_s = max(token, 1e-9)


@dataclass(slots=True)
class _Flow(Generic[T]):
    items: deque[Item[T]] = field(default_factory=deque)
    deficit: int = 0
    """Tokens that it may still have served in this turn."""


class _Queue(Generic[T]):
    """One lane: flows that take turns."""

    def __init__(self) -> None:
        self._flows: dict[bytes, _Flow[T]] = {}
        self._turn: deque[bytes] = deque()

    def __bool__(self) -> bool:
        return bool(self._turn)

    def add(self, item: Item[T]) -> None:
        if (flow := self._flows.get(item.flow)) is None:
            flow = self._flows[item.flow] = _Flow()
            self._turn.append(item.flow)
        flow.items.append(item)

    def oldest_s(self) -> float:
        """When the input that waits longest came; each flow is in order of arrival."""
        return min(flow.items[0].arrived_s for flow in self._flows.values())

    def take(self, *, most_tokens: int, most_items: int) -> list[Item[T]]:
        taken: list[Item[T]] = []
        used = 0
        while self._turn and len(taken) < most_items:
            name = self._turn[0]
            flow = self._flows[name]
            head = flow.items[0]
            if flow.deficit < head.tokens:
                flow.deficit += QUANTUM_TOKENS
                self._turn.rotate(-1)
                continue
            if taken and used + head.tokens > most_tokens:
                break
            taken.append(flow.items.popleft())
            flow.deficit -= head.tokens
            used += head.tokens
            if not flow.items:
                self._turn.popleft()
                del self._flows[name]
        return taken

    def drop(self, items: set[Item[T]], flows: Iterable[bytes]) -> list[Item[T]]:
        """Take out those of *items* that still wait here; returns them."""
        dropped: list[Item[T]] = []
        for name in flows:
            if (flow := self._flows.get(name)) is None:
                continue
            dropped.extend(item for item in flow.items if item in items)
            left = flow.items = deque(item for item in flow.items if item not in items)
            if not left:
                self._turn.remove(name)
                del self._flows[name]
        return dropped


class Schedule(Generic[T]):
    """The queue of an embedder, bounded by `Batching.max_queue_inputs`.

    Places are reserved first, so that texts still being cut into tokens count as queued.
    """

    def __init__(self, limits: Batching, cost: CostModel) -> None:
        self._limits = limits
        self._cost = cost
        self._queues: dict[Lane, _Queue[T]] = {lane: _Queue() for lane in Lane}
        self._tokens = 0
        self._since_lifted = LIFT_EVERY
        self.held = 0
        """Places that are reserved or taken."""

    def reserve(self, inputs: int, lane: Lane) -> None:
        """Keep places for *inputs*, until they are offered and taken, dropped or released.

        Raises:
            Overloaded: The queue is too full for them; nothing was reserved.
        """
        room = int(self._limits.max_queue_inputs * _QUEUE_SHARES[lane])
        if self.held + inputs > room:
            wait = self._cost.seconds(self._tokens)
            raise Overloaded(
                f"{self.held} inputs wait here, and {inputs} more would be beyond {room}",
                retry_after_s=round(max(wait, 0.05), 3),
            )
        self.held += inputs

    def release(self, inputs: int) -> None:
        """Give places back that were reserved and not used."""
        self.held -= inputs

    def offer(self, items: Sequence[Item[T]]) -> None:
        """Queue *items*, whose places are reserved."""
        for item in items:
            self._queues[item.lane].add(item)
            self._tokens += item.tokens

    def drop(self, items: Sequence[Item[T]]) -> int:
        """Take out those of *items* that still wait; how many that were."""
        gone = set(items)
        dropped = 0
        for lane in {item.lane for item in items}:
            flows = {item.flow for item in items if item.lane is lane}
            found = self._queues[lane].drop(gone, flows)
            self._tokens -= sum(item.tokens for item in found)
            dropped += len(found)
        self.held -= dropped
        return dropped

    def take(self, now_s: float) -> list[Item[T]]:
        """The next batch, shortest inputs first; empty: nothing waits."""
        lane = self._next_lane(now_s)
        if lane is None:
            return []
        target = (
            self._limits.demand_target_s
            if lane is Lane.DEMAND
            else self._limits.background_target_s
        )
        batch = self._queues[lane].take(
            most_tokens=self._cost.tokens_within(target), most_items=self._limits.max_batch_inputs
        )
        self.held -= len(batch)
        self._tokens -= sum(item.tokens for item in batch)
        batch.sort(key=lambda item: item.tokens)
        return batch

    def _next_lane(self, now_s: float) -> Lane | None:
        waiting = [lane for lane in Lane if self._queues[lane]]
        if not waiting:
            return None
        first, *lower = waiting
        overdue = [
            (oldest_s, lane)
            for lane in lower
            if now_s - (oldest_s := self._queues[lane].oldest_s()) > self._limits.max_wait_s
        ]
        self._since_lifted += 1
        if not overdue or self._since_lifted < LIFT_EVERY:
            return first
        self._since_lifted = 0
        return min(overdue)[1]


def apportion(busy_ns: int, tokens: Sequence[int]) -> list[int]:
    """Each row's share of a batch's time, by its tokens; the shares add up to *busy_ns* exactly."""
    total = sum(tokens)
    shares: list[int] = []
    before = done = 0
    for count in tokens:
        done += count
        upto = busy_ns * done // total
        shares.append(upto - before)
        before = upto
    return shares
