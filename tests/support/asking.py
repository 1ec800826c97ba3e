"""The embedder's service around an upstream that a test controls."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from embedkeep.config import Batching, ModelSpec, Upstream
from embedkeep.embedder.upstream.service import UpstreamService
from embedkeep.errors import REASON_KEY, RETRY_KEY
from embedkeep.v1 import embedder_pb2 as pb
from embedkeep.v1 import embedder_pb2_grpc
from support.upstream import FakeUpstream, Misbehave, serve, vector_of

WAIT_S = 30.0
"""For what must happen; a test that needs it all has failed."""

MODEL = ModelSpec(name="acme/fake", revision="r1")


@dataclass
class Served:
    """The service on the wire, and what it asks."""

    fake: FakeUpstream
    service: UpstreamService
    port: int
    stub: "embedder_pb2_grpc.EmbedderAsyncStub"

    def embed(
        self,
        *texts: str,
        purpose: pb.Purpose.ValueType = pb.PURPOSE_DEMAND,
        flow: bytes = b"",
        timeout_s: float = WAIT_S,
    ) -> "grpc.aio.UnaryUnaryCall[pb.ComputeRequest, pb.ComputeResponse]":
        """One call, under way."""
        request = pb.ComputeRequest(inputs=texts, purpose=purpose, flow=flow)
        return self.stub.Embed(request, timeout=timeout_s)

    def metric(self, name: str, **labels: str) -> float:
        """A sample of its metrics; 0: it is not there."""
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0

    async def until(self, name: str, value: float, **labels: str) -> None:
        """Wait for a metric to have *value*."""
        await self._until(lambda: self.metric(name, **labels) == value)

    async def until_at_least(self, name: str, value: float, **labels: str) -> None:
        """Wait for a counter to have reached *value*."""
        await self._until(lambda: self.metric(name, **labels) >= value)

    async def _until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not holds():  # noqa: ASYNC110  # as said below
                await asyncio.sleep(0.001)  # a metric has no event


@asynccontextmanager
async def asking(
    fake: FakeUpstream, *, limits: Batching | None = None, **fields: object
) -> AsyncIterator[Served]:
    """*fake*, a service that has found it, and a way to the service."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serve(fake))
        upstream = {"url": fake.url, "protocol": fake.protocol, **fields}
        service = UpstreamService(MODEL, Upstream.model_validate(upstream), limits)
        stack.push_async_callback(service.close)
        server = grpc.aio.server()
        embedder_pb2_grpc.add_EmbedderServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, None)
        await service.start()
        fake.forget()
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        yield Served(fake, service, port, embedder_pb2_grpc.EmbedderStub(channel))


def vectors(answer: pb.ComputeResponse) -> NDArray[np.float32]:
    """Its rows."""
    return np.frombuffer(answer.vectors, "<f4").reshape(-1, answer.dimensions)


def expected(*texts: str) -> NDArray[np.float32]:
    """What the fake computes."""
    return np.array([vector_of(text) for text in texts], np.float32)


def errors(answer: pb.ComputeResponse) -> dict[int, str]:
    """Each failed row's class."""
    return {error.index: error.reason for error in answer.errors}


async def failure(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    """How *call* fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def reason(error: grpc.aio.AioRpcError) -> str:
    """Its class."""
    return str(dict(error.trailing_metadata() or ()).get(REASON_KEY))


def retry_s(error: grpc.aio.AioRpcError) -> float:
    """When a retry has a chance; negative: it does not say."""
    return int(str(dict(error.trailing_metadata() or ()).get(RETRY_KEY, "-1000"))) / 1000


def at(gate: asyncio.Event) -> Misbehave:
    """Answer once *gate* is open."""

    async def turn(_: list[str]) -> None:
        await gate.wait()

    return turn
