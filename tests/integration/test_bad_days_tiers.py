"""Valkey slow, flapping or silent, an embedder that lies: what is left answers, never wrongly."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import grpc
import pytest

from embedkeep.v1 import embedder_pb2
from support.line import Line, line_to
from support.node import Node, node_config, rows, running, sources, tapped, until
from support.tap import DIMENSIONS, Tap, serve_tap
from support.valkey import Valkey

SLOW_S = 0.02
"""Well within a read's time."""
HOPELESS_S = 0.3
"""Far beyond it."""
FLAPS = 12


@pytest.fixture
async def line(store: Valkey) -> AsyncIterator[Line]:
    """The line between the node and its Valkey."""
    async with line_to(store.port) as line:
        yield line


@pytest.fixture
async def far(tap: Tap, line: Line, tmp_path: Path) -> AsyncIterator[Node]:
    """A node without L1 whose Valkey is at the other end of the line."""
    config = {
        "valkey": {"port": line.port, "read_timeout_s": 0.1, "breaker_open_s": 0.05},
        "l1_bytes": 0,
    }
    async with serve_tap(tap) as port, running(node_config(tmp_path, port, **config)) as node:
        await node.until_tier("valkey", serving=True)
        yield node


async def hit(node: Node, *texts: str) -> None:
    """Ask until Valkey answers all of *texts*."""

    async def hits() -> bool:
        return set(sources(await node.embed(*texts))) == {"valkey"}

    await until(hits)


async def test_a_slow_valkey_still_answers_within_its_time(far: Node, line: Line) -> None:
    await hit(far, "a")

    line.delay_s = SLOW_S
    answers = [await far.embed("a") for _ in range(10)]

    assert [sources(answer) for answer in answers] == [["valkey"]] * 10


async def test_a_valkey_too_slow_to_help_is_left_alone_and_used_again_when_it_is_quick(
    far: Node, tap: Tap, line: Line
) -> None:
    await hit(far, "a")

    line.delay_s = HOPELESS_S
    answers = [await far.embed("a") for _ in range(5)]
    failures = await far.metric("embedkeep_valkey_failures_total", kind="timeout")
    line.delay_s = 0.0
    await hit(far, "a")

    assert "embedder" in {source for answer in answers for source in sources(answer)}
    assert failures >= 1
    assert {rows(answer)[0] for answer in answers} <= set(tap.computed["a"])


async def test_a_flapping_valkey_costs_no_request_and_no_truth(
    far: Node, tap: Tap, line: Line
) -> None:
    texts = [f"text {number}" for number in range(8)]
    answers: list[tuple[str, bytes]] = []
    flapping = asyncio.Event()

    async def ask(text: str) -> None:
        while not flapping.is_set():
            answers.append((text, rows(await far.embed(text))[0]))

    async with asyncio.TaskGroup() as callers:
        for text in texts:
            callers.create_task(ask(text))
        for flap in range(FLAPS):
            await far.until_tier("valkey", serving=True)
            if flap % 2:
                line.cut()
            else:
                line.hush()
                await far.until_tier("valkey", serving=False)
                line.flow()
                line.cut()
            seen = len(answers)
            await until(partial(_longer, answers, seen + len(texts)))
        flapping.set()
    await hit(far, *texts)

    assert [text for text, row in answers if row not in tap.computed[text]] == []


async def _longer(answers: list[tuple[str, bytes]], count: int) -> bool:
    return len(answers) >= count


async def test_a_full_valkey_takes_new_entries_in_place_of_old_ones(
    tap: Tap, tmp_path: Path
) -> None:
    """allkeys-lfu, as embedkeep sets it up: full is its usual state."""
    server = Valkey(tmp_path, "--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lfu")
    server.start()
    try:
        async with tapped(tap, tmp_path, server, l1_bytes=0) as node:
            number = itertools.count()

            async def evicting() -> bool:
                await node.embed(*(f"text {next(number)}" for _ in range(2_000)))
                return await node.metric("embedkeep_evictions_total", tier="valkey") > 0

            await until(evicting)
            await hit(node, "newest")
    finally:
        server.kill()

    assert tap.texts.count("newest") >= 1


LIES = {
    "a row too few": lambda honest: embedder_pb2.ComputeResponse(
        vectors=honest.vectors[: -4 * DIMENSIONS]
    ),
    "rows of another dimension": lambda honest: embedder_pb2.ComputeResponse(
        vectors=honest.vectors[: len(honest.vectors) // 2], dimensions=DIMENSIONS // 2
    ),
    "no rows at all": lambda _: embedder_pb2.ComputeResponse(),
    "NaN": lambda honest: embedder_pb2.ComputeResponse(
        vectors=b"\x00\x00\xc0\x7f" * (len(honest.vectors) // 4)
    ),
    "infinity": lambda honest: embedder_pb2.ComputeResponse(
        vectors=b"\x00\x00\x80\x7f" * (len(honest.vectors) // 4)
    ),
    "too few token counts": lambda _: embedder_pb2.ComputeResponse(tokens=[1]),
}
"""What is put over an honest answer of two rows."""


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
async def test_what_an_embedder_must_not_answer_is_never_stored_and_the_next_honest_one_is(
    tap: Tap, store: Valkey, tmp_path: Path, lie: object
) -> None:
    async with tapped(tap, tmp_path, store) as node:
        tap.lie = lie  # type: ignore[assignment]  # the table's values are such functions

        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await node.embed("a", "b")
        stored = await node.embed("a", "b", cache_control={"only_if_cached": True})
        tap.lie = None
        honest = await node.embed("a", "b")
        again = await node.embed("a", "b")

    assert refused.value.code() is grpc.StatusCode.INTERNAL
    assert dict(refused.value.trailing_metadata() or ())["embedkeep-reason"] == "InvalidResponse"
    assert list(stored.statuses) == [grpc.StatusCode.NOT_FOUND.value[0]] * 2
    assert sources(honest) == ["embedder"] * 2
    assert rows(again) == rows(honest) == [tap.computed[text][-1] for text in "ab"]
