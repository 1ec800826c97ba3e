"""The frame of a process, around a service that answers when it may."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from embedkeep.config import ClientTls, Listen, ServerTls
from embedkeep.errors import Retryable
from embedkeep.refusal import Context, refuse
from embedkeep.serving import Endpoint, Health, serving
from embedkeep.tls import channel_credentials, channel_options
from embedkeep.v1 import embedder_pb2, embedder_pb2_grpc

WAIT_S = 30.0
"""For what must happen; a test that needs it all has failed."""

SERVICE = embedder_pb2.DESCRIPTOR.services_by_name["Embedder"].full_name

Status = health_pb2.HealthCheckResponse


class Slow(embedder_pb2_grpc.EmbedderServicer):
    """Answers when it may."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.entered: asyncio.Queue[None] = asyncio.Queue()
        self.error: Retryable | None = None

    async def Embed(  # noqa: N802 - the wire's name
        self, _request: embedder_pb2.ComputeRequest, _context: Context
    ) -> embedder_pb2.ComputeResponse:
        """Answer nothing."""
        return embedder_pb2.ComputeResponse()

    async def Detokenize(  # noqa: N802 - the wire's name
        self, _request: embedder_pb2.DetokenizeRequest, _context: Context
    ) -> embedder_pb2.DetokenizeResponse:
        """Answer nothing."""
        return embedder_pb2.DetokenizeResponse()

    async def Describe(  # noqa: N802 - the wire's name
        self, _request: embedder_pb2.DescribeRequest, context: Context
    ) -> embedder_pb2.DescribeResponse:
        """Wait for the gate."""
        if self.error is not None:
            await refuse(context, self.error)
        self.entered.put_nowait(None)
        await self.gate.wait()
        return embedder_pb2.DescribeResponse(fingerprint="slow")


class Served:
    """What listens, and where."""

    def __init__(self, slow: Slow) -> None:
        self.slow = slow
        self.health = Health([SERVICE])
        self.registry = CollectorRegistry()
        self.port = 0
        self.metrics_port = 0


def endpoint(
    *,
    tls: ServerTls | None = None,
    port: int = 0,
    metrics_port: int = 0,
    announce_file: Path | None = None,
    drain_s: float = WAIT_S,
) -> Endpoint:
    return Endpoint(
        grpc=Listen(port=port),
        metrics=Listen(port=metrics_port),
        tls=tls,
        max_message_bytes=1 << 20,
        announce_file=announce_file,
        drain_s=drain_s,
    )


@asynccontextmanager
async def listening(where: Endpoint) -> AsyncIterator[Served]:
    """Serve while the block runs."""
    served = Served(Slow())

    def register(server: grpc.aio.Server) -> None:
        embedder_pb2_grpc.add_EmbedderServicer_to_server(served.slow, server)

    async with serving(
        where, register=register, health=served.health, registry=served.registry
    ) as ports:
        served.port, served.metrics_port = ports
        yield served


@asynccontextmanager
async def channel_to(port: int, tls: ClientTls | None = None) -> AsyncIterator[grpc.aio.Channel]:
    """A channel of its own: no connection is shared with others."""
    target = f"127.0.0.1:{port}"
    options: list[tuple[str, str | int]] = [
        ("grpc.use_local_subchannel_pool", 1),
        *channel_options(tls),
    ]
    async with (
        grpc.aio.insecure_channel(target, options=options)
        if tls is None
        else grpc.aio.secure_channel(target, channel_credentials(tls), options=options)
    ) as channel:
        yield channel


async def health_of(channel: grpc.aio.Channel, service: str = "") -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)  # its types know no methods
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S)
    return int(answer.status)


async def describe(channel: grpc.aio.Channel) -> str:
    stub: embedder_pb2_grpc.EmbedderAsyncStub = embedder_pb2_grpc.EmbedderStub(channel)
    answer = await stub.Describe(embedder_pb2.DescribeRequest(), timeout=WAIT_S)
    return answer.fingerprint
