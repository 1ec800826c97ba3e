"""Which texts go into the next request, and what becomes of it. Pure: the clock is a parameter.

Texts wait in an `embedkeep.embedder.schedule.Schedule`, whose batches are as large as the
upstream takes. A request that failed comes back as parts: the same one to be made again, or halves
of it where it was too much or one of its inputs is bad. A bad input is found by bisection, at
most 2 * log2(n) requests for each, and never with more than `SEARCH_REQUESTS` for one batch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, Protocol, TypeVar

from embedkeep.embedder.backends import Vectors
from embedkeep.embedder.lanes import LIFT_EVERY, Lane
from embedkeep.embedder.schedule import CostModel, Row, Schedule, apportion
from embedkeep.embedder.upstream.failures import Failure, Kind
from embedkeep.embedder.upstream.pace import NEEDS_SOMEBODY, Pace, backoff_s
from embedkeep.embedder.upstream.wires import Answer
from embedkeep.embedder.waiting import BatchCost

MOST_TRIES: Final = 5
"""Of one request that fails through no fault of its inputs."""

SEARCH_REQUESTS: Final = 64
"""For what is wrong with one batch. Finds two bad inputs among 2,048 for certain, and one at the
cost of 22."""

GROW_AFTER: Final = 100
"""Requests that succeeded, after which twice the size is tried again: one refusal in a hundred
requests is little, and a limit that was no limit is forgotten."""

DEMAND_PATIENCE_S: Final = 5.0
"""Longest pause that a person waits for; others wait as long as their call."""


class Waiter(Protocol):
    """One caller's wish for one text."""

    settled: bool
    """It waits no more: it was answered, refused or left."""

    @property
    def ends_s(self) -> float:
        """When its caller's time is up, on the policy's clock; infinite: never."""
        ...


T = TypeVar("T", bound=Waiter)


@dataclass(slots=True)
class Search:
    """Looks for what is wrong with one batch; shared by its parts."""

    requests_left: int = SEARCH_REQUESTS
    misled: bool = False
    """An input that the upstream named was a good one."""


@dataclass(slots=True, eq=False, kw_only=True)
class Part(Generic[T]):
    """Rows for one request."""

    rows: list[Row[T]]
    spent_ns: list[int]
    """Time that requests with each row have taken so far."""
    lane: Lane
    again: bool = False
    """Its rows were in a request before."""
    tries: int = 0
    not_before_s: float = 0.0
    search: Search | None = None
    """None: no input was found to be bad so far."""
    named: bool = False
    """Holds the one input that the upstream named as bad."""

    @property
    def sizes(self) -> list[int]:
        """Estimated tokens of each row."""
        return [row.tokens for row in self.rows]

    @property
    def ends_s(self) -> float:
        """When the last who waits for any of it has no more time; infinite: never."""
        return max(map(_ends_s, self.rows), default=-math.inf)

    def forget_settled(self) -> None:
        """Drop rows for which nobody waits."""
        kept = [
            number
            for number, row in enumerate(self.rows)
            if not all(item.payload.settled for item in row.waiters)
        ]
        if len(kept) < len(self.rows):
            self.rows = [self.rows[number] for number in kept]
            self.spent_ns = [self.spent_ns[number] for number in kept]

    def only(
        self, numbers: Sequence[int], search: Search | None, *, named: bool = False
    ) -> "Part[T]":
        """A part with these of its rows."""
        return Part(
            rows=[self.rows[number] for number in numbers],
            spent_ns=[self.spent_ns[number] for number in numbers],
            lane=self.lane,
            search=search,
            named=named,
            again=True,
            tries=self.tries,
            not_before_s=self.not_before_s,
        )

    def halves(self, search: Search | None) -> "list[Part[T]]":
        """Both halves of its rows."""
        count = len(self.rows)
        return [
            self.only(numbers, search)
            for numbers in (range(count // 2), range(count // 2, count))
            if numbers
        ]


class Why(Enum):
    """Why a row has no vector, beside what the upstream said."""

    REFUSED = "refused"
    """It said that this input is bad."""
    NOT_FOUND = "not found"
    """The batch was refused, and the search for the bad input was ended."""
    LATE = "late"
    """Its callers' time is up before another try."""
    GAVE_UP = "gave up"
    """Tries are used up, or there is no use in more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled(Generic[T]):
    """What became of rows."""

    rows: Sequence[Row[T]]
    spent_ns: Sequence[int]
    """What each row has cost, all its requests together."""
    vectors: Vectors | None = None
    """Shape (rows, dimensions). None: see why and failure."""
    tokens: Sequence[int] = ()
    """Each row's share of what was counted, by its size."""
    why: Why | None = None
    failure: Failure | None = None


class Sizes:
    """How large a request may be, and how long one takes; learns.

    A `Cost` for a `Schedule`: requests are as large as the upstream takes, whatever the target.
    What was refused for its size is not tried again until `GROW_AFTER` requests have succeeded: an
    upstream's words may have been misread.

    Args:
        max_inputs: A request, at most.
        max_tokens: The same, as estimated.
        concurrent: Requests in flight.
    """

    def __init__(self, *, max_inputs: int, max_tokens: int, concurrent: int) -> None:
        self.max_inputs = self._most_inputs = max_inputs
        self.max_tokens = self._most_tokens = max_tokens
        self._concurrent = concurrent
        self._times = CostModel(fixed_s=0.1, token_s=0.00001)
        self._succeeded = 0

    @property
    def measured(self) -> BatchCost | None:
        """What requests take, with as many at once as there may be. None: none was made yet."""
        one = self._times.measured
        return None if one is None else one.divided_by(self._concurrent)

    def tokens_within(self, seconds: float) -> int:
        """The largest request."""
        del seconds
        return self.max_tokens

    def observe(self, sizes: Sequence[int], seconds: float) -> None:
        """Learn from a request with inputs of these sizes that succeeded."""
        self._times.observe(sum(sizes), seconds)
        self._succeeded += 1
        if self._succeeded >= GROW_AFTER:
            self._succeeded = 0
            self.max_inputs = min(self._most_inputs, 2 * self.max_inputs)
            self.max_tokens = min(self._most_tokens, 2 * self.max_tokens)

    def fit(self, sizes: Sequence[int]) -> bool:
        """Whether inputs of these sizes may be one request."""
        return len(sizes) <= self.max_inputs and sum(sizes) <= self.max_tokens

    def too_large(self, kind: Kind, sizes: Sequence[int]) -> None:
        """A request was refused for its size."""
        self._succeeded = 0
        if kind is Kind.TOO_MANY:
            self.max_inputs = min(self.max_inputs, (len(sizes) + 1) // 2)
        else:
            self.max_tokens = min(self.max_tokens, max(*sizes, sum(sizes) // 2))


class Policy(Generic[T]):
    """The requests of one upstream.

    Args:
        schedule: Where texts wait; its cost must be *sizes*.
        concurrent: Requests in flight, at most.
        dice: Numbers from 0 to 1.
    """

    def __init__(
        self,
        schedule: Schedule[T],
        sizes: Sizes,
        *,
        concurrent: int,
        dice: Callable[[], float],
    ) -> None:
        self.pace = Pace(dice)
        self.in_flight = 0
        self._schedule = schedule
        self._sizes = sizes
        self._concurrent = concurrent
        self._dice = dice
        self._parts: list[Part[T]] = []
        self._passed = 0

    def next(self, now_s: float) -> Part[T] | None:
        """The next request, which is in flight from now on; None: none may or need be made."""
        if self.in_flight >= self._concurrent:
            return None
        if not self.pace.may_send(in_flight=self.in_flight, now_s=now_s):
            return None
        last = self.in_flight == self._concurrent - 1 and self._concurrent > 1
        part = self._next_part(now_s, demand_only=last)
        if part is None and (rows := self._take(now_s, demand_only=last)):
            part = Part(rows=rows, spent_ns=[0] * len(rows), lane=rows[0].payer.lane)
        if part is not None:
            self.in_flight += 1
        return part

    def wait_s(self, now_s: float) -> float | None:
        """Until `next` may have one that it has not now; None: not before something happens."""
        if self.in_flight >= self._concurrent:
            return None
        if left_s := self.pace.left_s(now_s):
            return left_s
        # One whose time has come waits for a request in flight to end, or for people to be served.
        later = (part.not_before_s for part in self._parts if part.not_before_s > now_s)
        return min((at_s - now_s for at_s in later), default=None)

    def patience_s(self, lane: Lane, time_s: float) -> float:
        """How long a caller waits for the end of a pause, seconds; infinite: for ever.

        Args:
            time_s: How long it waits for an answer.
        """
        return min(time_s, DEMAND_PATIENCE_S) if lane is Lane.DEMAND else time_s

    def will_wait(self, patience_s: float, now_s: float) -> bool:
        """Whether a caller who is that patient will see the end of the pause there is."""
        left_s = self.pace.left_s(now_s)
        if not left_s:
            return True
        reason = self.pace.reason
        if reason is not None and reason.kind in NEEDS_SOMEBODY:
            return False
        return left_s < patience_s

    def answered(
        self, part: Part[T], outcome: Answer | Failure, *, took_ns: int, now_s: float
    ) -> list[Settled[T]]:
        """A request has ended; what is settled by it. The rest will be in another request."""
        self.in_flight -= 1
        sizes = part.sizes
        shares = apportion(took_ns, sizes)
        part.spent_ns = [
            spent + share for spent, share in zip(part.spent_ns, shares, strict=True)
        ]  # fmt: skip
        if isinstance(outcome, Answer):
            self.pace.succeeded()
            if part.search is not None and part.named:
                part.search.misled = True
            self._sizes.observe(sizes, took_ns / 1e9)
            return [
                Settled(
                    rows=part.rows,
                    spent_ns=part.spent_ns,
                    vectors=outcome.vectors,
                    tokens=apportion(outcome.tokens, sizes),
                )
            ]
        self.pace.failed(outcome, now_s)
        match outcome.kind:
            case Kind.THROTTLED | Kind.FAILED:
                return self._again(part, outcome, now_s)
            case Kind.TOO_MANY | Kind.TOO_LONG:
                return self._too_large(part, outcome)
            case Kind.REJECTED:
                return self._search(part, outcome)
            case Kind.LATE:
                return [_unsettled(part, Why.LATE, outcome)]
            case _:
                return [_unsettled(part, Why.GAVE_UP, outcome)]

    def _take(self, now_s: float, *, demand_only: bool) -> list[Row[T]]:
        only = Lane.DEMAND if demand_only else None
        return self._schedule.take(now_s, only=only, most=self._sizes.max_inputs)

    def _next_part(self, now_s: float, *, demand_only: bool) -> Part[T] | None:
        """A part whose time has come. People's go first; others' before new work of others."""
        for part in self._parts:
            part.forget_settled()
        self._parts = [
            fitting for part in self._parts for fitting in self._fitting(part) if fitting.rows
        ]
        ready = [part for part in self._parts if part.not_before_s <= now_s]
        found = next((part for part in ready if part.lane is Lane.DEMAND), None)
        if found is None and ready and not demand_only:
            # As in `Lanes`: whoever is passed over gets every fourth turn.
            self._passed += 1
            if not self._schedule.waits(Lane.DEMAND) or self._passed >= LIFT_EVERY:
                self._passed = 0
                found = ready[0]
        if found is not None:
            self._parts.remove(found)
        return found

    def _fitting(self, part: Part[T]) -> list[Part[T]]:
        """*part*, or parts of it where its size was found to be too much after it was made."""
        if len(part.rows) < 2 or self._sizes.fit(part.sizes):
            return [part]
        return [fitting for half in part.halves(part.search) for fitting in self._fitting(half)]

    def _again(self, part: Part[T], failure: Failure, now_s: float) -> list[Settled[T]]:
        part.again = True
        part.tries += 1
        if part.tries >= MOST_TRIES:
            return [_unsettled(part, Why.GAVE_UP, failure)]
        late: list[int] = []
        if failure.kind is Kind.FAILED:
            part.not_before_s = now_s + backoff_s(part.tries, self._dice)
            part.forget_settled()
            late = [n for n, row in enumerate(part.rows) if _ends_s(row) <= part.not_before_s]
        if not late:
            self._parts.append(part)
            return []
        in_time = [number for number in range(len(part.rows)) if number not in late]
        self._parts.append(part.only(in_time, part.search, named=part.named))
        return [_unsettled(part.only(late, part.search), Why.LATE, failure)]

    def _too_large(self, part: Part[T], failure: Failure) -> list[Settled[T]]:
        if len(part.rows) == 1:
            return [_unsettled(part, Why.REFUSED, failure)]
        self._sizes.too_large(failure.kind, part.sizes)
        self._parts[:0] = part.halves(part.search)
        return []

    def _search(self, part: Part[T], failure: Failure) -> list[Settled[T]]:
        count = len(part.rows)
        if count == 1:
            return [_unsettled(part, Why.REFUSED, failure)]
        search = part.search or Search()
        if search.requests_left < 2:
            return [_unsettled(part, Why.NOT_FOUND, failure)]
        search.requests_left -= 2
        named = failure.suspect
        if named is None or named >= count or search.misled:
            self._parts[:0] = part.halves(search)
        else:  # its word is not taken for it: the input is asked for alone
            rest = [number for number in range(count) if number != named]
            self._parts[:0] = [part.only([named], search, named=True), part.only(rest, search)]
        return []


def _ends_s(row: Row[T]) -> float:
    """When the last of those who still wait for *row* has no more time."""
    waits = (item.payload for item in row.waiters)
    return max((each.ends_s for each in waits if not each.settled), default=-math.inf)


def _unsettled(part: Part[T], why: Why, failure: Failure) -> Settled[T]:
    return Settled(rows=part.rows, spent_ns=part.spent_ns, why=why, failure=failure)
