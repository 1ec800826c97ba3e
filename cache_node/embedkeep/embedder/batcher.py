"""The shell around `schedule`: callers on one side, the device's thread on the other.

As soon as the device is idle the next batch goes out; there is no fixed delay. While it is busy,
inputs gather, and so the batches grow with the load by themselves.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
import structlog

from embedkeep.config import Batching
from embedkeep.embedder.answering import LANES
from embedkeep.embedder.backends import Backend, Tokens, Vectors
from embedkeep.embedder.device import DeviceThread
from embedkeep.embedder.lanes import Lane
from embedkeep.embedder.metrics import PURPOSES, EmbedderMetrics
from embedkeep.embedder.reader import Reader
from embedkeep.embedder.schedule import CostModel, Item, Newcomer, Row, Schedule, apportion
from embedkeep.errors import EmbedderUnavailable, EmbedKeepError, Internal
from embedkeep.v1.embedder_pb2 import Purpose

log = structlog.stdlib.get_logger()

_INLINE_CHARACTERS: Final = 2048
"""Texts up to this are cut into tokens on the loop, at once: a thread would gain nothing."""


@dataclass(slots=True, eq=False)
class Computed:
    """The answer to one call, filled row by row."""

    vectors: Vectors
    """Shape (inputs, dimensions); NaN where a row failed."""
    tokens: list[Tokens]
    device_ns: list[int]
    """0 where the time is booked to another who waited for the same; see `Row.payer`."""
    errors: dict[int, EmbedKeepError] = field(default_factory=dict)
    """By row."""

    @property
    def token_counts(self) -> list[int]:
        """Of each text, as far as the model read it."""
        return [len(tokens.ids) for tokens in self.tokens]

    @property
    def truncated(self) -> list[int]:
        """Rows whose text was longer than the model reads."""
        return [row for row, tokens in enumerate(self.tokens) if tokens.truncated]


@dataclass(slots=True, eq=False)
class _Call:
    purpose: Purpose.ValueType
    answer: Computed
    left: int
    done: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a vector goes."""

    call: _Call
    index: int

    @property
    def ids(self) -> Sequence[int]:
        return self.call.answer.tokens[self.index].ids

    @property
    def purpose(self) -> str:
        """As labels call it."""
        return PURPOSES[self.call.purpose]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a batch gave: one entry a row."""

    vectors: Vectors
    device_ns: list[int]
    errors: dict[int, str]
    """What went wrong, by row."""
    busy_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A warm model and all that belongs to it."""

    backend: Backend
    thread: DeviceThread
    """Runs the backend."""
    cost: CostModel
    """What batches cost here, so far; learns on."""
    probe: Sequence[int]
    """A row that is known to work. When every row of a batch fails, this one tells bad inputs
    from a broken device."""


class Batcher:
    """Computes texts in batches, fairly and in order of their purpose.

    What a flow waits for several times is computed once, for its most urgent purpose, and its
    time is booked there; the other rows get the vector with 0 ns.

    `run` must run for calls to be answered. All methods belong to one event loop.

    Args:
        clock: Seconds, for waiting times.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        limits: Batching,
        metrics: EmbedderMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._backend = engine.backend
        self._metrics = metrics
        self._clock = clock
        self._schedule: Schedule[_Place] = Schedule(limits, engine.cost)
        self._wake = asyncio.Event()
        self._calls: set[_Call] = set()
        self._ended = False
        self._reader = Reader(engine.backend.tokenize, max_wait_s=limits.max_wait_s, clock=clock)

    async def embed(
        self,
        texts: Sequence[str],
        *,
        purpose: Purpose.ValueType,
        flow: bytes,
        patience_s: float = math.inf,
    ) -> Computed:
        """Compute *texts*, each not empty; failures of single ones stand in the answer.

        Leaving early takes what is still queued out of the queue.

        Args:
            patience_s: How long whoever asks waits.

        Raises:
            Overloaded: The queue is full, or takes longer than that; nothing was queued.
            EmbedderUnavailable: It stopped, or the device broke.
        """
        self._check_open()
        lane, name, count = LANES[purpose], PURPOSES[purpose], len(texts)
        newcomer = Newcomer.of(texts, lane=lane, flow=flow, patience_s=patience_s)
        characters = newcomer.characters
        try:
            self._schedule.reserve(newcomer, now_s=self._clock())
        except EmbedKeepError:
            self._metrics.refused.labels(name).inc(count)
            raise
        self._metrics.queued.labels(name).inc(count)
        try:
            tokens = await self._read(texts, characters, lane, flow)
            self._check_open()
        except BaseException:
            self._schedule.release(count, characters=characters)
            self._dropped(name, count)
            raise
        call = self._new_call(tokens, purpose)
        items = self._items(call, lane, flow)
        self._schedule.offer(items)
        self._calls.add(call)
        self._wake.set()
        try:
            await call.done
        finally:
            self._calls.discard(call)
            if call.left:
                self._dropped(name, self._schedule.drop(items))
            self._schedule.release(characters=characters)
        return call.answer

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            EmbedderUnavailable: The device is broken: it fails even on what it could do before.
        """
        tasks = [
            asyncio.create_task(self._reader.run(), name="reader"),
            asyncio.create_task(self._serve(), name="device"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._ended = True
            for call in self._calls:
                if not call.done.done():
                    call.done.set_exception(EmbedderUnavailable("the embedder stopped"))
            self._reader.close()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def ended(self, *, within_s: float) -> bool:
        """Whether its own threads end in that time after `run`; see `DeviceThread.ended`."""
        return self._reader.ended(within_s=within_s)

    async def _serve(self) -> None:
        while True:
            if batch := self._schedule.take(self._clock()):
                await self._compute(batch)
            else:
                self._wake.clear()
                await self._wake.wait()

    def _check_open(self) -> None:
        if self._ended:
            raise EmbedderUnavailable("the embedder is stopping")

    def _dropped(self, purpose: str, inputs: int) -> None:
        self._metrics.queued.labels(purpose).dec(inputs)
        self._metrics.dropped.labels(purpose).inc(inputs)

    def _new_call(self, tokens: list[Tokens], purpose: Purpose.ValueType) -> _Call:
        answer = Computed(
            vectors=np.full((len(tokens), self._backend.about.dimensions), np.nan, np.float32),
            tokens=tokens,
            device_ns=[0] * len(tokens),
        )
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        return _Call(purpose, answer, len(tokens), done)

    def _items(self, call: _Call, lane: Lane, flow: bytes) -> list[Item[_Place]]:
        now_s = self._clock()
        return [
            Item(
                payload=_Place(call, index),
                tokens=len(row.ids),
                lane=lane,
                flow=flow,
                arrived_s=now_s,
                key=tuple(row.ids),
            )
            for index, row in enumerate(call.answer.tokens)
        ]

    async def _read(
        self, texts: Sequence[str], characters: int, lane: Lane, flow: bytes
    ) -> list[Tokens]:
        if characters <= _INLINE_CHARACTERS:
            return self._backend.tokenize(texts)
        return await self._reader.read(texts, lane=lane, flow=flow)

    async def _compute(self, batch: Sequence[Row[_Place]]) -> None:
        for row in batch:
            for item in row.waiters:
                self._metrics.queued.labels(item.payload.purpose).dec()
        rows = [row.payer.payload.ids for row in batch]
        outcome = await self._engine.thread.call(partial(compute, self._backend, rows))
        self._book(batch, outcome)
        for number, row in enumerate(batch):
            for place, item in enumerate(row.waiters):
                _deliver(item.payload, outcome, number, pays=place == 0)
        if len(outcome.errors) == len(batch):
            await self._check_device()

    def _book(self, batch: Sequence[Row[_Place]], outcome: Outcome) -> None:
        metrics, seconds = self._metrics, outcome.busy_ns / 1e9
        if not outcome.errors:  # a batch that was tried twice says nothing about the usual cost
            self._engine.cost.observe(sum(row.tokens for row in batch), seconds)
        metrics.batch_inputs.observe(len(batch))
        metrics.batch_seconds.observe(seconds)
        for number, row in enumerate(batch):
            payer, *others = row.waiters
            name = payer.payload.purpose
            metrics.inputs.labels(name).inc()
            metrics.tokens.labels(name).inc(row.tokens)
            metrics.device_seconds.labels(name).inc(outcome.device_ns[number] / 1e9)
            if number in outcome.errors:
                metrics.failed.labels(name).inc()
            for item in others:
                metrics.shared.labels(item.payload.purpose).inc()

    async def _check_device(self) -> None:
        outcome = await self._engine.thread.call(
            partial(compute, self._backend, [self._engine.probe])
        )
        if outcome.errors:
            raise EmbedderUnavailable(f"the device is broken: {outcome.errors[0]}")


def _deliver(place: _Place, outcome: Outcome, number: int, *, pays: bool) -> None:
    call, index = place.call, place.index
    if pays:
        call.answer.device_ns[index] = outcome.device_ns[number]
    if (message := outcome.errors.get(number)) is None:
        call.answer.vectors[index] = outcome.vectors[number]
    else:
        call.answer.errors[index] = Internal(message)
    call.left -= 1
    if call.left == 0 and not call.done.done():
        call.done.set_result(None)


def compute(backend: Backend, rows: Sequence[Sequence[int]]) -> Outcome:
    """Run one batch, on the calling thread; should it fail, each of its rows alone, once.

    A row that is too much for the device, or that the model cannot take, fails without its mates.
    Time of both tries is booked.
    """
    tokens = [len(row) for row in rows]
    started = time.perf_counter_ns()
    try:
        vectors = _checked(backend, rows)
        busy = time.perf_counter_ns() - started
        errors = {
            int(row): "the model gave a vector that is not finite"
            for row in np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        }
        return Outcome(
            vectors=vectors, device_ns=apportion(busy, tokens), errors=errors, busy_ns=busy
        )
    except Exception as error:  # noqa: BLE001  # whatever an engine raises
        busy = time.perf_counter_ns() - started
        # A backend sees token ids only, so its message holds no text.
        log.warning("batch failed; its rows run alone", rows=len(rows), error=_said(error))
    return _alone(backend, rows, apportion(busy, tokens))


def _alone(backend: Backend, rows: Sequence[Sequence[int]], spent_ns: list[int]) -> Outcome:
    vectors = np.full((len(rows), backend.about.dimensions), np.nan, np.float32)
    device_ns = list(spent_ns)
    errors: dict[int, str] = {}
    for number, row in enumerate(rows):
        started = time.perf_counter_ns()
        try:
            vectors[number] = _checked(backend, [row])[0]
            if not np.isfinite(vectors[number]).all():
                errors[number] = "the model gave a vector that is not finite"
        except Exception as error:  # noqa: BLE001  # as above
            errors[number] = f"the model failed on this input: {_said(error)}"
        device_ns[number] += time.perf_counter_ns() - started
    return Outcome(vectors=vectors, device_ns=device_ns, errors=errors, busy_ns=sum(device_ns))


def _checked(backend: Backend, rows: Sequence[Sequence[int]]) -> Vectors:
    vectors = backend.embed(rows)
    wanted = (len(rows), backend.about.dimensions)
    if vectors.shape != wanted or vectors.dtype != np.float32:
        raise ValueError(f"{vectors.dtype} {vectors.shape} instead of float32 {wanted}")
    return vectors


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
