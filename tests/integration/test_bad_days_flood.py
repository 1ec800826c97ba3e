"""One tenant asks for more than the embedder can do: what that costs another is bounded."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from embedkeep.config import Batching, ModelSpec
from embedkeep.embedder.service import EmbedderService
from embedkeep.v1 import embedder_pb2_grpc
from support.backend import ArithmeticBackend, token
from support.node import Node, node_config, running, sources, until

FLOODING, VICTIM = "flooding-key", "victim-key"
MAX_CALLS = 64
BATCH = 4
FLOOD = 300


@dataclass(frozen=True, slots=True)
class Cache:
    """A node for two tenants, and the real embedder behind it, whose model waits at a gate."""

    node: Node
    backend: ArithmeticBackend
    embedder: EmbedderService

    async def ask(self, text: str, key: str) -> str:
        """Where the answer came from, or why there is none."""
        try:
            answer = await self.node.embed(text, api_key=key)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return sources(answer)[0]

    async def until_queued(self, texts: int) -> None:
        """Wait until so many wait for the model."""

        async def reached() -> bool:
            return self.queued() == texts

        await until(reached)

    def queued(self) -> float:
        """How many wait for the model."""
        gauge = self.embedder.metrics.queued.labels("demand")
        return sum(sample.value for metric in gauge.collect() for sample in metric.samples)

    async def entered(self) -> None:
        """Wait until a batch stands before the gate."""

        async def reached() -> bool:
            return not self.backend.entered.empty()

        await until(reached)

    def first_words(self) -> list[list[int]]:
        """Of each text that the model was given, batch by batch."""
        return [[row[0] for row in batch] for batch in self.backend.batches]


@pytest.fixture
async def cache(tmp_path: Path) -> AsyncIterator[Cache]:
    """Its model is shut."""
    (tmp_path / "flooding").write_text(FLOODING)
    (tmp_path / "victim").write_text(VICTIM)
    (tmp_path / "secret").write_bytes(b"s" * 32)
    async with embedding(ArithmeticBackend()) as (embedder, backend, port):
        config = node_config(
            tmp_path,
            port,
            cluster_secret_file=str(tmp_path / "secret"),
            tenants=[
                {"name": name, "api_key_file": str(tmp_path / name)}
                for name in ("flooding", "victim")
            ],
            limits={"max_concurrent_calls": MAX_CALLS},
        )
        async with running(config) as node:
            backend.gate.clear()
            backend.batches.clear()
            while not backend.entered.empty():
                backend.entered.get_nowait()
            yield Cache(node, backend, embedder)
            backend.gate.set()


@asynccontextmanager
async def embedding(
    backend: ArithmeticBackend,
) -> AsyncIterator[tuple[EmbedderService, ArithmeticBackend, int]]:
    """The real embedder around *backend*."""
    service = EmbedderService(ModelSpec(name="counted"), Batching(max_batch_inputs=BATCH))
    server = grpc.aio.server()
    embedder_pb2_grpc.add_EmbedderServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await service.start(lambda: backend)
    try:
        yield service, backend, port
    finally:
        backend.gate.set()
        await server.stop(None)
        await service.close()


async def test_a_tenants_text_is_in_the_next_batch_however_much_of_another_waits(
    cache: Cache,
) -> None:
    """It waits for the batch under way, and for one text of the other in its own."""
    async with asyncio.TaskGroup() as tasks:
        flood = await flooded(cache, tasks)

        victim = tasks.create_task(cache.ask("mine", VICTIM))
        await cache.until_queued(MAX_CALLS // 2)
        cache.backend.gate.set()

    under_way, next_one, *_ = cache.first_words()
    assert under_way == [token("flood")]
    assert token("mine") in next_one
    assert len(next_one) <= 2 < BATCH
    assert victim.result() == "embedder"
    assert [call.result() for call in flood].count("embedder") == MAX_CALLS // 2


async def flooded(cache: Cache, tasks: asyncio.TaskGroup) -> list[asyncio.Task[str]]:
    """More of one tenant than is let in: one text is with the model, the rest of its half waits."""
    calls = [tasks.create_task(cache.ask("flood 0", FLOODING))]
    await cache.entered()
    calls += [tasks.create_task(cache.ask(f"flood {n}", FLOODING)) for n in range(1, FLOOD)]
    await cache.until_queued(MAX_CALLS // 2 - 1)
    return calls
