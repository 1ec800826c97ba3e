"""The node beside a key's owner dies or hangs, before it was asked and while it computes."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from embedkeep.v1 import cache_pb2
from support.cluster import NAMES, PATIENT, Nodes, Valkeys, running_nodes, valkey_cluster
from support.node import rows, sources, until
from support.tap import Tap

pytestmark = pytest.mark.timeout(120)

DEADLINE_S = 20.0
"""Of each call: much longer than a node needs to see that a peer is gone."""
WATCHFUL = {"first_sign_s": 5.0, "silence_s": 0.5}
"""Takes a peer that hangs for dead, and no busy one."""


@pytest.fixture(scope="module")
def valkeys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkeys]:
    with valkey_cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@asynccontextmanager
async def processes(
    valkeys: Valkeys, tap: Tap, folder: Path, **cluster: float
) -> AsyncIterator[Nodes]:
    for name in NAMES:
        valkeys[name].run(("FLUSHALL",))
    async with running_nodes(valkeys, tap, folder, cluster=cluster, processes=True) as nodes:
        yield nodes


async def ends(nodes: Nodes, name: str, outcome: str) -> bool:
    return outcome in await nodes.hops(name)


async def left_alone(nodes: Nodes, name: str, count: int) -> bool:
    return await nodes[name].metric("embedkeep_breaker_open", tier="peers") == count


@pytest.mark.parametrize("accident", ["killed", "hanging"])
async def test_an_owner_that_is_gone_is_computed_for_by_whoever_was_asked(
    valkeys: Valkeys, tap: Tap, tmp_path: Path, accident: str
) -> None:
    async with processes(valkeys, tap, tmp_path) as nodes:
        texts = nodes.texts("b", 8)
        (nodes.kill if accident == "killed" else nodes.pause)("b")

        answers = [await nodes["a"].embed(text, timeout_s=DEADLINE_S) for text in texts]
        await until(lambda: left_alone(nodes, "a", 1))
        hops = await nodes.hops("a")
        more = nodes.texts("b", 12)[8:]
        answers += [await nodes["a"].embed(text, timeout_s=DEADLINE_S) for text in more]

        assert await nodes.hops("a") == hops  # it is asked no more
        for text, answer in zip([*texts, *more], answers, strict=True):
            assert sources(answer) == ["embedder"]
            assert rows(answer) == tap.computed[text]
        # Its Valkey lives, and was given what others have computed.
        await until(lambda: held(nodes, "c", [*texts, *more]))


async def held(nodes: Nodes, name: str, texts: list[str]) -> bool:
    answer = await nodes[name].embed(*texts, cache_control={"only_if_cached": True})
    return set(sources(answer)) <= {"valkey", "l1"}


@pytest.mark.parametrize("accident", ["killed", "hanging"])
async def test_an_owner_that_goes_while_it_computes_costs_one_more_pass_a_node(
    valkeys: Valkeys, tap: Tap, tmp_path: Path, accident: str
) -> None:
    async with processes(valkeys, tap, tmp_path, **WATCHFUL) as nodes:
        (text,) = nodes.texts("b", 1)
        tap.gate.clear()
        calls = [
            asyncio.create_task(nodes[name].embed(text, timeout_s=DEADLINE_S))
            for name in ("a", "c")
            for _ in range(10)
        ]
        await tap.entered.get()
        for name in ("a", "c"):
            await until(partial(waits, nodes, name))

        (nodes.kill if accident == "killed" else nodes.pause)("b")
        for _ in ("a", "c"):
            await tap.entered.get()
        tap.gate.set()
        answers = await asyncio.gather(*calls)

        assert {rows(answer)[0] for answer in answers} <= set(tap.computed[text])
        assert tap.texts == [text] * 3
        told = [source for answer in answers for source in sources(answer)]
        assert told.count("embedder") == 2
        outcome = "lost" if accident == "killed" else "silent"
        assert [await nodes.hops(name) for name in ("a", "c")] == [{outcome: 1}] * 2


async def waits(nodes: Nodes, name: str) -> bool:
    return await nodes[name].metric("embedkeep_pending_inputs") == 1


async def test_an_owner_that_goes_on_again_is_asked_again(
    valkeys: Valkeys, tap: Tap, tmp_path: Path
) -> None:
    async with processes(valkeys, tap, tmp_path, **WATCHFUL) as nodes:
        nodes.pause("b")
        await until(lambda: left_alone(nodes, "a", 1))
        nodes.resume("b")
        await nodes.settled()
        (text,) = nodes.texts("b", 1)

        answer = await nodes["a"].embed(text)

        assert sources(answer) == ["embedder"]
        assert await nodes.hops("a") == {"answered": 1}


async def test_a_deadline_holds_while_an_owner_hangs(
    valkeys: Valkeys, tap: Tap, tmp_path: Path
) -> None:
    """The node waits for a peer, and not longer than its caller does."""
    async with processes(valkeys, tap, tmp_path, **PATIENT) as nodes:
        (text,) = nodes.texts("b", 1)
        nodes.pause("b")
        stream = nodes["a"].stub.EmbedStream(timeout=DEADLINE_S)
        await stream.write(
            cache_pb2.EmbedStreamRequest(
                id=1, timeout_ms=300, request=cache_pb2.EmbedRequest(inputs=[text])
            )
        )

        answer = await stream.read()
        stream.cancel()

        assert isinstance(answer, cache_pb2.EmbedStreamResponse)
        assert answer.error.reason == "DeadlineExceeded"
        assert tap.texts == []
