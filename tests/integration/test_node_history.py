"""What people ask for is kept where that is wanted, for nobody else, and in nobody's way."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from embedkeep.v1 import cache_pb2
from support.cluster import Valkeys, running_nodes
from support.histories import FAST, asked, names_of, tenants
from support.node import Node, rows, scrape, tapped, until
from support.tap import Tap
from support.valkey import Valkey, valkey


@pytest.fixture
async def keeping(tap: Tap, store: Valkey, tmp_path: Path) -> AsyncIterator[Node]:
    """A node that keeps a history."""
    async with tapped(tap, tmp_path, store, history=FAST) as started:
        yield started


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey to be harmed."""
    (tmp_path / "own").mkdir()
    with valkey(tmp_path / "own") as server:
        yield server


@pytest.fixture
async def shared(tap: Tap, store: Valkey, tmp_path: Path) -> AsyncIterator[Node]:
    """A node with tenants a and b, whose keys are key-a and key-b, that keeps histories."""
    fields = tenants(tmp_path) | {"valkey": {"port": store.port, "read_timeout_s": 5.0}}
    async with tapped(tap, tmp_path, history=FAST, **fields) as started:
        await started.until_tier("valkey", serving=True, api_key="key-a")
        yield started


async def until_asked(store: Valkey, expected: dict[str, int], tenant: str = "") -> None:
    async def there() -> bool:
        return await asyncio.to_thread(asked, store, tenant) == expected

    await until(there)


async def noted(node: Node, result: str) -> float:
    return await node.metric("embedkeep_history_asks_total", result=result)


async def until_noted(node: Node, result: str, count: float) -> None:
    async def counted() -> bool:
        return await noted(node, result) >= count

    await until(counted)


async def test_what_was_asked_for_is_counted_by_prompt_and_text(
    keeping: Node, store: Valkey
) -> None:
    await keeping.embed("a", "b", "a")
    await keeping.embed("a", prompt="query")
    await keeping.embed("b")

    await until_asked(store, {"a": 2, "b": 2, "query: a": 1})


async def test_nothing_is_kept_unless_that_was_asked_for(
    tap: Tap, store: Valkey, tmp_path: Path
) -> None:
    async with tapped(tap, tmp_path, store) as node:
        await node.embed("a")
        await until_noted(node, "written", 0)

    (found,) = store.run(("KEYS", "*history*"))
    buckets = [name for name in found if name.count(b":") > 2]  # type: ignore[attr-defined]  # a list
    assert buckets == []
    assert asked(store) == {}


@pytest.mark.parametrize(
    "fields",
    [
        {"cache_control": cache_pb2.CacheControl(no_store=True)},
        {"cache_control": cache_pb2.CacheControl(no_cache=True)},
        {"priority": cache_pb2.PRIORITY_BULK},
        {"priority": cache_pb2.PRIORITY_BACKGROUND},
    ],
    ids=["no_store", "no_cache", "bulk", "background"],
)
async def test_what_must_not_be_kept_and_what_jobs_ask_for_is_not(
    keeping: Node, store: Valkey, fields: dict[str, Any]
) -> None:
    await keeping.embed("a", **fields)
    await keeping.embed("b")

    await until_asked(store, {"b": 1})


async def test_texts_that_cannot_be_embedded_or_are_long_are_not_kept(
    tap: Tap, store: Valkey, tmp_path: Path
) -> None:
    async with tapped(tap, tmp_path, store, history=FAST | {"max_text_bytes": 10}) as node:
        await node.embed("a", "", "b" * 11)

        await until_asked(store, {"a": 1})
        assert await noted(node, "too_long") == 1


async def test_what_is_only_asked_of_the_cache_is_kept_too(keeping: Node, store: Valkey) -> None:
    """It would have been answered, had it been warmed."""
    await keeping.embed("known")
    control = cache_pb2.CacheControl(only_if_cached=True)
    await keeping.embed("known", "unknown", cache_control=control)

    await until_asked(store, {"known": 2, "unknown": 1})


async def test_tenants_never_meet_in_histories(shared: Node, store: Valkey) -> None:
    await shared.embed("of a", "of both", api_key="key-a")
    await shared.embed("of both", api_key="key-b")

    await until_asked(store, {"of a": 1, "of both": 1}, "a")
    await until_asked(store, {"of both": 1}, "b")
    await shared.invalidate("of both", api_key="key-a")

    assert asked(store, "a") == {"of a": 1}
    assert asked(store, "b") == {"of both": 1}
    assert not set(names_of("a")) & set(names_of("b"))


async def test_a_forgotten_text_is_in_no_history(keeping: Node, store: Valkey) -> None:
    await keeping.embed("goes", "stays")
    await until_asked(store, {"goes": 1, "stays": 1})

    await keeping.invalidate("goes")

    assert asked(store) == {"stays": 1}


async def test_a_forgotten_text_that_waits_to_be_written_never_is(
    tap: Tap, store: Valkey, tmp_path: Path
) -> None:
    async with tapped(tap, tmp_path, store, history={"flush_s": 0.2}) as node:
        await node.embed("goes")
        await node.invalidate("goes")
        await node.embed("later")

        await until_asked(store, {"later": 1})
        assert await noted(node, "withdrawn") == 1


async def test_a_new_epoch_has_an_empty_history(keeping: Node, store: Valkey) -> None:
    await keeping.embed("a")
    await until_asked(store, {"a": 1})

    await keeping.invalidate()

    assert asked(store) == {}


@pytest.mark.parametrize("texts", [("goes",), ()], ids=["this text", "everything"])
async def test_what_another_node_heard_before_is_not_written_after_it_was_forgotten(
    tap: Tap, store: Valkey, tmp_path: Path, texts: tuple[str, ...]
) -> None:
    """A node that has not heard of it yet writes, and is refused."""
    (tmp_path / "other").mkdir()
    async with (
        tapped(tap, tmp_path, store, history=FAST) as node,
        tapped(
            tap, tmp_path / "other", store, history={"flush_s": 1.0}, epoch_poll_s=30.0
        ) as other,
    ):
        await other.embed("goes")
        await node.invalidate(*texts)

        await until_noted(other, "withdrawn", 1)
        assert asked(store) == {}


async def test_answers_do_not_wait_for_a_valkey_that_hangs_while_a_history_is_kept(
    tap: Tap, own: Valkey, tmp_path: Path
) -> None:
    """The embedder answers within what reads may wait, far below what a hanging write takes."""
    async with tapped(tap, tmp_path, history=FAST, valkey={"port": own.port}) as node:
        await node.until_tier("valkey", serving=True)
        own.pause()
        try:
            for number in range(20):
                answer = await node.embed(f"text {number}", timeout_s=1.0)
                assert rows(answer) == tap.computed[f"text {number}"]
        finally:
            own.resume()
        await until_noted(node, "lost", 1)


async def test_a_dead_valkey_drops_history_and_says_so(
    tap: Tap, own: Valkey, tmp_path: Path
) -> None:
    async with tapped(tap, tmp_path, own, history=FAST) as node:
        own.kill()
        await node.embed("a", "b")

        await until_noted(node, "lost", 2)
        assert await node.metric("embedkeep_history_waiting_bytes") == 0


async def test_what_waits_to_be_written_is_bounded(tap: Tap, own: Valkey, tmp_path: Path) -> None:
    bound = 10_000
    told = {"flush_s": 3600.0, "max_waiting_bytes": bound}
    async with tapped(tap, tmp_path, own, history=told) as node:
        own.pause()  # nothing that is noted can be written
        try:
            await node.embed(*(f"text {number}" for number in range(1000)))
        finally:
            own.resume()

        assert await noted(node, "no_room") > 0
        assert await node.metric("embedkeep_history_waiting_bytes") <= bound


async def test_a_history_that_is_switched_off_is_deleted(
    tap: Tap, store: Valkey, tmp_path: Path
) -> None:
    async with tapped(tap, tmp_path, store, history=FAST) as node:
        await node.embed("a")
        await until_asked(store, {"a": 1})

    async with tapped(tap, tmp_path, store):
        await until_asked(store, {})


async def test_no_text_stands_in_metrics_or_logs(
    shared: Node, store: Valkey, capsys: pytest.CaptureFixture[str]
) -> None:
    await shared.embed("my secret question", api_key="key-a")
    await until_asked(store, {"my secret question": 1}, "a")
    page = await asyncio.to_thread(scrape, shared.metrics_port)
    await shared.invalidate("my secret question", api_key="key-a")

    said = capsys.readouterr()
    assert "secret question" not in page + said.out + said.err
    assert "key-a" not in page


async def test_all_nodes_of_a_cluster_add_to_one_history(
    whole: Valkeys, tap: Tap, tmp_path: Path
) -> None:
    async with running_nodes(whole, tap, tmp_path, history=FAST) as nodes:
        for name in whole.servers:
            await nodes[name].embed("a", name)
        owner = whole.where(names_of()[0])

        await until_asked(whole[owner], dict.fromkeys(whole.servers, 1) | {"a": 3 + 1})


async def test_a_cluster_forgets_in_its_history_what_any_node_is_told_to(
    whole: Valkeys, tap: Tap, tmp_path: Path
) -> None:
    """What nodes have noted before they hear of it is lost, too: that is the safe side."""
    owner = whole[whole.where(names_of()[0])]
    async with running_nodes(whole, tap, tmp_path, history={"flush_s": 0.3}) as nodes:
        for name in whole.servers:
            await nodes[name].embed("goes")
        await nodes["b"].invalidate("goes")

        for name in whole.servers:
            await until_written(nodes[name], "later")

    assert asked(owner).keys() == {"later"}


async def until_written(node: Node, text: str) -> None:
    async def written() -> bool:
        await node.embed(text)
        return await noted(node, "written") > 0

    await until(written)
