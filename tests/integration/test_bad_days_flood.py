"""One tenant asks for more than the embedder can do: what that costs another is bounded."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from embedkeep.config import Batching, ModelSpec
from embedkeep.embedder.backends import Vectors
from embedkeep.embedder.service import EmbedderService
from embedkeep.errors import RETRY_KEY
from embedkeep.v1 import embedder_pb2_grpc
from support.backend import ArithmeticBackend, token
from support.node import WAIT_S, Node, node_config, running, sources, until

FLOODING, VICTIM = "flooding-key", "victim-key"
MAX_CALLS = 64
BATCH = 4
FLOOD = 300
TOKEN_S = 0.001
"""What the slow model takes."""
LONG = "word " * 64
"""As many tokens."""


@dataclass(frozen=True, slots=True)
class Cache:
    """A node for two tenants, and the real embedder behind it, whose model waits at a gate."""

    node: Node
    backend: ArithmeticBackend
    embedder: EmbedderService

    async def ask(self, text: str, key: str, *, timeout_s: float = WAIT_S) -> str:
        """Where the answer came from, or why there is none."""
        try:
            answer = await self.node.embed(text, api_key=key, timeout_s=timeout_s)
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

    async def refused(self, text: str, key: str, *, timeout_s: float = WAIT_S) -> float:
        """Ask and be refused; when to come again, seconds."""
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await self.node.embed(text, api_key=key, timeout_s=timeout_s)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailers = dict(refused.value.trailing_metadata() or ())
        return int(trailers[RETRY_KEY]) / 1000

    def first_words(self) -> list[list[int]]:
        """Of each text that the model was given, batch by batch."""
        return [[row[0] for row in batch] for batch in self.backend.batches]


class SlowBackend(ArithmeticBackend):
    """Takes its time for each token, once it may."""

    def embed(self, rows: Sequence[Sequence[int]]) -> Vectors:
        time.sleep(TOKEN_S * sum(map(len, rows)))
        return super().embed(rows)


@pytest.fixture
async def cache(tmp_path: Path) -> AsyncIterator[Cache]:
    """Its model is shut."""
    async with cache_of(ArithmeticBackend(), tmp_path) as cache:
        yield cache


@pytest.fixture
async def slow(tmp_path: Path) -> AsyncIterator[Cache]:
    """Its model was seen to be slow, and is shut."""
    async with cache_of(SlowBackend(), tmp_path) as cache:
        yield cache


@asynccontextmanager
async def cache_of(model: ArithmeticBackend, tmp_path: Path) -> AsyncIterator[Cache]:
    """A cache in front of *model*, which is shut."""
    (tmp_path / "flooding").write_text(FLOODING)
    (tmp_path / "victim").write_text(VICTIM)
    (tmp_path / "secret").write_bytes(b"s" * 32)
    async with embedding(model) as (embedder, backend, port):
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


async def test_who_would_be_answered_too_late_is_refused_at_once_and_told_when_to_come_again(
    slow: Cache,
) -> None:
    """No batch ends meanwhile: what the refusal says was measured before."""
    async with asyncio.TaskGroup() as tasks:
        await under_way(slow, tasks)
        flood = [tasks.create_task(slow.ask(f"{n} {LONG}", FLOODING)) for n in range(25)]
        await slow.until_queued(len(flood))

        after_s = await slow.refused("late", FLOODING, timeout_s=1.0)

        patient = tasks.create_task(slow.ask("patient", FLOODING))
        other = tasks.create_task(slow.ask("other", VICTIM, timeout_s=5.0))
        await slow.until_queued(len(flood) + 2)
        slow.backend.gate.set()

    assert after_s > 25 * 64 * TOKEN_S
    assert {call.result() for call in (*flood, patient, other)} == {"embedder"}
    assert token("late") not in [word for batch in slow.first_words() for word in batch]


async def test_what_has_waited_beyond_its_callers_time_is_not_computed(cache: Cache) -> None:
    async with asyncio.TaskGroup() as tasks:
        await under_way(cache, tasks)

        assert await cache.ask("too late", VICTIM, timeout_s=0.2) == "DEADLINE_EXCEEDED"

        await cache.until_queued(0)
        cache.backend.gate.set()
        assert await cache.ask("in time", VICTIM) == "embedder"

    assert cache.first_words() == [[token("first")], [token("in")]]


async def under_way(cache: Cache, tasks: asyncio.TaskGroup) -> None:
    """A text is with the model, which is shut."""
    tasks.create_task(cache.ask("first", VICTIM))
    await cache.entered()
