"""Both clients against a stand-in at the wire: what only real channels show."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from embedkeep import (
    CacheControl,
    Encoding,
    Fallback,
    NearCache,
    Priority,
    Retries,
    Source,
)
from embedkeep.errors import (
    DeadlineExceeded,
    EmbedderUnavailable,
    InvalidInput,
    InvalidRequest,
    InvalidResponse,
    Overloaded,
    PartialFailure,
    Unauthenticated,
    Unavailable,
)
from embedkeep.v1 import cache_pb2
from support.clients import KINDS, At, Kind
from support.fake_node import DIMENSIONS, FakeNode, Refusal, running, vector_of

QUICK = Retries(max_attempts=5, first_pause_s=0.001, max_pause_s=0.002)
NO_RETRIES = Retries(max_attempts=1)
WAIT_S = 30.0
NEVER_S = 1000.0
"""Longer than a test may run: who waits for it has failed."""
GONE = Refusal(code=grpc.StatusCode.UNAVAILABLE)

pytestmark = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def address(node: FakeNode) -> Iterator[At]:
    with running(node) as (one,):
        yield one


def rows_of(texts: Sequence[str]) -> NDArray[np.float32]:
    return np.stack([vector_of(text) for text in texts])


async def test_vectors_come_in_the_order_of_their_texts(
    kind: Kind, node: FakeNode, address: str
) -> None:
    texts = ["", " spaces ", "ünïcödé 😀", "nul \0", "same", "same"]
    async with kind(address) as client:
        vectors = await client.embed(texts)
        one = await client.embed("same")

    np.testing.assert_array_equal(rows_of(texts), vectors)
    np.testing.assert_array_equal(rows_of(["same"]), one)
    assert vectors.dtype == np.float32
    assert vectors.flags.writeable
    assert node.texts == [*texts, "same"]


async def test_a_hundred_thousand_texts_are_split_with_few_in_flight(
    kind: Kind, node: FakeNode, address: str
) -> None:
    texts = [f"text {number}" for number in range(100_000)]
    node.max_inputs = 2000
    async with kind(address, parallel=3, timeout_s=WAIT_S) as client:
        vectors = await client.embed(texts)

    np.testing.assert_array_equal(rows_of(texts), vectors)
    assert sorted(node.texts) == sorted(texts)
    assert 1 < node.most_in_flight <= 3
    assert max(request.ByteSize() for request in node.requests) <= node.max_message_bytes


async def test_what_a_call_wants_is_what_the_node_is_told(
    kind: Kind, node: FakeNode, address: str
) -> None:
    async with kind(address, encoding=Encoding.FLOAT16, api_key="key-1") as client:
        vectors = await client.embed(
            ["a"], model="docs", prompt="query", dimensions=3, normalize=False,
            priority=Priority.BULK, cache=CacheControl(no_store=True, no_cache=True),
        )  # fmt: skip

    view = cache_pb2.View(dimensions=3, normalize=False, encoding=cache_pb2.ENCODING_FLOAT16)
    assert node.requests == [
        cache_pb2.EmbedRequest(
            inputs=["a"], model="docs", prompt="query", view=view,
            priority=cache_pb2.PRIORITY_BULK,
            cache_control=cache_pb2.CacheControl(no_store=True, no_cache=True),
        )
    ]  # fmt: skip
    assert node.metadata[-1]["authorization"] == "Bearer key-1"
    np.testing.assert_array_equal(rows_of(["a"])[:, :3], vectors)


async def test_all_that_is_known_of_an_answer_is_in_the_detailed_result(
    kind: Kind, node: FakeNode, address: str
) -> None:
    long = "x" * 600
    node.bad_texts = {"bad": (3, "InvalidInput")}
    node.max_inputs = 2
    async with kind(address, parallel=1) as client:
        result = await client.embed_detailed(["a", "bad", long])

    np.testing.assert_array_equal(rows_of(["a", long]), result.vectors[[0, 2]])
    assert np.isnan(result.vectors[1]).all()
    assert result.sources == (Source.L1, Source.NONE, Source.L1)
    assert result.tokens == (1, 0, 600)
    assert result.truncated == (2,)
    assert [(failed.index, type(failed.error)) for failed in result.failed] == [(1, InvalidInput)]
    assert (result.fingerprint, result.epoch) == ("model-a", 1)
    assert (result.saved_device_s, result.spent_device_s) == (0.5, 1.0)


async def test_some_failed_inputs_raise_and_keep_the_other_rows(
    kind: Kind, node: FakeNode, address: str
) -> None:
    node.bad_texts = {"bad": (3, "InvalidInput")}
    async with kind(address) as client:
        with pytest.raises(
            PartialFailure, match=r"1 of 3 inputs failed, the first at index 1"
        ) as e:
            await client.embed(["a", "bad", "b"])

    assert list(e.value.failures) == [1]
    np.testing.assert_array_equal(rows_of(["a", "b"]), e.value.vectors[[0, 2]])


async def test_where_no_input_succeeds_the_first_ones_error_is_raised(
    kind: Kind, node: FakeNode, address: str
) -> None:
    node.bad_texts = {"bad": (3, "InvalidInput"), "gone": (14, "EmbedderUnavailable")}
    async with kind(address, retries=NO_RETRIES) as client:
        with pytest.raises(InvalidInput) as invalid:
            await client.embed(["bad"])
        with pytest.raises(EmbedderUnavailable):
            await client.embed(["gone", "bad"])

    assert invalid.value.index == 0


async def test_a_text_that_cannot_be_sent_is_refused_before_any_is(
    kind: Kind, node: FakeNode, address: str
) -> None:
    async with kind(address) as client:
        with pytest.raises(InvalidInput, match="input 1 has a lone surrogate"):
            await client.embed(["good", "\ud800"])
        with pytest.raises(InvalidRequest, match="at least one"):
            await client.embed([])

    assert node.metadata == []


async def test_a_node_that_is_away_for_a_moment_is_asked_again(
    kind: Kind, node: FakeNode, address: str
) -> None:
    node.refusals.extend([GONE] * 3)
    async with kind(address, retries=QUICK) as client:
        vectors = await client.embed(["a"])

        np.testing.assert_array_equal(rows_of(["a"]), vectors)
        assert (client.stats.retries, client.stats.requests) == (3, 5)  # with Info


async def test_a_busy_node_is_asked_again_when_it_says_when(
    kind: Kind, node: FakeNode, address: str
) -> None:
    busy = grpc.StatusCode.RESOURCE_EXHAUSTED
    async with kind(address, retries=QUICK) as client:
        await client.embed(["a"])
        node.refusals.append(Refusal(code=busy, reason="Overloaded", retry_after_ms=1))
        await client.embed(["a"])
        node.refusals.append(Refusal(code=busy, reason="Overloaded"))
        with pytest.raises(Overloaded):
            await client.embed(["a"])

    assert node.texts == ["a", "a"]


async def test_errors_keep_their_class_and_their_cause(
    kind: Kind, node: FakeNode, address: str
) -> None:
    node.refusals.append(Refusal(code=grpc.StatusCode.UNAUTHENTICATED, reason="Unauthenticated"))
    async with kind(address) as client:
        with pytest.raises(Unauthenticated, match="planted UNAUTHENTICATED") as raised:
            await client.embed(["a"])

    assert isinstance(raised.value.__cause__, grpc.RpcError) or "http://" in str(raised.value)


async def test_a_deadline_ends_a_call_and_is_not_retried(
    kind: Kind, node: FakeNode, address: str
) -> None:
    async with kind(address, retries=QUICK) as client:
        await client.info()
        node.hold = threading.Event()
        with pytest.raises(DeadlineExceeded):
            await client.embed(["a"], timeout_s=0.2)

        assert client.stats.retries == 0
        assert client.stats.requests == 2  # with Info


async def test_an_answer_that_does_not_fit_is_an_error_of_its_own(
    kind: Kind, node: FakeNode, address: str
) -> None:
    node.spoil = lambda response: response.sources.pop()
    async with kind(address) as client:
        with pytest.raises(InvalidResponse, match="1 sources, 2 statuses and 2 tokens"):
            await client.embed(["a", "b"])


async def test_a_node_that_cannot_be_reached_says_which(kind: Kind) -> None:
    with running(FakeNode()) as (address,):
        pass  # its port is free again
    async with kind(address, retries=NO_RETRIES) as client:
        with pytest.raises(Unavailable, match=rf"{address}|{address.http}"):
            await client.embed(["a"])


async def test_the_fallback_answers_when_no_node_does(kind: Kind) -> None:
    asked: list[tuple[list[str], str | None]] = []

    def model(texts: Sequence[str], prompt: str | None) -> NDArray[np.float32]:
        asked.append((list(texts), prompt))
        return rows_of(texts)

    with running(FakeNode()) as (address,):
        pass
    async with kind(address, retries=NO_RETRIES, fallback=Fallback(embed=model)) as client:
        result = await client.embed_detailed(["a", "b"], prompt="query")

        assert client.stats.fallback_inputs == 2
    np.testing.assert_array_equal(rows_of(["a", "b"]), result.vectors)
    assert set(result.sources) == {Source.FALLBACK}
    assert asked == [(["a", "b"], "query")]


async def test_the_fallback_answers_when_the_cache_takes_too_long(
    kind: Kind, node: FakeNode, address: str
) -> None:
    fallback = Fallback(embed=lambda texts, _: rows_of(texts), after_s=0.1)
    async with kind(address, fallback=fallback) as client:
        node.hold = threading.Event()
        result = await client.embed_detailed(["a"], timeout_s=NEVER_S)

    assert result.sources == (Source.FALLBACK,)


async def test_the_fallback_gets_only_the_rows_that_no_embedder_could_make(
    kind: Kind, node: FakeNode, address: str
) -> None:
    node.bad_texts = {"miss": (14, "EmbedderUnavailable"), "bad": (3, "InvalidInput")}
    fallback = Fallback(embed=lambda texts, _: rows_of(texts))
    async with kind(address, fallback=fallback, retries=NO_RETRIES) as client:
        result = await client.embed_detailed(["hit", "miss", "bad"])

    assert result.sources == (Source.L1, Source.FALLBACK, Source.NONE)
    assert [failed.index for failed in result.failed] == [2]


async def test_the_fallbacks_rows_are_cut_and_scaled_as_asked(
    kind: Kind, node: FakeNode, address: str
) -> None:
    node.refusals.append(GONE)
    fallback = Fallback(embed=lambda texts, _: rows_of(texts))
    async with kind(address, fallback=fallback, retries=NO_RETRIES) as client:
        vectors = await client.embed(["a"], dimensions=3, normalize=True)

    cut = rows_of(["a"])[:, :3]
    np.testing.assert_allclose(vectors, cut / np.linalg.norm(cut), rtol=1e-6)


async def test_a_fallback_of_the_wrong_shape_is_refused(
    kind: Kind, node: FakeNode, address: str
) -> None:
    node.refusals.append(GONE)
    fallback = Fallback(embed=lambda texts, _: np.ones((len(texts) + 1, DIMENSIONS), np.float32))
    async with kind(address, fallback=fallback, retries=NO_RETRIES) as client:
        with pytest.raises(InvalidResponse, match="the fallback returned shape"):
            await client.embed(["a"])


async def test_invalidating_forgets_here_and_there(
    kind: Kind, node: FakeNode, address: str
) -> None:
    async with kind(address, near_cache=NearCache(max_bytes=1 << 20)) as client:
        await client.embed(["a"])
        await client.embed(["a"])
        assert client.stats.near_hits == 1

        assert await client.invalidate(["a"], prompt="query") == 1
        await client.embed(["a"])
        assert await client.invalidate_all() == 2
        await client.embed(["a"])

        assert client.stats.near_hits == 1
    assert node.texts == ["a", "a", "a"]
    assert node.invalidated == [
        cache_pb2.InvalidateRequest(inputs=cache_pb2.InputSet(inputs=["a"], prompt="query")),
        cache_pb2.InvalidateRequest(everything=True),
    ]


async def test_an_epoch_that_somebody_else_began_empties_the_near_cache(
    kind: Kind, node: FakeNode, address: str
) -> None:
    async with kind(address, near_cache=NearCache(max_bytes=1 << 20)) as client:
        await client.embed(["a"])
        node.epoch += 1
        await client.embed(["b"])  # its answer shows the new epoch
        await client.embed(["a"])

    assert node.texts == ["a", "b", "a"]


async def test_a_node_that_has_not_heard_of_an_invalidation_leaves_nothing_near(
    kind: Kind, node: FakeNode, address: str
) -> None:
    async with kind(address, near_cache=NearCache(max_bytes=1 << 20)) as client:
        await client.embed(["a"])
        assert await client.invalidate_all() == 2
        node.epoch = 1
        await client.embed(["a"])
        await client.embed(["a"])

        assert client.stats.near_hits == 0


async def test_what_one_key_was_told_is_not_near_for_another(
    kind: Kind, node: FakeNode, address: str
) -> None:
    keys = iter(["key-a", "key-a", "key-b", "key-a"])  # the first is only looked at
    near = NearCache(max_bytes=1 << 20)
    async with kind(address, near_cache=near, api_key=lambda: next(keys)) as client:
        sources = [(await client.embed_detailed(["a"])).sources for _ in range(3)]

    assert sources == [(Source.L1,), (Source.L1,), (Source.NEAR,)]
    assert [sent["authorization"] for sent in node.metadata] == [
        "Bearer key-a", "Bearer key-a", "Bearer key-b",
    ]  # fmt: skip


@pytest.mark.parametrize("texts", [["a"], ["a", "b", "c"]], ids=["one request", "several"])
async def test_closing_during_a_call_is_told_to_its_caller(
    kind: Kind, node: FakeNode, address: str, texts: list[str]
) -> None:
    node.max_inputs = 1
    client = kind(address, timeout_s=NEVER_S, fallback=Fallback(embed=lambda t, _: rows_of(t)))
    await client.info()
    await client.embed(["limits are known now"])
    node.hold = threading.Event()
    while node.entered.acquire(blocking=False):
        pass
    call = asyncio.create_task(client.embed(texts), name="call")
    assert await asyncio.to_thread(node.entered.acquire, timeout=WAIT_S)

    await client.close()

    with pytest.raises(Unavailable, match="the client was closed during the call"):
        await asyncio.wait_for(call, WAIT_S)


async def test_info_tells_what_is_served(kind: Kind, address: str) -> None:
    async with kind(address) as client:
        info = await client.info()

    assert (info.model, info.prompts, info.dimensions) == ("org/model-a", ("query",), DIMENSIONS)
    assert [(tier.name, tier.serving, tier.message) for tier in info.tiers] == [
        ("valkey", False, "paused")
    ]


async def test_several_nodes_share_the_calls(kind: Kind) -> None:
    nodes = [FakeNode(), FakeNode()]
    with running(*nodes) as addresses:
        async with kind(addresses) as client:
            async with asyncio.timeout(WAIT_S):
                while not all(node.requests for node in nodes):
                    await client.embed(["a"])


async def test_a_node_that_comes_back_is_found_again(kind: Kind) -> None:
    with running(FakeNode()) as (address,):
        client = kind(address, timeout_s=WAIT_S, retries=Retries(max_attempts=100))
        await client.embed(["a"])
    with running(FakeNode(), again=[address]):
        vectors = await client.embed(["b"])
    await client.close()

    np.testing.assert_array_equal(rows_of(["b"]), vectors)


async def test_calls_from_many_at_once_do_not_meet(kind: Kind, address: str) -> None:
    near = NearCache(max_bytes=4000)  # so small that entries leave all the time
    batches = [[f"{caller % 5} {number}" for number in range(30)] for caller in range(40)]
    async with kind(address, near_cache=near, timeout_s=WAIT_S) as client:
        answers = await asyncio.gather(*(client.embed(texts) for texts in batches))

    for texts, vectors in zip(batches, answers, strict=True):
        np.testing.assert_array_equal(rows_of(texts), vectors)


async def test_a_closed_client_says_so(kind: Kind, address: str) -> None:
    client = kind(address)
    await client.embed(["a"])
    await client.close()
    await client.close()

    with pytest.raises(RuntimeError, match="closed"):
        await client.embed(["a"])


async def test_a_rotated_key_is_used_from_the_next_call_on(
    kind: Kind, node: FakeNode, address: str, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text("old")
    async with kind(address, api_key=file) as client:
        await client.embed(["a"])
        file.write_text("new")
        await client.embed(["a"])

    assert [sent["authorization"] for sent in node.metadata] == [
        "Bearer old", "Bearer old", "Bearer new",
    ]  # fmt: skip
