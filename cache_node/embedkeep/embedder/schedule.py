"""Who is computed next, and how many at once. Pure: no I/O, no clock, no threads.

A batch holds one lane only (see `embedkeep.embedder.lanes`), and as much of it as should fit the
lane's target time, or a single input. What fits is said by a `Cost`: measured, for a device
(`CostModel`); a provider's limits, for an upstream.

Equal inputs of one flow that wait at the same time are one row: computed once, in the most urgent
lane of those who wait for it, for all of them.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, Self, TypeVar

from embedkeep.config import Batching
from embedkeep.embedder.lanes import Lane, Lanes, Queued
from embedkeep.embedder.waiting import Ahead, BatchCost
from embedkeep.errors import Overloaded, pushback_s

T = TypeVar("T")

_SPARE: Final = 0.25
"""Of a caller's time, left for what nobody foresees. In a flood a queue becomes as long as it may,
and so all would be answered just in time, or just too late."""

_LANES: Final = tuple(Lane)
_QUEUE_SHARES: Final = {Lane.DEMAND: 1.0, Lane.BULK: 0.75, Lane.BACKGROUND: 0.5}
"""How full the queue may be for a lane's input to be taken in: background work that fills it up
must not be why a person is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Newcomer:
    """What is to be taken in, before its tokens are known."""

    inputs: int
    lane: Lane
    flow: bytes = b""
    """Whose it is."""
    characters: int = 0
    """Of all inputs. A newcomer that is alone may have more than the queue's limit."""
    patience_s: float = math.inf
    """How long its caller waits."""

    @classmethod
    def of(cls, texts: Sequence[str], *, lane: Lane, flow: bytes, patience_s: float) -> Self:
        """What a call brings."""
        return cls(
            inputs=len(texts),
            lane=lane,
            flow=flow,
            characters=sum(map(len, texts)),
            patience_s=patience_s,
        )


@dataclass(slots=True, eq=False, kw_only=True)
class Item(Generic[T]):
    """One caller's wish for one input. Compared by identity."""

    payload: T
    tokens: int
    lane: Lane
    flow: bytes
    arrived_s: float
    key: Hashable = None
    """What the model reads. Equal ones of a flow share a row; None: never shared."""
    row: "Row[T] | None" = None
    """Kept by `Schedule`: where it waits."""


@dataclass(slots=True, eq=False)
class Row(Generic[T]):
    """One input for the device, and all who wait for it. Compared by identity."""

    place: Queued["Row[T]"] | None = None
    """Kept by `Schedule`: its place in the queue."""
    by_lane: tuple[dict[Item[T], None], ...] = field(
        default_factory=lambda: tuple({} for _ in Lane)
    )
    """In order of arrival; dicts, for one of many leaves at no cost."""

    @property
    def payer(self) -> Item[T]:
        """Whose the device's time is: the first of those in the most urgent lane."""
        return next(iter(next(filter(None, self.by_lane))))

    @property
    def waiters(self) -> list[Item[T]]:
        """Most urgent first, and so the payer."""
        return [item for waiters in self.by_lane for item in waiters]

    @property
    def tokens(self) -> int:
        """Of the input."""
        return self.payer.tokens


class Cost(Protocol):
    """What batches cost."""

    @property
    def measured(self) -> BatchCost | None:
        """What batches take. None: none was measured yet."""
        ...

    def tokens_within(self, seconds: float) -> int:
        """The largest batch that is worth making and should end within *seconds*."""
        ...


class CostModel:
    """What a batch costs: ``fixed + tokens * token`` seconds, fitted to what was measured.

    Least squares over past batches, each counting 3 % less with every newer one, so that it
    follows a device that becomes slower. While all batches had about the same size, only the
    level follows and the ratio of the two parts stays.
    """

    _WORTH: Final = 8.0
    """What a full batch's tokens take, to its fixed part: a longer batch would gain a ninth at
    most, and who comes meanwhile waits for its end."""
    _LEAST: Final = 0.5
    """Of the target, at least: where others use the device too, its fixed part is known badly."""
    _KEEP: Final = 0.97
    _MOST_ABOVE: Final = 4.0
    """A batch this many times over its expected time counts as this: one stall is no trend."""

    def __init__(self, *, fixed_s: float = 0.002, token_s: float = 0.0002) -> None:
        self.fixed_s = fixed_s
        self.token_s = token_s
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        self._seen = 0

    @property
    def measured(self) -> BatchCost | None:
        """See `Cost`."""
        return BatchCost(fixed_s=self.fixed_s, unit_s=self.token_s) if self._seen else None

    def seconds(self, tokens: int) -> float:
        """What a batch of *tokens* should take."""
        return self.fixed_s + self.token_s * tokens

    def tokens_within(self, seconds: float) -> int:
        """The largest batch that is worth its time and should end within *seconds*.

        A device with a small fixed part gains little by batches that take all of *seconds*. Where
        that part is most of a batch, smaller ones answer hardly sooner, and together take many
        times as long: a batch has at least as much as takes the fixed part's time again.
        """
        worth = max(self._WORTH * self.fixed_s, self._LEAST * seconds - self.fixed_s)
        return int(max(min(seconds - self.fixed_s, worth), self.fixed_s) / self.token_s)

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn from one batch. One without tokens says nothing of what tokens cost."""
        if tokens == 0:
            return
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


class Schedule(Generic[T]):
    """The queue of an embedder, bounded by `Batching.max_queue_inputs` and its characters.

    Places are reserved first, so that texts still being cut into tokens count as queued.
    """

    def __init__(self, limits: Batching, cost: Cost) -> None:
        self._limits = limits
        self._cost = cost
        self._lanes: Lanes[Row[T]] = Lanes(max_wait_s=limits.max_wait_s)
        self._shared: dict[tuple[bytes, Hashable], Row[T]] = {}
        self._next_s = 0.0
        """When the batch that was taken last should end."""
        self.held = 0
        """Places that are reserved or taken: one an item, shared row or not."""
        self.held_characters = 0

    def reserve(self, newcomer: Newcomer, *, now_s: float) -> None:
        """Keep places for *newcomer*, until they are offered and taken, dropped or released.

        Raises:
            Overloaded: The queue is too full for it, or takes longer than its caller waits; nothing
                was reserved.
        """
        inputs, characters = newcomer.inputs, newcomer.characters
        share = _QUEUE_SHARES[newcomer.lane]
        room = int(self._limits.max_queue_inputs * share)
        if self.held + inputs > room:
            raise Overloaded(
                f"{self.held} inputs wait here, and {inputs} more would be beyond {room}",
                retry_after_s=pushback_s(self._wait_s(newcomer, now_s)),
            )
        room = int(self._limits.max_queue_characters * share)
        if self.held_characters and self.held_characters + characters > room:
            raise Overloaded(
                f"texts of {self.held_characters} characters are held here, and {characters} "
                f"more would be beyond {room}",
                retry_after_s=pushback_s(self._wait_s(newcomer, now_s)),
            )
        wait_s, patience_s = self._late_s(newcomer, now_s), newcomer.patience_s
        if wait_s is not None:
            raise Overloaded(
                f"its answer would take {wait_s:.3g} s here, and the caller has {patience_s:.3g} s",
                retry_after_s=pushback_s(wait_s),
            )
        self.held += inputs
        self.held_characters += characters

    def _late_s(self, newcomer: Newcomer, now_s: float) -> float | None:
        """When *newcomer* would be answered, where that is too late for it; else None."""
        patience_s = newcomer.patience_s
        if (own_s := self._own_s(newcomer)) > (1 - _SPARE) * patience_s:
            return own_s
        # Quickly told, and never less than what the other one says.
        all_of = [(lane, self._lanes.all(lane)) for lane in _LANES[: newcomer.lane + 1]]
        if (self._seconds(all_of, now_s) or 0.0) <= patience_s:
            return None
        least_s = self._least_s(newcomer, now_s) or 0.0
        return least_s if least_s > patience_s else None

    def _wait_s(self, newcomer: Newcomer, now_s: float) -> float | None:
        """How long *newcomer* would wait. None: nothing was measured yet."""
        least_s = self._least_s(newcomer, now_s)
        return None if least_s is None else max(least_s, self._own_s(newcomer))

    def _own_s(self, newcomer: Newcomer) -> float:
        """When *newcomer* would be answered, as its flow was served lately; 0: nobody knows."""
        return self._lanes.own_s(newcomer.lane, newcomer.flow, newcomer.inputs)

    def _least_s(self, newcomer: Newcomer, now_s: float) -> float | None:
        """How long *newcomer* waits for its turn at least. None: nothing was measured yet."""
        lane = newcomer.lane
        above = [(each, self._lanes.all(each)) for each in _LANES[:lane]]
        return self._seconds([*above, (lane, self._lanes.ahead_of(lane, newcomer.flow))], now_s)

    def _seconds(self, ahead: Sequence[tuple[Lane, Ahead]], now_s: float) -> float | None:
        """What is under way still takes, and then *ahead*. None: nothing was measured yet."""
        if (measured := self._cost.measured) is None:
            return None
        return max(self._next_s - now_s, 0.0) + sum(
            measured.seconds(
                each,
                batch_size=max(self._most_size(lane), self._lanes.largest(lane), 1),
                batch_entries=self._limits.max_batch_inputs,
            )
            for lane, each in ahead
        )

    def _most_size(self, lane: Lane) -> int:
        """Tokens of a batch."""
        limits = self._limits
        return self._cost.tokens_within(
            limits.demand_target_s if lane is Lane.DEMAND else limits.background_target_s
        )

    def release(self, inputs: int = 0, *, characters: int = 0) -> None:
        """Give places back that were reserved and not used."""
        self.held -= inputs
        self.held_characters -= characters

    def offer(self, items: Sequence[Item[T]]) -> None:
        """Queue *items*, whose places are reserved."""
        for item in items:
            row = None if item.key is None else self._shared.get((item.flow, item.key))
            if row is None:
                row = Row()
                if item.key is not None:
                    self._shared[item.flow, item.key] = row
            item.row = row
            row.by_lane[item.lane][item] = None
            if row.place is None or item.lane < row.place.lane:
                self._place(row)

    def _place(self, row: Row[T]) -> None:
        """Queue *row*, anew where it waits already, in the most urgent lane of its waiters."""
        payer = row.payer
        if row.place is not None:
            self._lanes.drop(row.place)
        row.place = Queued(
            payload=row,
            size=payer.tokens,
            lane=payer.lane,
            flow=payer.flow,
            arrived_s=payer.arrived_s,
        )
        self._lanes.add(row.place)

    def drop(self, items: Sequence[Item[T]]) -> int:
        """Take out those of *items* that still wait; how many that were.

        A row goes on waiting for those who are left of it, in their lane.
        """
        touched: dict[Row[T], Item[T]] = {}
        dropped = 0
        for item in items:
            if (row := item.row) is None:
                continue
            item.row = None
            del row.by_lane[item.lane][item]
            touched[row] = item
            dropped += 1
        for row, item in touched.items():
            if row.place is None:
                continue
            if not any(row.by_lane):
                self._lanes.drop(row.place)
                self._forget(item)
            elif row.payer.lane is not row.place.lane:
                self._place(row)
        self.held -= dropped
        return dropped

    def waits(self, lane: Lane) -> bool:
        """Whether an input of *lane* waits."""
        return self._lanes.waits(lane)

    def take(
        self, now_s: float, *, only: Lane | None = None, most: int | None = None
    ) -> list[Row[T]]:
        """The next batch, shortest inputs first; empty: nothing waits.

        Args:
            only: Of this lane, whoever's turn it is. None: of the lane whose turn it is.
            most: Inputs in it. None: `Batching.max_batch_inputs`.
        """
        lane = self._lanes.turn(now_s) if only is None else only
        if lane is None or not self.waits(lane):
            self._next_s = now_s
            return []
        taken = self._lanes.take(
            lane,
            most_size=self._most_size(lane),
            most=self._limits.max_batch_inputs if most is None else most,
        )
        for place in taken:
            waiters = place.payload.waiters
            for item in waiters:
                item.row = None
            self.held -= len(waiters)
            self._forget(waiters[0])
        if (measured := self._cost.measured) is not None:
            tokens = sum(place.size for place in taken)
            self._next_s = now_s + measured.fixed_s + measured.unit_s * tokens
            for place in taken:
                self._lanes.ended(place, self._next_s - place.arrived_s)
        return sorted((place.payload for place in taken), key=lambda row: row.tokens)

    def _forget(self, item: Item[T]) -> None:
        """The row that *item* waited for waits no more."""
        if item.key is not None:
            del self._shared[item.flow, item.key]


def apportion(busy_ns: int, tokens: Sequence[int]) -> list[int]:
    """Each row's share of a batch's time, by its tokens; the shares add up to *busy_ns* exactly.

    Where no row has any token, all have the same share.
    """
    if not (total := sum(tokens)):
        return apportion(busy_ns, [1] * len(tokens)) if tokens else []
    shares: list[int] = []
    before = done = 0
    for count in tokens:
        done += count
        upto = busy_ns * done // total
        shares.append(upto - before)
        before = upto
    return shares
