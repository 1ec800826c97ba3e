"""The gRPC service embedkeep.v1.Embedder, around any backend."""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn

import numpy as np
import structlog

from embedkeep.config import Batching, ModelSpec
from embedkeep.embedder import canaries
from embedkeep.embedder.backends import About, Backend
from embedkeep.embedder.batcher import LANES, Batcher, Computed, Engine, compute
from embedkeep.embedder.device import DeviceThread
from embedkeep.embedder.metrics import EmbedderMetrics
from embedkeep.embedder.schedule import CostModel
from embedkeep.errors import (
    DeadlineExceeded,
    EmbedderUnavailable,
    EmbedKeepError,
    InvalidInput,
    InvalidRequest,
    ModelDrift,
    Unavailable,
    code_of,
)
from embedkeep.refusal import Context, refuse
from embedkeep.v1 import embedder_pb2 as pb
from embedkeep.v1 import embedder_pb2_grpc

log = structlog.stdlib.get_logger()

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Embedder"].full_name

_ROW_OVERHEAD_BYTES: Final = 64
"""Of an answer, an input, beside its vector: tokens, time, perhaps an error's text."""
_WARM_COPIES: Final = (1, 4)
"""Copies of all canaries in a batch, batch after batch, before the first request."""


@dataclass(frozen=True, slots=True)
class _Ready:
    about: About
    canaries: bytes
    batcher: Batcher
    task: asyncio.Task[None]


class EmbedderService(embedder_pb2_grpc.EmbedderServicer):
    """Answers UNAVAILABLE until `start` has returned.

    Any `Backend` will do, one that counts or waits as well as a real one::

        service = EmbedderService(ModelSpec(name="fake"))
        await service.start(lambda: FakeBackend())  # called on the device's thread
        embedder_pb2_grpc.add_EmbedderServicer_to_server(service, server)
        ...
        await service.close()

    Before `start` returns, the backend has run each canary alone and a few batches of them.

    Args:
        model: Named in Describe.
        limits: Of batches, queue and requests.
        metrics: None: own ones, which nobody reads.
        max_message_bytes: Requests are refused whose answer could be larger.
        clock: Seconds, for waiting times.
    """

    def __init__(
        self,
        model: ModelSpec,
        limits: Batching | None = None,
        *,
        metrics: EmbedderMetrics | None = None,
        max_message_bytes: int = 64 << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.instance = os.urandom(16)
        """Tells this embedder's answers from those of any other."""
        self._model = model
        self._limits = limits or Batching()
        self._metrics = metrics or EmbedderMetrics()
        self._max_message_bytes = max_message_bytes
        self._clock = clock
        self._device = DeviceThread("device")
        self._ready: _Ready | None = None

    async def start(self, open_backend: Callable[[], Backend]) -> None:
        """Load the model on the device's thread and run it until it is warm.

        Raises:
            InvalidConfig: It cannot be loaded.
            EmbedderUnavailable: It was loaded, but fails on the canaries.
        """
        backend = await self._device.call(open_backend)
        cost = CostModel()
        rows = [row.ids for row in backend.tokenize(canaries.TEXTS)]
        alone = await self._device.call(partial(_run_canaries, backend, rows))
        await self._device.call(partial(_warm, backend, rows, cost))
        batcher = Batcher(
            Engine(backend=backend, thread=self._device, cost=cost, probe=rows[0]),
            limits=self._limits,
            metrics=self._metrics,
            clock=self._clock,
        )
        self._metrics.loaded(backend.about)
        task = asyncio.create_task(batcher.run(), name="batcher")
        self._ready = _Ready(backend.about, alone, batcher, task)
        log.info(
            "model loaded",
            model=self._model.name,
            fingerprint=backend.about.fingerprint,
            fixed_ms=round(cost.fixed_s * 1e3, 3),
            token_us=round(cost.token_s * 1e6, 1),
        )

    async def broken(self) -> NoReturn:
        """Wait until the model can compute no more, for ever where it can.

        Raises:
            EmbedderUnavailable: The device broke.
        """
        if self._ready is None:
            raise RuntimeError("broken() before start()")
        await asyncio.shield(self._ready.task)
        raise EmbedderUnavailable("the batcher ended")

    def ended(self, *, within_s: float) -> bool:
        """Whether the model's threads end in that time after `close`; see `DeviceThread.ended`."""
        ends_s = time.monotonic() + within_s
        if self._ready is not None and not self._ready.batcher.ended(within_s=within_s):
            return False
        return self._device.ended(within_s=max(0.0, ends_s - time.monotonic()))

    async def close(self) -> None:
        """Stop; calls that still wait are refused."""
        if self._ready is not None:
            self._ready.task.cancel()
            await asyncio.wait([self._ready.task])
        self._device.close()

    async def Embed(self, request: pb.ComputeRequest, context: Context) -> pb.ComputeResponse:  # noqa: N802  # the name is the wire's
        """Compute the vectors of a request."""
        try:
            return await self._embed(request, context.time_remaining())
        except EmbedKeepError as error:
            await refuse(context, error)

    async def Describe(  # noqa: N802  # as above
        self,
        request: pb.DescribeRequest,  # noqa: ARG002  # has no fields
        context: Context,
    ) -> pb.DescribeResponse:
        """Say what is computed here."""
        try:
            ready = self._loaded()
        except EmbedKeepError as error:
            await refuse(context, error)
        about = ready.about
        return pb.DescribeResponse(
            fingerprint=about.fingerprint,
            model=self._model.name,
            revision=self._model.revision or "",
            dimensions=about.dimensions,
            max_tokens=about.max_tokens,
            normalized=about.normalized,
            backend=about.backend,
            device=about.device,
            dtype=about.dtype,
            max_inputs=self._max_inputs(about),
            canaries=ready.canaries,
            min_canary_cosine=canaries.MIN_COSINE[about.dtype],
            instance=self.instance,
        )

    def _loaded(self) -> _Ready:
        if self._ready is None:
            raise Unavailable("the model is being loaded", retry_after_s=1.0)
        return self._ready

    def _max_inputs(self, about: About) -> int:
        fitting = self._max_message_bytes // (4 * about.dimensions + _ROW_OVERHEAD_BYTES)
        return max(1, min(self._limits.max_request_inputs, fitting))

    async def _embed(self, request: pb.ComputeRequest, time_s: float | None) -> pb.ComputeResponse:
        ready = self._loaded()
        self._check(request, ready.about)
        texts = list(request.inputs)
        asked = [index for index, text in enumerate(texts) if text]
        if not asked:
            return self._answer(request, asked, None, ready.about)
        try:
            async with asyncio.timeout(time_s):
                computed = await ready.batcher.embed(
                    [texts[index] for index in asked], purpose=request.purpose, flow=request.flow
                )
        except TimeoutError as error:
            raise DeadlineExceeded("the caller's time was up") from error
        return self._answer(request, asked, computed, ready.about)

    def _check(self, request: pb.ComputeRequest, about: About) -> None:
        if request.fingerprint and request.fingerprint != about.fingerprint:
            raise ModelDrift(
                f"this embedder's fingerprint is {about.fingerprint}, not {request.fingerprint}"
            )
        count, most = len(request.inputs), self._max_inputs(about)
        if not 1 <= count <= most:
            raise InvalidRequest(f"a request has 1 to {most} inputs, got {count}")
        if request.purpose not in LANES:
            raise InvalidRequest(f"purpose {request.purpose} is unknown here")

    def _answer(
        self,
        request: pb.ComputeRequest,
        asked: Sequence[int],
        computed: Computed | None,
        about: About,
    ) -> pb.ComputeResponse:
        """Put the rows that were computed between those that were not asked for."""
        count = len(request.inputs)
        if computed is not None and len(asked) == count:
            vectors = computed.vectors
        else:
            vectors = np.full((count, about.dimensions), np.nan, np.float32)
        tokens, device_ns, truncated = [0] * count, [0] * count, []
        errors: dict[int, EmbedKeepError] = {
            index: InvalidInput("the text is empty", index=index)
            for index, text in enumerate(request.inputs)
            if not text
        }
        if computed is not None:
            if vectors is not computed.vectors:
                vectors[list(asked)] = computed.vectors
            for row, index in enumerate(asked):
                tokens[index] = len(computed.tokens[row].ids)
                device_ns[index] = computed.device_ns[row]
                if computed.tokens[row].truncated:
                    truncated.append(index)
            errors |= {asked[row]: error for row, error in computed.errors.items()}
        return pb.ComputeResponse(
            vectors=vectors.astype("<f4", copy=False).tobytes(),
            dimensions=about.dimensions,
            tokens=tokens,
            device_ns=device_ns,
            truncated=truncated,
            errors=[
                pb.ComputeError(
                    index=index, code=code_of(error), reason=error.reason, message=str(error)
                )
                for index, error in sorted(errors.items())
            ],
            fingerprint=about.fingerprint,
            instance=self.instance,
        )


def _run_canaries(backend: Backend, rows: Sequence[Sequence[int]]) -> bytes:
    """Each canary's vector, computed alone; the first runs twice, to load lazy kernels."""
    compute(backend, rows[:1])
    outcomes = [compute(backend, [row]) for row in rows]
    for outcome in outcomes:
        if outcome.errors:
            raise EmbedderUnavailable(f"the model fails on a canary: {outcome.errors[0]}")
    return np.concatenate([outcome.vectors for outcome in outcomes]).astype("<f4").tobytes()


def _warm(backend: Backend, rows: Sequence[Sequence[int]], cost: CostModel) -> None:
    """Run batches of several sizes: kernels get chosen, and the cost model gets its start."""
    batches = [list(rows[:1]), *([*rows] * copies for copies in _WARM_COPIES)]
    for batch in sorted(batches, key=len):
        compute(backend, batch)  # the first of a size also chooses its kernels
        outcome = compute(backend, batch)
        cost.observe(sum(map(len, batch)), outcome.busy_ns / 1e9)
