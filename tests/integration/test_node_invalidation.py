"""What was forgotten stays forgotten: in memory, in Valkey, on its way, and on other nodes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from embedkeep.v1 import cache_pb2
from support.node import Node, rows, sources, tapped, until
from support.tap import Tap
from support.valkey import Valkey, valkey


@pytest.fixture
async def second(tap: Tap, store: Valkey, tmp_path: Path) -> AsyncIterator[Node]:
    """Another node on the same Valkey."""
    folder = tmp_path / "second"
    folder.mkdir()
    async with tapped(tap, folder, store) as started:
        yield started


@pytest.fixture
async def seldom(tap: Tap, store: Valkey, tmp_path: Path) -> AsyncIterator[Node]:
    """A node that looks only every half a minute what others have forgotten."""
    async with tapped(tap, tmp_path, store, epoch_poll_s=30.0) as started:
        yield started


async def test_forgotten_texts_are_computed_anew_and_others_stay(node: Node, tap: Tap) -> None:
    await node.embed("a", "b", prompt="query")

    await node.invalidate("a", prompt="query")
    answer = await node.embed("a", "b", prompt="query")

    assert sources(answer) == ["embedder", "l1"]
    assert rows(answer)[0] == tap.computed["query: a"][1]


async def test_a_new_epoch_forgets_everything_at_once(node: Node) -> None:
    before = await node.embed("a", "b")

    epoch = (await node.invalidate()).epoch
    after = await node.embed("a", "b")

    assert sources(after) == ["embedder"] * 2
    assert epoch == after.epoch > before.epoch
    assert not set(rows(before)) & set(rows(after))


@pytest.mark.parametrize("texts", [("a",), ()], ids=["this text", "everything"])
async def test_an_answer_on_its_way_is_given_to_who_asked_before_and_kept_for_nobody(
    node: Node, tap: Tap, texts: tuple[str, ...]
) -> None:
    tap.gate.clear()
    early = asyncio.create_task(node.embed("a"))
    await tap.entered.get()
    await node.invalidate(*texts)
    late = asyncio.create_task(node.embed("a"))
    await tap.entered.get()
    tap.gate.set()

    answers = [await early, await late]
    third = await node.embed("a")

    assert [tap.born[rows(answer)[0]][0] for answer in answers] == [1, 2]
    assert rows(third) == rows(answers[1])


async def test_other_nodes_hear_of_a_new_epoch(node: Node, second: Node) -> None:
    first = await node.embed("a")
    await second.embed("a")

    epoch = (await node.invalidate()).epoch

    async def heard() -> bool:
        return (await second.info()).epoch == epoch

    await until(heard)
    answer = await second.embed("a")

    assert rows(answer) != rows(first)


def set_ahead(store: Valkey, name: str) -> int:
    """Let another node have told a number by a clock that is an hour ahead."""
    (tags, told) = store.run(("HKEYS", name), ("HVALS", name))
    assert isinstance(tags, list)
    assert isinstance(told, list)
    ahead = int(told[0]) + 3_600_000
    store.run(("HSET", name, tags[0], ahead))
    return ahead


async def test_a_new_epoch_is_later_than_any_that_this_node_has_not_heard_of(
    seldom: Node, store: Valkey, tap: Tap, tmp_path: Path
) -> None:
    await seldom.invalidate()
    ahead = set_ahead(store, "embedkeep:epochs")
    folder = tmp_path / "second"
    folder.mkdir()
    async with tapped(tap, folder, store) as second:
        first = await second.embed("a")

        epoch = (await seldom.invalidate()).epoch

        async def heard() -> bool:
            return (await second.info()).epoch == epoch

        await until(heard)
        again = await second.embed("a")

    assert first.epoch == ahead
    assert epoch > ahead
    assert rows(again) != rows(first)


async def test_what_one_node_forgets_is_news_to_one_whose_clock_is_ahead(
    seldom: Node, store: Valkey
) -> None:
    await seldom.embed("a")
    await seldom.invalidate("a")
    ahead = set_ahead(store, "embedkeep:forgotten")

    await seldom.invalidate("a")

    (told,) = store.run(("HVALS", "embedkeep:forgotten"))
    assert isinstance(told, list)
    assert int(told[0]) > ahead


async def test_other_nodes_drop_a_forgotten_text_from_memory_too(
    node: Node, second: Node, tap: Tap
) -> None:
    await node.embed("a", "b")
    await second.embed("a", "b")
    assert sources(await second.embed("a", "b")) == ["l1", "l1"]

    await node.invalidate("a")

    async def gone() -> bool:
        answer = await second.embed("a", cache_control={"only_if_cached": True})
        return bool(answer.errors)

    await until(gone)
    answer = await second.embed("a", "b")

    assert rows(answer)[0] == tap.computed["a"][-1]
    assert sources(answer) == ["embedder", "valkey"]


async def test_two_nodes_share_what_either_has_computed(node: Node, second: Node, tap: Tap) -> None:
    first = await node.embed("a")

    async def hit() -> bool:
        answer = await second.embed("a", cache_control={"only_if_cached": True})
        return sources(answer) == ["valkey"]

    await until(hit)

    assert rows(await second.embed("a")) == rows(first)
    assert tap.texts == ["a"]


async def test_an_invalidation_while_valkey_is_away_says_so_and_is_made_good(
    tap: Tap, tmp_path: Path
) -> None:
    with valkey(tmp_path) as mortal:
        async with tapped(tap, tmp_path, mortal) as node:
            before = await node.embed("a")
            mortal.pause()

            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await node.invalidate()
            meanwhile = await node.embed("a")
            mortal.resume()
            await node.until_tier("valkey", serving=True)
            (held,) = mortal.run(("HVALS", "embedkeep:epochs"))
            epoch = (await node.info()).epoch

    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "done on this node" in (refused.value.details() or "")
    assert rows(meanwhile) != rows(before)
    assert held == [str(epoch).encode()]


async def test_a_valkey_that_comes_back_empty_learns_the_epochs_from_its_nodes(
    tap: Tap, tmp_path: Path
) -> None:
    with valkey(tmp_path) as mortal:
        async with tapped(tap, tmp_path, mortal) as node:
            epoch = (await node.invalidate()).epoch
            mortal.kill()
            await node.until_tier("valkey", serving=False)
            mortal.start()
            await node.until_tier("valkey", serving=True)

            (held,) = mortal.run(("HVALS", "embedkeep:epochs"))
            (agreed,) = mortal.run(("KEYS", "embedkeep:space:*"))

    assert held == [str(epoch).encode()]
    assert isinstance(agreed, list)
    assert len(agreed) == 1


@pytest.mark.parametrize(
    ("texts", "named"),
    [((), "scope"), (("a", ""), "inputs[1]"), (("a\0",), "inputs[0]")],
)
async def test_a_wrong_invalidation_is_refused_and_forgets_nothing(
    node: Node, texts: tuple[str, ...], named: str
) -> None:
    await node.embed("a")
    request = (
        cache_pb2.InvalidateRequest(inputs=cache_pb2.InputSet(inputs=texts))
        if texts
        else (cache_pb2.InvalidateRequest())
    )

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await node.stub.Invalidate(request, timeout=30)

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert named in (refused.value.details() or "")
    assert sources(await node.embed("a")) == ["l1"]
