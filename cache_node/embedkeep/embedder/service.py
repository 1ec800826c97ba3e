"""The gRPC service embedkeep.v1.Embedder, around any backend."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn

import numpy as np
import structlog

from embedkeep.config import Batching, ModelSpec
from embedkeep.embedder import canaries
from embedkeep.embedder.answering import Answering, Time
from embedkeep.embedder.backends import About, Backend
from embedkeep.embedder.batcher import Batcher, Computed, Engine, compute
from embedkeep.embedder.device import DeviceThread
from embedkeep.embedder.metrics import EmbedderMetrics
from embedkeep.embedder.schedule import CostModel
from embedkeep.errors import EmbedderUnavailable
from embedkeep.v1 import embedder_pb2 as pb
from embedkeep.v1.embedder_pb2 import Purpose

log = structlog.stdlib.get_logger()

_WARM_COPIES: Final = (1, 4)
"""Copies of all canaries in a batch, batch after batch, before the first request."""


@dataclass(frozen=True, slots=True)
class _Warm:
    """A model that was run."""

    described: pb.DescribeResponse
    batcher: Batcher
    task: asyncio.Task[None]

    async def compute(
        self, texts: Sequence[str], *, purpose: Purpose.ValueType, flow: bytes, time: Time
    ) -> Computed:
        """See `embedkeep.embedder.answering.Computer`."""
        return await self.batcher.embed(
            texts, purpose=purpose, flow=flow, patience_s=time.patience_s
        )


class EmbedderService(Answering):
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
        super().__init__(
            limits or Batching(),
            max_message_bytes=max_message_bytes,
            waits_for="the model is being loaded",
        )
        self._model = model
        self.metrics = metrics or EmbedderMetrics()
        self._clock = clock
        self._device = DeviceThread("device")
        self._warm: _Warm | None = None

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
            metrics=self.metrics,
            clock=self._clock,
        )
        about = backend.about
        self.metrics.running(backend=about.backend, device=about.device, dtype=about.dtype)
        task = asyncio.create_task(batcher.run(), name="batcher")
        self.detokenizer = backend.detokenize
        self.computer = self._warm = _Warm(
            _described(self._model, backend.about, alone), batcher, task
        )
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
        if self._warm is None:
            raise RuntimeError("broken() before start()")
        await asyncio.shield(self._warm.task)
        raise EmbedderUnavailable("the batcher ended")

    def ended(self, *, within_s: float) -> bool:
        """Whether the model's threads end in that time after `close`; see `DeviceThread.ended`."""
        ends_s = time.monotonic() + within_s
        if self._warm is not None and not self._warm.batcher.ended(within_s=within_s):
            return False
        return self._device.ended(within_s=max(0.0, ends_s - time.monotonic()))

    async def close(self) -> None:
        """Stop; calls that still wait are refused."""
        if self._warm is not None:
            self._warm.task.cancel()
            await asyncio.wait([self._warm.task])
        self._device.close()


def _described(model: ModelSpec, about: About, alone: bytes) -> pb.DescribeResponse:
    return pb.DescribeResponse(
        fingerprint=about.fingerprint,
        model=model.name,
        revision=model.revision or "",
        dimensions=about.dimensions,
        max_tokens=about.max_tokens,
        normalized=about.normalized,
        backend=about.backend,
        device=about.device,
        dtype=about.dtype,
        canaries=alone,
        min_canary_cosine=canaries.min_cosine(about.dtype, about.quantization),
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
