"""The first promise, over whatever order things happen in.

A tap at the model's edge returns other bits with every computation and remembers them all. Scripts
of concurrent requests, evictions, invalidations, lost and damaged records are run against a real
node whose L1 holds a handful of entries. Whatever it answers must be a vector that the tap has
returned for that very text, to that very tenant, in a call that began after the last invalidation
which had ended before the request.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from embedkeep.node.arena import OVERHEAD_BYTES
from embedkeep.v1 import cache_pb2
from support.node import Node, node_config, rows, running
from support.tap import DIMENSIONS, Tap, serve_tap
from support.valkey import Valkey

T = TypeVar("T")
TENANTS = ("red", "blue")
TEXTS = 8
L1_ENTRIES = 5


@dataclass(frozen=True, slots=True)
class Embed:
    """One request; leaves early where told."""

    tenant: str
    texts: tuple[int, ...]
    control: str = ""
    timeout_s: float = 20.0


@dataclass(frozen=True, slots=True)
class Forget:
    """One invalidation; of everything where no text is named."""

    tenant: str
    texts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Lose:
    """Valkey evicts everything, or one record is damaged."""

    damage: bool


tenants = st.sampled_from(TENANTS)
some_texts = st.lists(st.integers(0, TEXTS - 1), min_size=1, max_size=6).map(tuple)
embeds = st.builds(
    Embed,
    tenants,
    some_texts,
    st.sampled_from(["", "", "", "no_cache", "no_store", "only_if_cached"]),
    st.sampled_from([20.0, 20.0, 20.0, 0.02]),
)
forgets = st.builds(Forget, tenants, st.one_of(some_texts, st.just(())))
operations = st.one_of(embeds, embeds, embeds, forgets, st.builds(Lose, st.booleans()))
waves = st.lists(st.lists(operations, min_size=1, max_size=8), min_size=2, max_size=6)
delays = st.lists(st.sampled_from([0.0, 0.001, 0.004]), max_size=20)


@dataclass
class World:
    """A node, its parts, and a loop in a thread that runs them for all examples."""

    node: Node
    tap: Tap
    store: Valkey
    loop: asyncio.AbstractEventLoop
    flows: dict[str, bytes]
    example: int = 0
    forgotten: dict[tuple[str, str], int] = field(default_factory=dict)
    """By tenant and text: the last call that had begun when it was last forgotten."""

    def run(self, work: Coroutine[None, None, T]) -> T:
        """Run on the node's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(120)

    def text(self, number: int) -> str:
        """Texts of different examples differ."""
        return f"example {self.example} text {number}"

    async def play(self, script: list[list[Embed | Forget | Lose]]) -> None:
        """Run a script, wave after wave; all of a wave at once."""
        for wave in script:
            settled = dict(self.forgotten)
            await asyncio.gather(*(self.do(operation, settled) for operation in wave))

    async def do(
        self, operation: Embed | Forget | Lose, settled: dict[tuple[str, str], int]
    ) -> None:
        """Run one operation, and check its answer against what was *settled* before its wave."""
        match operation:
            case Embed():
                await self.embed(operation, settled)
            case Forget(tenant, numbers):
                before = len(self.tap.calls)
                texts = [self.text(number) for number in numbers]
                try:
                    await self.node.invalidate(*texts, api_key=tenant)
                except grpc.aio.AioRpcError as error:
                    # Valkey could not be told in time: nothing was promised.
                    assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017
                    return
                for text in texts or map(self.text, range(TEXTS)):
                    key = (tenant, text)
                    self.forgotten[key] = max(before, self.forgotten.get(key, 0))
            case Lose(damage):
                await asyncio.to_thread(self.lose, damage=damage)

    async def embed(self, asked: Embed, settled: dict[tuple[str, str], int]) -> None:
        """Ask, and check every row."""
        texts = [self.text(number) for number in asked.texts]
        control = cache_pb2.CacheControl(**({asked.control: True} if asked.control else {}))
        try:
            answer = await self.node.embed(
                *texts, api_key=asked.tenant, timeout_s=asked.timeout_s, cache_control=control
            )
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # noqa: PT017
            assert asked.timeout_s < 1
            return
        for text, row, status in zip(texts, rows(answer), answer.statuses, strict=True):
            if status:
                assert asked.control == "only_if_cached" or asked.timeout_s < 1
                continue
            assert row in self.tap.computed[text], "a vector of another text, or of none"
            number, flow = self.tap.born[row]
            assert flow == self.flows[asked.tenant], "a vector of another tenant"
            assert number > settled.get((asked.tenant, text), 0), "a vector that was forgotten"

    def lose(self, *, damage: bool) -> None:
        """What happens to a Valkey."""
        (keys,) = self.store.run(("KEYS", "*"))
        assert isinstance(keys, list)
        entries = sorted(key for key in keys if len(key) == 24)
        if damage and entries:
            self.store.run(("SETRANGE", entries[0], 36, b"\x7f"))
        elif entries:
            self.store.run(("DEL", *entries))


@asynccontextmanager
async def opened(folder: Path, store: Valkey) -> AsyncIterator[World]:
    """A node with two tenants and hardly any memory."""
    tap = Tap()
    (folder / "secret").write_bytes(b"s" * 32)
    for tenant in TENANTS:
        (folder / tenant).write_text(tenant)
    async with serve_tap(tap) as port:
        config = node_config(
            folder,
            port,
            valkey={"port": store.port},
            l1_bytes=L1_ENTRIES * (4 * DIMENSIONS + OVERHEAD_BYTES),
            cluster_secret_file=str(folder / "secret"),
            tenants=[{"name": tenant, "api_key_file": str(folder / tenant)} for tenant in TENANTS],
        )
        async with running(config) as node:
            await node.until_tier("valkey", serving=True, api_key="red")
            flows = {}
            for tenant in TENANTS:
                await node.embed(f"whose is {tenant}", api_key=tenant)
                flows[tenant] = tap.calls[-1].flow
            yield World(node, tap, store, asyncio.get_running_loop(), flows)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, valkey_process: Valkey) -> Iterator[World]:
    """One node for all examples; its loop runs in a thread, since hypothesis is no coroutine."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="world")
    thread.start()
    context = opened(tmp_path_factory.mktemp("world"), valkey_process)
    try:
        yield asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(60)
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@given(script=waves, slow=delays)
@settings(
    max_examples=150,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_every_answer_was_computed_for_that_text_and_tenant_and_is_not_forgotten(
    world: World, script: list[list[Embed | Forget | Lose]], slow: list[float]
) -> None:
    world.example += 1
    world.tap.delays_s = chain(slow, repeat(0.0))

    world.run(world.play(script))


def test_the_scripts_reach_every_tier_and_evict(world: World) -> None:
    """A property over requests that all miss would prove nothing: see where answers came from."""
    script: list[list[Embed | Forget | Lose]] = [
        [Embed("red", tuple(range(TEXTS)))],
        [Embed("red", (number,)) for number in range(TEXTS)],
        [Embed("red", (TEXTS - 1,)), Embed("blue", (0,)), Embed("blue", (0,))],
    ]
    world.example += 1

    world.run(world.play(script))

    for result in ("l1", "valkey", "embedder", "coalesced"):
        assert world.run(world.node.metric("embedkeep_lookups_total", result=result)) > 0
    assert world.run(world.node.metric("embedkeep_evictions_total", tier="l1")) > 0
