"""Nodes beside primaries and replicas: what a failover costs, and what it brings back."""

import asyncio
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest

from support.cluster import NAMES, Nodes, Valkeys, running_nodes, valkey_cluster
from support.node import rows, until
from support.tap import Tap

pytestmark = pytest.mark.timeout(120)

ALL = (*NAMES, "a1", "b1", "c1")


@pytest.fixture
def valkeys(tmp_path: Path) -> Iterator[Valkeys]:
    """Three shards with a replica each, which the test may harm."""
    (tmp_path / "valkeys").mkdir()
    with valkey_cluster(tmp_path / "valkeys", replicas=1) as started:
        yield started


async def answered_from_valkey(nodes: Nodes, asked: str, texts: list[str]) -> bool:
    answer = await nodes[asked].embed(*texts, cache_control={"only_if_cached": True})
    return not answer.errors


async def test_every_node_answers_for_every_key(valkeys: Valkeys, tap: Tap, tmp_path: Path) -> None:
    async with running_nodes(valkeys, tap, tmp_path) as nodes:
        texts = [text for name in NAMES for text in nodes.texts(name, 3)]

        answers = [await nodes[name].embed(*texts) for name in ALL]

        assert {tuple(rows(answer)) for answer in answers} == {tuple(rows(answers[0]))}
        assert sorted(tap.texts) == sorted(texts), "each was computed once"
        for name in ("a", "a1"):
            await until(partial(counts, nodes, name, "valkey" if name == "a" else "replica"))


async def counts(nodes: Nodes, name: str, tier: str) -> bool:
    """All that the Valkey beside a node holds is of this tier."""
    held = {
        each: await nodes[name].metric("embedkeep_entries", tier=each)
        for each in ("valkey", "replica")
    }
    return held.pop(tier) >= 3 and not any(held.values())


async def test_entries_outlive_their_primary(valkeys: Valkeys, tap: Tap, tmp_path: Path) -> None:
    async with running_nodes(valkeys, tap, tmp_path) as nodes:
        texts = nodes.texts("b", 5)
        first = await nodes["a"].embed(*texts)
        await until(partial(answered_from_valkey, nodes, "c1", texts))

        valkeys["b"].kill()
        await asyncio.to_thread(valkeys.until, lambda: valkeys.is_primary("b1"))
        for name in ("c", "b", "b1"):  # none of which holds them in its memory
            await until(partial(answered_from_valkey, nodes, name, texts))
            assert rows(await nodes[name].embed(*texts)) == rows(first)

        assert tap.texts == texts
        valkeys["b"].start()


async def test_the_node_beside_the_new_primary_owns_what_its_shard_lacks(
    valkeys: Valkeys, tap: Tap, tmp_path: Path
) -> None:
    async with running_nodes(valkeys, tap, tmp_path) as nodes:
        valkeys["b"].kill()
        await asyncio.to_thread(valkeys.until, lambda: valkeys.is_primary("b1"))
        fresh = iter(nodes.texts("b", 500))
        await until(lambda: carries(nodes, "b1", next(fresh)))

        text = next(fresh)
        await asyncio.gather(*(nodes[name].embed(text) for name in ALL))

        assert tap.texts.count(text) == 1
        valkeys["b"].start()


async def carries(nodes: Nodes, owner: str, text: str) -> bool:
    """It is *owner* who computes *text* for all others."""
    before = await nodes[owner].metric("embedkeep_carried_inputs_total")
    for name in ALL:
        await nodes[name].embed(text, cache_control={"no_cache": True})
    carried = await nodes[owner].metric("embedkeep_carried_inputs_total") - before
    return carried == len(ALL) - 1


async def test_a_failover_costs_each_node_one_computation_at_most(
    valkeys: Valkeys, tap: Tap, tmp_path: Path
) -> None:
    """And nobody is refused, or waits longer than for that."""
    async with running_nodes(valkeys, tap, tmp_path) as nodes:
        texts = nodes.texts("b", 2000)
        asked_for = []

        async with asyncio.timeout(60):
            for number in itertools.count():
                if number == 5:
                    valkeys["b"].kill()
                if number % 10 == 0 and await asyncio.to_thread(valkeys.is_primary, "b1"):
                    break
                asked_for.append(text := texts[number])
                answers = await asyncio.gather(
                    *(nodes[name].embed(text, timeout_s=10.0) for name in ALL)
                )
                assert not any(answer.errors for answer in answers)

        assert max(map(tap.texts.count, asked_for)) <= len(ALL)
        valkeys["b"].start()


async def test_what_was_forgotten_is_not_answered_by_who_takes_over(
    valkeys: Valkeys, tap: Tap, tmp_path: Path
) -> None:
    async with running_nodes(valkeys, tap, tmp_path) as nodes:
        texts = nodes.texts("b", 4)
        await nodes["b"].embed(*texts)
        await until(partial(answered_from_valkey, nodes, "c", texts))
        old = {tap.computed[text][0] for text in texts}

        await nodes["a"].invalidate(*texts)
        valkeys["b"].kill()  # at once
        await asyncio.to_thread(valkeys.until, lambda: valkeys.is_primary("b1"))

        for name in ALL:
            await until(partial(answers_none_of, nodes, name, old, texts))
        valkeys["b"].start()


async def answers_none_of(nodes: Nodes, name: str, old: set[bytes], texts: list[str]) -> bool:
    answer = await nodes[name].embed(*texts, cache_control={"only_if_cached": True})
    return not old & set(rows(answer))


async def test_an_invalidation_that_a_replica_has_not_seen_says_so(
    valkeys: Valkeys, tap: Tap, tmp_path: Path
) -> None:
    """It could take over, and answer again what was withdrawn."""
    async with running_nodes(valkeys, tap, tmp_path) as nodes:
        texts = nodes.texts("b", 2)
        await nodes["a"].embed(*texts)
        valkeys["b"].run(
            ("ACL", "SETUSER", "default", "-psync", "-sync"), ("CLIENT", "KILL", "TYPE", "replica")
        )

        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await nodes["a"].invalidate(*texts)
        valkeys["b"].run(("ACL", "SETUSER", "default", "+psync", "+sync"))
        await asyncio.to_thread(valkeys.until, lambda: valkeys.is_copied("b1"))

        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "not yet in 1 of 3 replicas" in (refused.value.details() or "")
        await nodes["a"].invalidate(*texts)
