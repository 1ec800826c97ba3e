"""The shell around `policy`: callers on one side, requests on the other.

A caller who leaves takes the texts out that still wait. A request that is on its way goes on, for
it is paid already, and is answered to those who still wait for it.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import SystemRandom
from typing import Final, Protocol

import numpy as np
import structlog

from embedkeep.config import Batching
from embedkeep.embedder.answering import LANES, Time
from embedkeep.embedder.backends import Vectors
from embedkeep.embedder.lanes import Lane
from embedkeep.embedder.metrics import PURPOSES
from embedkeep.embedder.schedule import Item, Newcomer, Schedule
from embedkeep.embedder.upstream.failures import Failure, Kind, Names, refusal
from embedkeep.embedder.upstream.http import Http
from embedkeep.embedder.upstream.metrics import ANSWERED, UpstreamMetrics
from embedkeep.embedder.upstream.policy import Part, Policy, Settled, Sizes, Why
from embedkeep.embedder.upstream.wires import Answer, Wire, most_answer_bytes, read
from embedkeep.errors import (
    DeadlineExceeded,
    EmbedderUnavailable,
    EmbedKeepError,
    InvalidInput,
    InvalidResponse,
    Retryable,
)
from embedkeep.records import Vector
from embedkeep.v1.embedder_pb2 import Purpose

log = structlog.stdlib.get_logger()

_READ_INLINE_BYTES: Final = 64 << 10
"""Answers up to this are read on the loop: a thread would gain nothing."""


def estimated_tokens(text: str) -> int:
    """How many tokens *text* may have, before anybody has counted them.

    One for two bytes of UTF-8: English has about one for four, Chinese one for three, and what has
    more is split when the upstream says so.
    """
    return len(text.encode()) // 2 + 1


@dataclass(slots=True, eq=False)
class Computed:
    """The answer to one call, filled row by row; see `embedkeep.embedder.answering.Answered`."""

    vectors: Vectors
    token_counts: list[int]
    device_ns: list[int]
    """What requests with a row have taken; 0 where another waited for the same and it is booked
    there."""
    errors: dict[int, EmbedKeepError] = field(default_factory=dict)
    truncated: Sequence[int] = ()
    """Not said by any upstream."""


@dataclass(slots=True, eq=False, kw_only=True)
class _Call:
    purpose: str
    lane: Lane
    ends_s: float
    """When its caller's time is up; infinite: never."""
    answer: Computed
    left: int
    done: asyncio.Future[None]
    places: "list[_Place]" = field(default_factory=list)
    items: "list[Item[_Place]]" = field(default_factory=list)
    """One for each of places."""


@dataclass(slots=True, eq=False)
class _Place:
    """Where a vector goes."""

    call: _Call
    index: int
    text: str
    settled: bool = False

    @property
    def ends_s(self) -> float:
        """When its caller's time is up; infinite: never."""
        return self.call.ends_s

    def settle(self) -> bool:
        """Wait no more; whether it did until now."""
        if self.settled:
            return False
        self.settled = True
        self.call.left -= 1
        if self.call.left == 0 and not self.call.done.done():
            self.call.done.set_result(None)
        return True

    def fail(self, error: EmbedKeepError) -> None:
        """Refuse it, where it still waits."""
        if self.settle():
            self.call.answer.errors[self.index] = error


class Looker(Protocol):
    """Sees to it that the upstream still computes the same."""

    async def look(self) -> Failure | None:
        """Look, where it is time to; None: it does.

        Raises:
            EmbedderUnavailable: It computes something else by now.
        """
        ...

    def distrust(self) -> None:
        """A connection was lost: something else may answer by now, so look before the next."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An upstream, and what is known of it."""

    http: Http
    wire: Wire
    looker: Looker
    names: Names
    max_inputs: int
    """A request."""
    max_tokens: int
    """A request, as estimated."""
    concurrent: int
    """Requests in flight."""
    dimensions: int


class Calls:
    """Has texts computed by an upstream, fairly and in order of their purpose.

    What a flow waits for several times is asked for once. `run` must run for calls to be answered.

    Args:
        clock: Seconds, for waiting times.
    """

    def __init__(
        self,
        asked: Asked,
        *,
        limits: Batching,
        metrics: UpstreamMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._asked = asked
        self._metrics = metrics
        self._clock = clock
        sizes = Sizes(
            max_inputs=asked.max_inputs,
            max_tokens=asked.max_tokens,
            concurrent=asked.concurrent,
        )
        self._schedule: Schedule[_Place] = Schedule(limits, sizes)
        self._policy: Policy[_Place] = Policy(
            self._schedule, sizes, concurrent=asked.concurrent, dice=SystemRandom().random
        )
        self._wake = asyncio.Event()
        self._calls: set[_Call] = set()
        self._sent: set[Part[_Place]] = set()
        self._ended = False
        metrics.pause.set_function(lambda: self._policy.pace.left_s(clock()))
        metrics.in_flight.set_function(lambda: self._policy.in_flight)

    async def compute(
        self, texts: Sequence[str], *, purpose: Purpose.ValueType, flow: bytes, time: Time
    ) -> Computed:
        """See `embedkeep.embedder.answering.Computer`.

        Raises:
            Overloaded: The queue is full, or it takes longer than the caller waits, or so does the
                pause that the upstream asked for.
            EmbedderUnavailable: The upstream cannot be used now; says why.
        """
        lane, name, count = LANES[purpose], PURPOSES[purpose], len(texts)
        self._check_open(lane, time.patience_s)
        newcomer = Newcomer.of(texts, lane=lane, flow=flow, patience_s=time.patience_s)
        try:
            self._schedule.reserve(newcomer, now_s=self._clock())
        except EmbedKeepError:
            self._metrics.refused.labels(name).inc(count)
            raise
        now_s = self._clock()
        call = self._new_call(texts, name, lane, now_s + time.left_s)
        call.items = [
            Item(
                payload=place,
                tokens=estimated_tokens(place.text),
                lane=lane,
                flow=flow,
                arrived_s=now_s,
                key=place.text,
            )
            for place in call.places
        ]
        self._metrics.queued.labels(name).inc(count)
        self._schedule.offer(call.items)
        self._calls.add(call)
        self._wake.set()
        try:
            await call.done
        finally:
            self._calls.discard(call)
            for place in call.places:
                place.settle()
            self._drop(call, call.items)
            self._schedule.release(characters=newcomer.characters)
            self._wake.set()
        return _raised_if_nothing_came(call.answer)

    async def run(self) -> None:
        """Make requests until cancelled.

        Raises:
            EmbedderUnavailable: The upstream computes something else by now.
        """
        try:
            async with asyncio.TaskGroup() as requests:
                while True:
                    self._wake.clear()
                    while (part := self._policy.next(self._clock())) is not None:
                        self._started(part)
                        requests.create_task(self._request(part), name="request")
                    await self._woken(self._policy.wait_s(self._clock()))
        except BaseExceptionGroup as group:
            ours, others = group.split(EmbedKeepError)
            if ours is None or others is not None:
                raise
            raise _first(ours) from group
        finally:
            self._ended = True
            for call in self._calls:
                if not call.done.done():
                    call.done.set_exception(EmbedderUnavailable("the embedder stopped"))

    async def _woken(self, within_s: float | None) -> None:
        try:
            async with asyncio.timeout(within_s):
                await self._wake.wait()
        except TimeoutError:
            return

    def _check_open(self, lane: Lane, time_s: float) -> None:
        if self._ended:
            raise EmbedderUnavailable("the embedder is stopping")
        pace, now_s = self._policy.pace, self._clock()
        if self._asked.http.key.changed():
            pace.renewed()
        if not self._policy.will_wait(self._policy.patience_s(lane, time_s), now_s):
            raise self._refusal(pace.reason, now_s)

    def _new_call(self, texts: Sequence[str], purpose: str, lane: Lane, ends_s: float) -> _Call:
        count = len(texts)
        call = _Call(
            purpose=purpose,
            lane=lane,
            ends_s=ends_s,
            answer=Computed(
                vectors=np.full((count, self._asked.dimensions), np.nan, np.float32),
                token_counts=[0] * count,
                device_ns=[0] * count,
            ),
            left=count,
            done=asyncio.get_running_loop().create_future(),
        )
        call.places = [_Place(call, index, text) for index, text in enumerate(texts)]
        return call

    def _started(self, part: Part[_Place]) -> None:
        self._sent.add(part)
        if part.again:
            self._metrics.retries.inc()
            return
        self._metrics.batch_inputs.observe(len(part.rows))
        for row in part.rows:
            for item in row.waiters:
                self._metrics.queued.labels(item.payload.call.purpose).dec()

    async def _request(self, part: Part[_Place]) -> None:
        started_ns = time.perf_counter_ns()
        texts = [row.payer.payload.text for row in part.rows]
        outcome = await self._ask(texts, ends_s=part.ends_s)
        took_ns = time.perf_counter_ns() - started_ns
        self._sent.discard(part)
        now_s = self._clock()
        for settled in self._policy.answered(part, outcome, took_ns=took_ns, now_s=now_s):
            self._settle(settled, now_s)
        self._book(outcome, took_ns)
        self._refuse_the_impatient(now_s)
        self._wake.set()

    async def _ask(self, texts: Sequence[str], *, ends_s: float) -> Answer | Failure:
        asked = self._asked
        if (failure := await asked.looker.look()) is not None:
            return failure
        reply = await asked.http.post(
            asked.wire.path,
            asked.wire.body(texts),
            most_bytes=most_answer_bytes(len(texts), asked.dimensions),
            within_s=max(0.001, ends_s - self._clock()),  # aiohttp takes 0 for no limit
        )
        if isinstance(reply, Failure):
            if reply.kind is Kind.FAILED:
                asked.looker.distrust()
            return reply
        answered = partial(
            read,
            asked.wire,
            reply.headers,
            reply.body,
            inputs=len(texts),
            dimensions=asked.dimensions,
        )
        if len(reply.body) <= _READ_INLINE_BYTES:
            return answered()
        return await asyncio.to_thread(answered)

    def _book(self, outcome: Answer | Failure, took_ns: int) -> None:
        self._metrics.batch_seconds.observe(took_ns / 1e9)
        if isinstance(outcome, Answer):
            self._metrics.requests.labels(ANSWERED).inc()
            return
        self._metrics.requests.labels(outcome.kind).inc()
        if outcome.kind is not Kind.REJECTED:
            left_s = round(self._policy.pace.left_s(self._clock()), 3)
            log.warning("request failed", kind=outcome.kind, said=outcome.said, pause_s=left_s)

    def _settle(self, settled: Settled[_Place], now_s: float) -> None:
        metrics = self._metrics
        for number, row in enumerate(settled.rows):
            waiters = [item.payload for item in row.waiters]
            payer = next((place for place in waiters if not place.settled), waiters[0])
            name, spent_ns = payer.call.purpose, settled.spent_ns[number]
            metrics.device_seconds.labels(name).inc(spent_ns / 1e9)
            payer.call.answer.device_ns[payer.index] = spent_ns
            if settled.vectors is None:
                error = self._error(settled, now_s)
                metrics.failed.labels(name).inc()
                for place in waiters:
                    place.fail(error)
                continue
            metrics.inputs.labels(name).inc()
            metrics.tokens.labels(name).inc(settled.tokens[number])
            metrics.paid(name, settled.tokens[number])
            for place in waiters:
                if place is not payer:
                    metrics.shared.labels(place.call.purpose).inc()
                _deliver(place, settled.vectors[number], settled.tokens[number])

    def _refuse_the_impatient(self, now_s: float) -> None:
        """Refuse at once who would not see the end of a pause; not what is on its way."""
        policy = self._policy
        if not policy.pace.left_s(now_s):
            return
        sent = {
            id(item.payload) for part in self._sent for row in part.rows for item in row.waiters
        }
        for call in list(self._calls):
            if policy.will_wait(policy.patience_s(call.lane, call.ends_s - now_s), now_s):
                continue
            error = self._refusal(policy.pace.reason, now_s)
            refused = [item for item in call.items if id(item.payload) not in sent]
            self._drop(call, refused)
            for item in refused:
                item.payload.fail(error)

    def _drop(self, call: _Call, items: Sequence[Item[_Place]]) -> None:
        """Take those of *items* that still wait out of the queue."""
        dropped = self._schedule.drop(items)
        self._metrics.queued.labels(call.purpose).dec(dropped)
        self._metrics.dropped.labels(call.purpose).inc(dropped)

    def _refusal(self, reason: Failure | None, now_s: float) -> EmbedKeepError:
        after_s = round(max(self._policy.pace.left_s(now_s), 0.05), 3)
        return refusal(reason, self._asked.names, retry_after_s=after_s)

    def _error(self, settled: Settled[_Place], now_s: float) -> EmbedKeepError:
        failure = settled.failure
        told = failure.said if failure is not None else "it does not say why"
        if settled.why is Why.REFUSED:
            words = f": {failure.words}" if failure is not None and failure.words else ""
            return InvalidInput(f"the upstream refuses this input ({told}){words}")
        if settled.why is Why.NOT_FOUND:
            return EmbedderUnavailable(
                f"the upstream refuses a batch ({told}), and the search for the input at fault was"
                " ended; fewer inputs in a request may be taken: see maxBatchInputs"
            )
        if settled.why is Why.LATE:
            return DeadlineExceeded(f"no time is left to ask the upstream again: {told}")
        return self._refusal(failure, now_s)


def _deliver(place: _Place, vector: Vector, tokens: int) -> None:
    answer, index = place.call.answer, place.index
    if not np.isfinite(vector).all():
        place.fail(InvalidResponse("the upstream answered NaN or infinity for this input"))
    elif place.settle():
        answer.vectors[index] = vector
        answer.token_counts[index] = tokens


def _raised_if_nothing_came(answer: Computed) -> Computed:
    """The answer, or the error of all its rows that may pass by itself.

    Raised, it keeps when a retry has a chance; a row's error cannot say it.
    """
    first = answer.errors.get(0)
    if isinstance(first, Retryable) and len(answer.errors) == len(answer.token_counts):
        raise first
    return answer


def _first(group: BaseExceptionGroup[EmbedKeepError]) -> EmbedKeepError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
