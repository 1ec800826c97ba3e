"""The gRPC service embedkeep.v1.Embedder, around somebody else's embedder."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import SystemRandom
from typing import Final, NoReturn

import structlog

from embedkeep.config import Batching, ModelSpec, Upstream
from embedkeep.embedder.answering import Answering, Time
from embedkeep.embedder.upstream.calls import Asked, Calls, Computed
from embedkeep.embedder.upstream.failures import Failure, Kind, refusal
from embedkeep.embedder.upstream.http import Http
from embedkeep.embedder.upstream.key import key_of
from embedkeep.embedder.upstream.looking import Look, Seen
from embedkeep.embedder.upstream.metrics import UpstreamMetrics
from embedkeep.embedder.upstream.pace import LOOK_AGAIN_S, NEEDS_SOMEBODY, backoff_s
from embedkeep.embedder.upstream.wires import MOST_DECIMALS
from embedkeep.errors import EmbedderUnavailable
from embedkeep.v1 import embedder_pb2 as pb
from embedkeep.v1.embedder_pb2 import Purpose

log = structlog.stdlib.get_logger()

NO_LIMIT: Final = 1 << 40
"""Inputs or tokens of a request, where nothing limits them."""


@dataclass(frozen=True, slots=True)
class _Found:
    """An upstream that was seen to answer."""

    described: pb.DescribeResponse
    calls: Calls

    async def compute(
        self, texts: Sequence[str], *, purpose: Purpose.ValueType, flow: bytes, time: Time
    ) -> Computed:
        """See `embedkeep.embedder.answering.Computer`."""
        return await self.calls.compute(texts, purpose=purpose, flow=flow, time=time)


class UpstreamService(Answering):
    """Answers UNAVAILABLE until `start` has returned.

    Args:
        model: Named in Describe.
        upstream: Whom to ask.
        limits: Of queue and requests.
        metrics: None: own ones, which nobody reads.
        max_message_bytes: Requests are refused whose answer could be larger.
    """

    def __init__(
        self,
        model: ModelSpec,
        upstream: Upstream,
        limits: Batching | None = None,
        *,
        metrics: UpstreamMetrics | None = None,
        max_message_bytes: int = 64 << 20,
    ) -> None:
        super().__init__(
            limits or Batching(),
            max_message_bytes=max_message_bytes,
            waits_for="the upstream was not seen yet",
        )
        self._model = model
        self._upstream = upstream
        self.metrics = metrics or UpstreamMetrics(
            price_per_million_tokens=upstream.price_per_million_tokens
        )
        self._http = Http(upstream, key_of(upstream))
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look for the upstream until it answers, for ever if it must be.

        Raises:
            InvalidConfig: It can never be used as the config says.
        """
        self._http.key.read()
        await self._http.__aenter__()
        look = Look(
            self._http, self._upstream, self._model, metrics=self.metrics, clock=time.monotonic
        )
        seen = await self._until_seen(look)
        described = look.describe(seen)
        calls = Calls(self._asked(look, seen), limits=self._limits, metrics=self.metrics)
        self._task = asyncio.create_task(calls.run(), name="requests")
        self.computer = _Found(described, calls)
        self.metrics.running(
            backend=described.backend, device=described.device, dtype=described.dtype
        )
        log.info(
            "upstream found",
            url=look.names.url,
            model=look.names.model,
            fingerprint=described.fingerprint,
            dimensions=described.dimensions,
        )

    async def broken(self) -> NoReturn:
        """Wait until the upstream must not be used any more, for ever where it may.

        Raises:
            EmbedderUnavailable: It computes something else.
        """
        if self._task is None:
            raise RuntimeError("broken() before start()")
        await asyncio.shield(self._task)
        raise EmbedderUnavailable("requests ended")

    async def close(self) -> None:
        """Stop; calls that still wait are refused."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._http.__aexit__(None, None, None)

    async def _until_seen(self, look: Look) -> Seen:
        tries = 0
        while True:
            found = await look.first()
            if isinstance(found, Seen):
                return found
            tries += 1
            pause_s = _pause_s(found, tries)
            self.waits_for = str(refusal(found, look.names, retry_after_s=pause_s))
            log.warning("no upstream yet", why=self.waits_for, pause_s=round(pause_s, 3))
            await asyncio.sleep(pause_s)

    def _asked(self, look: Look, seen: Seen) -> Asked:
        upstream, terms, dimensions = self._upstream, seen.terms, seen.canaries.shape[1]
        readable = max(1, MOST_DECIMALS // dimensions) if seen.decimals else NO_LIMIT
        return Asked(
            http=self._http,
            wire=look.wire,
            looker=look,
            names=look.names,
            max_inputs=min(upstream.max_batch_inputs or terms.max_inputs, readable),
            max_tokens=upstream.max_batch_tokens or terms.max_tokens or NO_LIMIT,
            concurrent=upstream.max_concurrent_requests,
            dimensions=dimensions,
        )


def _pause_s(failure: Failure, tries: int) -> float:
    if failure.retry_after_s is not None:
        return failure.retry_after_s
    if failure.kind in NEEDS_SOMEBODY - {Kind.KEY}:
        return LOOK_AGAIN_S
    return backoff_s(tries, SystemRandom().random)
