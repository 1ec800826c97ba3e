"""Three shards with a real model and real questions, while every process of them dies once.

Truth is what the embedder returns for a text alone; see test_system.py.
"""

import asyncio
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from embedkeep import AsyncClient
from embedkeep_operator.local.replay import sample
from embedkeep_operator.local.runner import Running
from support.load import PATIENCE_S, Load, alone
from support.node import sample as value
from support.node import scrape
from support.up import THREE_SHARDS, Place

pytestmark = pytest.mark.timeout(300)

TEXTS = 400
FRESH = 40
"""Texts that nobody asked before, for one look at what they cost."""
ROUNDS = 4
TRIES = 12
ANSWERS_BETWEEN_ACCIDENTS = 15


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "cache.yaml").write_text(THREE_SHARDS)
    return Place(tmp_path / "cache.yaml", tmp_path / "state")


@pytest.fixture
def fresh() -> Iterator[list[str]]:
    """Real questions, new ones each time."""
    questions = iter(sorted(set(sample())))
    return iter(lambda: [next(questions) for _ in range(FRESH)], [])


async def computed(running: Running) -> float:
    """Forward passes that the embedder has made."""
    text = await asyncio.to_thread(scrape, running.ports.embedder_metrics)
    return value(text, "embedkeep_embed_inputs_total", purpose="demand")


async def asked_at_once(running: Running, texts: Sequence[str], nodes: Sequence[int]) -> float:
    """Ask each of these nodes for all *texts* at once; forward passes that it cost."""
    before = await computed(running)
    async with asyncio.TaskGroup() as callers:
        for node in nodes:
            callers.create_task(_ask(running.ports.nodes[node].grpc, texts))
    return await computed(running) - before


async def _ask(port: int, texts: Sequence[str]) -> None:
    async with AsyncClient(f"127.0.0.1:{port}") as client:
        assert len(await client.embed(texts, timeout_s=PATIENCE_S)) == len(texts)


async def test_a_miss_at_three_nodes_costs_one_forward_pass(
    place: Place, fresh: Iterator[list[str]]
) -> None:
    """An owner that is busy for long is not waited for, as on a busy machine: hence some tries."""
    async with place.local() as running:
        costs = [await asked_at_once(running, next(fresh), (0, 1, 2))]
        while min(costs) > FRESH and len(costs) < TRIES:
            costs.append(await asked_at_once(running, next(fresh), (0, 1, 2)))

    assert min(costs) == FRESH
    assert max(costs) <= 3 * FRESH


async def test_while_an_owner_hangs_a_miss_costs_one_forward_pass_a_node_at_most(
    place: Place, fresh: Iterator[list[str]]
) -> None:
    async with place.local() as running:
        await asked_at_once(running, next(fresh), (0, 1, 2))
        for name in ("node-1", "valkey-1"):
            hung = running.pid(name)
            os.kill(hung, signal.SIGSTOP)
            costs = [await asked_at_once(running, next(fresh), (0, 2)) for _ in range(ROUNDS)]
            os.kill(hung, signal.SIGCONT)
            await running.ready(PATIENCE_S)

            assert min(costs) >= FRESH, "they were fresh"
            assert max(costs) <= 2 * FRESH


async def test_every_answer_is_the_models_while_every_process_dies_once(place: Place) -> None:
    async with place.local(wait_s=PATIENCE_S) as running:
        async with AsyncClient(running.address) as client, asyncio.TaskGroup() as callers:
            load = Load(client, sorted(set(sample()))[:TEXTS])
            tasks = [callers.create_task(load.ask(seed), name=f"caller {seed}") for seed in (1, 2)]
            await load.until_answered(ANSWERS_BETWEEN_ACCIDENTS)
            for name, child in running.processes.items():
                starts = child.starts
                os.kill(running.pid(name), signal.SIGSTOP)
                await asyncio.sleep(0)
                if name != "embedder":
                    await load.until_answered(ANSWERS_BETWEEN_ACCIDENTS)
                os.kill(running.pid(name), signal.SIGKILL)
                await running.supervisor.board.until(lambda c=child, n=starts: c.starts > n)  # type: ignore[misc]  # bound now
                await load.until_answered(ANSWERS_BETWEEN_ACCIDENTS)
                await running.ready(PATIENCE_S)
            for task in tasks:
                task.cancel()
        truth = await alone(running, {text for text, _ in load.answers})

    assert [text for text, row in load.answers if row != truth[text]] == []
    assert load.unclear() == []
