"""A real node inside the test's process, and a thin way to call it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from embedkeep.config import NodeConfig
from embedkeep.node.main import serve
from embedkeep.tls import channel_credentials
from embedkeep.v1 import cache_pb2, cache_pb2_grpc
from support.tap import Tap, serve_tap
from support.valkey import Valkey

WAIT_S = 30.0
"""For what must happen; a test that needs it all has failed."""
PATIENT_S = 1.0
"""For Valkey's answers, where a test is not about slow ones."""


@dataclass(slots=True)
class Node:
    """A running node."""

    port: int
    http_port: int
    metrics_port: int
    channel: grpc.aio.Channel
    stub: "cache_pb2_grpc.EmbeddingCacheAsyncStub"
    stop: asyncio.Event
    """Set it to have the node drain."""

    async def invalidate(
        self, *texts: str, api_key: str | None = None, prompt: str = ""
    ) -> cache_pb2.InvalidateResponse:
        """One Invalidate call: of these texts, or of everything where none are given."""
        metadata = [("authorization", f"Bearer {api_key}")] if api_key else None
        scope = (
            cache_pb2.InvalidateRequest(inputs=cache_pb2.InputSet(inputs=texts, prompt=prompt))
            if texts
            else cache_pb2.InvalidateRequest(everything=True)
        )
        return await self.stub.Invalidate(scope, timeout=WAIT_S, metadata=metadata)

    async def embed(
        self,
        *texts: str,
        api_key: str | None = None,
        timeout_s: float = WAIT_S,
        **fields: object,
    ) -> cache_pb2.EmbedResponse:
        """One Embed call."""
        metadata = [("authorization", f"Bearer {api_key}")] if api_key else None
        request = cache_pb2.EmbedRequest(inputs=texts, **fields)  # type: ignore[arg-type]  # fields of the message
        return await self.stub.Embed(request, timeout=timeout_s, metadata=metadata)

    async def metric(self, name: str, **labels: str) -> float:
        """A sample of /metrics; 0: it is not there."""
        return sample(await asyncio.to_thread(scrape, self.metrics_port), name, **labels)

    async def info(self, api_key: str | None = None) -> cache_pb2.InfoResponse:
        """One Info call."""
        metadata = [("authorization", f"Bearer {api_key}")] if api_key else None
        return await self.stub.Info(cache_pb2.InfoRequest(), timeout=WAIT_S, metadata=metadata)

    async def until_tier(self, name: str, *, serving: bool, api_key: str | None = None) -> None:
        """Wait until a tier is in that state."""

        async def reached() -> bool:
            tiers = {tier.name: tier for tier in (await self.info(api_key)).tiers}
            return tiers[name].serving is serving

        await until(reached)


async def until(condition: Callable[[], Awaitable[bool]], *, every_s: float = 0.005) -> None:
    """Wait for what nobody announces: another process's state, or a counter."""
    async with asyncio.timeout(WAIT_S):
        while not await condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(every_s)


def scrape(port: int) -> str:
    """The text of /metrics."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT_S) as page:
        text: str = page.read().decode()
        return text


def sample(text: str, name: str, **labels: str) -> float:
    """One value of a /metrics text; 0: it is not there."""
    for family in text_string_to_metric_families(text):
        for found in family.samples:
            if found.name == name and labels.items() <= found.labels.items():
                return float(found.value)
    return 0.0


def rows(response: cache_pb2.EmbedResponse) -> list[bytes]:
    """Each row's bytes."""
    stride = len(response.vectors) // len(response.statuses)
    return [response.vectors[at : at + stride] for at in range(0, len(response.vectors), stride)]


def floats(response: cache_pb2.EmbedResponse) -> NDArray[np.float32]:
    """The rows as an array."""
    return np.frombuffer(response.vectors, "<f4").reshape(len(response.statuses), -1)


def sources(response: cache_pb2.EmbedResponse) -> Sequence[str]:
    """Each row's source, by its short name."""
    return [
        cache_pb2.Source.Name(each).removeprefix("SOURCE_").lower() for each in response.sources
    ]


def node_config(folder: Path, embedder_port: int, **fields: object) -> NodeConfig:
    """A node's config with what tests want by default; *fields* go on top."""
    return NodeConfig.model_validate(
        {
            "name": "docs",
            "model": {
                "name": "acme/counter",
                "prompts": {"query": "query: ", "document": ""},
                "source": {"path": "/nowhere"},
            },
            "embedder": {"address": f"127.0.0.1:{embedder_port}"},
            "http": {},
            "announce_file": str(folder / "node.json"),
            "epoch_poll_s": 0.05,
            "drain_s": 5.0,
            "l1_bytes": 8 << 20,
        }
        | fields
    )


@asynccontextmanager
async def tapped(
    tap: Tap, folder: Path, beside: Valkey | None = None, /, **fields: object
) -> AsyncIterator[Node]:
    """A running node whose embedder is *tap*; *fields* are of its config.

    Args:
        beside: Its Valkey, whose tier serves once the block runs. It is waited for longer than a
            node usually does: on a busy machine a hit shall not become a miss.
    """
    if beside is not None:
        fields["valkey"] = {"port": beside.port, "read_timeout_s": PATIENT_S}
    async with (
        serve_tap(tap) as port,
        running(node_config(folder, port, **fields)) as node,
    ):
        if beside is not None:
            await node.until_tier("valkey", serving=True)
        yield node


@asynccontextmanager
async def running(config: NodeConfig, *, ready: bool = True) -> AsyncIterator[Node]:
    """Run a node while the block runs, and see it end well."""
    assert config.announce_file is not None
    config.announce_file.unlink(missing_ok=True)
    stop = asyncio.Event()
    task = asyncio.create_task(serve(config, stop), name="node")
    try:

        async def ended() -> None:
            if task.done():
                task.result()

        async with found(config, ready=ready, check=ended) as node:
            node.stop = stop
            yield node
    finally:
        stop.set()
        await task


@asynccontextmanager
async def found(
    config: NodeConfig,
    *,
    ready: bool = True,
    check: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[Node]:
    """A way to a node that runs or is about to.

    Args:
        check: Called while it is waited for; raises where there is nothing to wait for.
    """
    file = config.announce_file
    assert file is not None

    async def announced() -> bool:
        if check is not None:
            await check()
        return file.exists()

    await until(announced)
    ports = json.loads(file.read_text())
    target = f"127.0.0.1:{ports['grpc']}"
    trusted = config.cluster.tls if config.cluster is not None else None
    async with (
        grpc.aio.insecure_channel(target)
        if trusted is None
        else grpc.aio.secure_channel(target, channel_credentials(trusted))
    ) as channel:
        if ready:
            await until_serving(channel)
        stub: cache_pb2_grpc.EmbeddingCacheAsyncStub = cache_pb2_grpc.EmbeddingCacheStub(channel)
        yield Node(ports["grpc"], ports["http"], ports["metrics"], channel, stub, asyncio.Event())


async def until_serving(channel: grpc.aio.Channel, *, wait_s: float = WAIT_S) -> None:
    """Wait for health to say SERVING."""
    stub = health_pb2_grpc.HealthStub(channel)
    async for state in stub.Watch(  # type: ignore[attr-defined]  # its types know only Check
        health_pb2.HealthCheckRequest(), timeout=wait_s, wait_for_ready=True
    ):
        if state.status == health_pb2.HealthCheckResponse.SERVING:
            return
