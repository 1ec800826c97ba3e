"""What a plan names is computed ahead of time: once, within a budget, and behind everybody."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from embedkeep.history import Asked, plan_name
from embedkeep.plans import Plan, Planned
from embedkeep.v1 import embedder_pb2
from support.cluster import Valkeys, running_nodes
from support.histories import FAST, fence_of, tag_of, tenants, write_plan
from support.node import Node, rows, sources, tapped, until
from support.tap import DEVICE_NS, Tap
from support.valkey import Valkey, valkey

WARMUP = {"poll_s": 0.02, "recheck_s": 0.05}
WARMING: dict[str, Any] = {"warmup": WARMUP, "history": FAST}
"""Fields of a node. Without a history it would delete plans, whose texts are not to be kept."""
DEVICE_S = DEVICE_NS / 1e9


def a_plan(*texts: str, server: Valkey, tenant: str = "", prompt: str = "") -> Plan:
    """A plan that nothing was withdrawn since."""
    return Plan(
        made_at_ms=time.time_ns() // 1_000_000,
        expires_at_s=int(time.time()) + 3600,
        fence=fence_of(server, tenant),
        predictor="popularity",
        horizon_s=3600.0,
        texts=tuple(Planned(asked=Asked(prompt=prompt, text=text), worth=1.0) for text in texts),
    )


def planned(store: Valkey, *texts: str, tenant: str = "", prompt: str = "") -> None:
    """Write such a plan."""
    write_plan(store, a_plan(*texts, server=store, tenant=tenant, prompt=prompt), tenant)


@pytest.fixture
async def warming(tap: Tap, store: Valkey, tmp_path: Path) -> AsyncIterator[Node]:
    """A node that carries plans out."""
    async with tapped(tap, tmp_path, store, **WARMING) as started:
        yield started


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey to be harmed."""
    (tmp_path / "own").mkdir()
    with valkey(tmp_path / "own") as server:
        yield server


async def until_warmed(node: Node, count: int, result: str = "stored") -> None:
    async def reached() -> bool:
        return await node.metric("embedkeep_warmed_total", result=result) >= count

    await until(reached)


async def until_rechecked(node: Node, store: Valkey, *texts: str) -> None:
    """Wait until the node has read a newer plan and been through it."""
    planned(store, *texts, "the last")
    last = len((*texts, "the last"))

    async def read() -> bool:
        return await node.metric("embedkeep_plan_texts") == last

    await until(read)


async def test_what_a_plan_names_is_there_before_it_is_asked_for(
    warming: Node, tap: Tap, store: Valkey
) -> None:
    planned(store, "a", "b")
    await until_warmed(warming, 2)
    answer = await warming.embed("a", "b")

    assert sources(answer) == ["valkey", "valkey"]
    assert rows(answer) == [tap.computed["a"][0], tap.computed["b"][0]]
    assert Counter(tap.texts) == {"a": 1, "b": 1}


async def test_it_is_computed_as_warming_and_as_its_tenants_work(
    warming: Node, tap: Tap, store: Valkey
) -> None:
    planned(store, "a", "b", "c")
    await until_warmed(warming, 3)

    assert {call.purpose for call in tap.calls} == {embedder_pb2.PURPOSE_WARM}
    assert {call.flow for call in tap.calls} == {tag_of()}
    assert await warming.metric("embedkeep_warm_device_seconds_total") == pytest.approx(
        3 * DEVICE_S
    )


async def test_of_what_was_warmed_the_first_hit_alone_counts_as_saved(
    warming: Node, store: Valkey
) -> None:
    planned(store, "asked", "never asked")
    await until_warmed(warming, 2)
    for _ in range(3):
        await warming.embed("asked", "computed on demand")

    async def counted() -> bool:
        return await warming.metric("embedkeep_warmed_first_hits_total") > 0

    await until(counted)
    assert await warming.metric("embedkeep_warmed_first_hits_total") == 1
    saved = await warming.metric("embedkeep_warmed_saved_device_seconds_total")
    assert saved == pytest.approx(DEVICE_S)


async def test_on_several_nodes_a_first_hit_counts_once(
    tap: Tap, store: Valkey, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    async with (
        tapped(tap, tmp_path, store, **WARMING) as node,
        tapped(tap, tmp_path / "other", store, history=FAST, warmup={"poll_s": 3600.0}) as other,
    ):
        planned(store, "asked")
        await until_warmed(node, 1)
        await asyncio.gather(*(each.embed("asked") for each in (node, other)))

        async def credited() -> float:
            hits = [await n.metric("embedkeep_warmed_first_hits_total") for n in (node, other)]
            return sum(hits)

        async def counted() -> bool:
            return await credited() > 0 and store.run(("KEYS", "embedkeep:warmed:*")) == [[]]

        await until(counted)
        assert await credited() == 1


async def test_what_is_cached_already_is_not_computed_again(
    warming: Node, tap: Tap, store: Valkey
) -> None:
    await warming.embed("a")
    planned(store, "a", "b")
    await until_warmed(warming, 1)

    assert Counter(tap.texts) == {"a": 1, "b": 1}


async def test_prompts_that_nobody_can_name_any_more_are_not_warmed(
    warming: Node, tap: Tap, store: Valkey
) -> None:
    planned(store, "a", prompt="an old prompt: ")
    await until_rechecked(warming, store)
    await until_warmed(warming, 1)

    assert tap.texts == ["the last"]


async def test_the_budget_holds_and_what_is_tuned_stays_within_its_bounds(
    tap: Tap, store: Valkey, tmp_path: Path
) -> None:
    file = tmp_path / "tuned.json"
    budget = {"initial": 5.5 * DEVICE_S, "min": 0.0, "max": 9.5 * DEVICE_S}
    texts = [f"text {number}" for number in range(100)]
    told = WARMING | {"warmup": WARMUP | {"budget": budget}, "tuned_file": str(file)}
    async with tapped(tap, tmp_path, store, **told) as node:
        planned(store, *texts)
        await until_warmed(node, 5)
        await until_rechecked(node, store, *texts)
        assert len(tap.texts) == 5

        file.write_text(json.dumps({"warmup_budget": 1e9}))
        await until_warmed(node, 9)
        await until_rechecked(node, store, *texts, "more")
        assert len(tap.texts) == 9
        assert await node.metric("embedkeep_warmup_budget_device_seconds") == budget["max"]


async def test_nodes_share_the_budget(tap: Tap, store: Valkey, tmp_path: Path) -> None:
    budget = {"initial": 12.0, "max": 12.0}
    told = WARMING | {"warmup": WARMUP | {"budget": budget, "shares": 3}}
    async with tapped(tap, tmp_path, store, **told) as node:
        assert await node.metric("embedkeep_warmup_budget_device_seconds") == 4


async def test_it_waits_while_the_embedder_is_busy(warming: Node, tap: Tap, store: Valkey) -> None:
    tap.overloaded = True
    planned(store, "a")
    await until_rechecked(warming, store, "a")
    assert tap.texts == []

    tap.overloaded = False
    await until_warmed(warming, 2)


async def test_people_are_answered_while_a_plan_is_carried_out(
    warming: Node, tap: Tap, store: Valkey
) -> None:
    """Nobody joins a computation of the plan's, nor waits for it."""
    tap.gate.clear()
    planned(store, "a")
    warm = await tap.entered.get()
    asked = asyncio.create_task(warming.embed("a"))
    demand = await tap.entered.get()
    tap.gate.set()

    assert (warm.purpose, demand.purpose) == (
        embedder_pb2.PURPOSE_WARM,
        embedder_pb2.PURPOSE_DEMAND,
    )
    assert sources(await asked) == ["embedder"]


@pytest.mark.parametrize("texts", [("text 0",), ()], ids=["this text", "everything"])
async def test_what_is_withdrawn_is_neither_stored_nor_is_its_plan_carried_on(
    warming: Node, tap: Tap, store: Valkey, texts: tuple[str, ...]
) -> None:
    tap.gate.clear()
    planned(store, *(f"text {number}" for number in range(40)))
    assert (await tap.entered.get()).texts == ["text 0"]
    await warming.invalidate(*texts)
    tap.gate.set()
    await until_warmed(warming, 1, "withdrawn")
    await until_rechecked(warming, store)
    await until_warmed(warming, 1)

    assert tap.texts == ["text 0", "the last"]
    assert sources(await warming.embed("text 0")) == ["embedder"]


async def test_an_invalidation_deletes_the_plan_whose_texts_it_may_name(
    warming: Node, store: Valkey
) -> None:
    planned(store, "a")
    await warming.invalidate("a")

    assert store.run(("EXISTS", plan_name(tag_of()))) == [0]


async def test_another_model_is_warmed_from_the_same_plan(store: Valkey, tmp_path: Path) -> None:
    planned(store, "a", "b")
    for name in ("one", "two"):
        tap = Tap(fingerprint=name)
        async with tapped(tap, tmp_path, store, **WARMING, agreement=name) as node:
            await until_warmed(node, 2)
            assert sources(await node.embed("a", "b")) == ["valkey", "valkey"]
        assert Counter(tap.texts) == {"a": 1, "b": 1}


async def test_a_valkey_that_came_back_empty_is_warmed_from_the_plan_that_the_node_holds(
    tap: Tap, own: Valkey, tmp_path: Path
) -> None:
    """Plan and history went with it; the node's memory of entries is empty, too."""
    async with tapped(tap, tmp_path, own, **WARMING, l1_bytes=0) as node:
        planned(own, "a", "b")
        await until_warmed(node, 2)
        own.kill()
        own.start()
        await until_warmed(node, 4)
        answer = await node.embed("a", "b")

    assert sources(answer) == ["valkey", "valkey"]
    assert rows(answer) == [tap.computed["a"][1], tap.computed["b"][1]]


async def test_entries_that_valkey_has_evicted_are_warmed_again(
    tap: Tap, store: Valkey, tmp_path: Path
) -> None:
    async with tapped(tap, tmp_path, store, **WARMING, l1_bytes=0) as node:
        planned(store, "a")
        await until_warmed(node, 1)
        (keys,) = store.run(("KEYS", "*"))
        assert isinstance(keys, list)
        store.run(*(("DEL", key) for key in keys if not key.startswith(b"embedkeep")))

        await until_warmed(node, 2)


async def test_tenants_never_meet_in_plans(tap: Tap, store: Valkey, tmp_path: Path) -> None:
    """What is warmed for one is computed for the other when it asks."""
    fields = tenants(tmp_path) | {"valkey": {"port": store.port, "read_timeout_s": 5.0}}
    async with tapped(tap, tmp_path, **WARMING, **fields) as node:
        await node.until_tier("valkey", serving=True, api_key="key-a")
        planned(store, "text", tenant="a")
        await until_warmed(node, 1)

        assert sources(await node.embed("text", api_key="key-b")) == ["embedder"]
        assert sources(await node.embed("text", api_key="key-a")) == ["valkey"]
        assert [call.flow for call in tap.calls] == [tag_of("a"), tag_of("b")]


async def test_tenants_take_turns_at_a_small_budget(
    tap: Tap, store: Valkey, tmp_path: Path
) -> None:
    fields = tenants(tmp_path) | {"valkey": {"port": store.port, "read_timeout_s": 5.0}}
    for tenant in ("a", "b"):
        planned(store, *(f"text {number}" for number in range(64)), tenant=tenant)
    budget = {"initial": 64.5 * DEVICE_S}
    async with tapped(
        tap, tmp_path, **WARMING | {"warmup": WARMUP | {"budget": budget}}, **fields
    ) as node:
        await until_warmed(node, 64)

    shares = Counter(call.flow for call in tap.calls for _ in call.texts)
    assert shares.keys() == {tag_of("a"), tag_of("b")}
    assert min(shares.values()) >= 31


async def test_a_plan_that_is_damaged_is_counted_and_not_carried_out(
    warming: Node, tap: Tap, store: Valkey
) -> None:
    planned(store, "a")
    await until_warmed(warming, 1)
    (whole,) = store.run(("GET", plan_name(tag_of())))
    assert isinstance(whole, bytes)
    store.run(("SET", plan_name(tag_of()), b"EP\x01\x00" + bytes(60)))

    async def counted() -> bool:
        return await warming.metric("embedkeep_corrupt_plans_total") == 1

    await until(counted)
    planned(store, "b")
    await until_warmed(warming, 2)
    assert tap.texts == ["a", "b"]


async def test_a_text_that_the_model_cannot_embed_is_not_tried_again(
    warming: Node, tap: Tap, store: Valkey
) -> None:
    tap.broken.add("bad")
    planned(store, "bad", "good")
    await until_warmed(warming, 1, "failed")
    await until_warmed(warming, 1)
    calls = len(tap.calls)
    store.run(*(("DEL", key) for key in _entries(store)))
    await until_warmed(warming, 2)

    assert Counter(tap.texts) == {"bad": 1, "good": 2}
    assert len(tap.calls) == calls + 1


def _entries(store: Valkey) -> list[bytes]:
    (keys,) = store.run(("KEYS", "*"))
    assert isinstance(keys, list)
    return [key for key in keys if not key.startswith(b"embedkeep")]


async def test_among_several_nodes_each_warms_what_its_own_valkey_holds(
    whole: Valkeys, tap: Tap, tmp_path: Path
) -> None:
    texts = [f"text {number}" for number in range(60)]
    home = whole[whole.where(plan_name(tag_of()))]
    async with running_nodes(whole, tap, tmp_path, **WARMING) as nodes:
        planned(home, *texts)
        shares = {name: nodes.texts(name, 60) for name in whole.servers}
        for name, own in shares.items():
            await until_warmed(nodes[name], len(set(own) & set(texts)))
        answers = [await nodes[name].embed(*texts) for name in whole.servers]

    assert Counter(tap.texts) == dict.fromkeys(texts, 1)
    assert all(set(sources(answer)) == {"valkey"} for answer in answers)
