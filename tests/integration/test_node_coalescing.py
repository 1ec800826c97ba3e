import asyncio

import grpc
import pytest

from embedkeep.v1 import cache_pb2, embedder_pb2
from support.node import Node, rows, sources
from support.tap import Tap


async def test_fifty_concurrent_identical_misses_cost_one_embedding(node: Node, tap: Tap) -> None:
    tap.gate.clear()
    calls = [asyncio.create_task(node.embed("what is a shard?")) for _ in range(50)]
    await tap.entered.get()

    tap.gate.set()
    answers = await asyncio.gather(*calls)

    assert tap.texts == ["what is a shard?"]
    assert {rows(answer)[0] for answer in answers} == set(tap.computed["what is a shard?"])


async def test_ten_duplicates_in_a_batch_cost_one_embedding_each(node: Node, tap: Tap) -> None:
    texts = ["a", "b"] * 10

    answer = await node.embed(*texts)

    assert sorted(tap.texts) == ["a", "b"]
    assert rows(answer) == [tap.computed[text][0] for text in texts]
    assert sources(answer) == ["embedder"] * 2 + ["coalesced"] * 18


async def test_overlapping_batches_compute_only_what_is_not_on_its_way(
    node: Node, tap: Tap
) -> None:
    tap.gate.clear()
    first = asyncio.create_task(node.embed("a", "b"))
    await tap.entered.get()
    second = asyncio.create_task(node.embed("b", "c"))
    await tap.entered.get()

    tap.gate.set()
    answers = [await first, await second]

    assert [call.texts for call in tap.calls] == [["a", "b"], ["c"]]
    assert rows(answers[0])[1] == rows(answers[1])[0]
    assert sources(answers[1]) == ["coalesced", "embedder"]


async def test_one_caller_leaving_does_not_fail_the_others(node: Node, tap: Tap) -> None:
    tap.gate.clear()
    first = asyncio.create_task(node.embed("a"))
    await tap.entered.get()
    second = asyncio.create_task(node.embed("a", "b"))
    await tap.entered.get()

    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    tap.gate.set()

    assert rows(await second) == [tap.computed["a"][0], tap.computed["b"][0]]
    assert tap.cancelled == 0


async def test_work_that_nobody_waits_for_is_cancelled_and_then_starts_anew(
    node: Node, tap: Tap
) -> None:
    tap.gate.clear()
    only = asyncio.create_task(node.embed("a"))
    await tap.entered.get()

    only.cancel()
    async with asyncio.timeout(10):  # well below the 30 s after which the call would end anyway
        await tap.cancellation.wait()
    tap.gate.set()

    assert rows(await node.embed("a")) == tap.computed["a"]
    assert await node.metric("embedkeep_pending_inputs") == 0


async def test_a_short_deadline_is_held_while_the_computation_goes_on_for_others(
    node: Node, tap: Tap
) -> None:
    tap.gate.clear()
    patient = asyncio.create_task(node.embed("a"))
    await tap.entered.get()

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await node.embed("a", timeout_s=0.2)
    tap.gate.set()

    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert rows(await patient) == tap.computed["a"]
    assert len(tap.computed["a"]) == 1


async def test_rows_that_are_there_are_answered_though_others_run_out_of_time(
    node: Node, tap: Tap
) -> None:
    await node.embed("known")
    tap.gate.clear()
    # Over a stream the deadline is the node's to hold: gRPC does not cut the answer off.
    stream = node.stub.EmbedStream(timeout=30)
    await stream.write(
        cache_pb2.EmbedStreamRequest(
            id=1, timeout_ms=300, request=cache_pb2.EmbedRequest(inputs=["known", "slow"])
        )
    )

    message = await stream.read()
    tap.gate.set()
    stream.cancel()

    assert isinstance(message, cache_pb2.EmbedStreamResponse)
    answer = message.response
    assert list(answer.statuses) == [0, grpc.StatusCode.DEADLINE_EXCEEDED.value[0]]
    assert rows(answer)[0] == tap.computed["known"][0]


async def test_a_fresh_answer_never_joins_a_computation_that_began_before(
    node: Node, tap: Tap
) -> None:
    tap.gate.clear()
    before = asyncio.create_task(node.embed("a"))
    await tap.entered.get()
    fresh = asyncio.create_task(node.embed("a", cache_control={"no_cache": True}))
    await tap.entered.get()

    tap.gate.set()
    await asyncio.gather(before, fresh)

    assert len(tap.computed["a"]) == 2
    assert sources(await fresh) == ["embedder"]


async def test_a_person_does_not_wait_behind_background_work_for_the_same_text(
    node: Node, tap: Tap
) -> None:
    tap.gate.clear()
    warming = asyncio.create_task(node.embed("a", "b", priority="PRIORITY_BACKGROUND"))
    await tap.entered.get()
    asking = asyncio.create_task(node.embed("a"))
    urgent = await tap.entered.get()
    joining = asyncio.create_task(node.embed("a", priority="PRIORITY_BULK"))

    tap.gate.set()
    answers = [await warming, await asking, await joining]

    assert (urgent.texts, urgent.purpose) == (["a"], embedder_pb2.PURPOSE_DEMAND)
    assert len(tap.calls) == 2
    assert sources(answers[2]) in (["coalesced"], ["l1"])


async def test_background_work_joins_what_a_person_waits_for(node: Node, tap: Tap) -> None:
    tap.gate.clear()
    asking = asyncio.create_task(node.embed("a"))
    await tap.entered.get()
    warming = asyncio.create_task(node.embed("a", "b", priority="PRIORITY_BACKGROUND"))
    await tap.entered.get()

    tap.gate.set()
    await asyncio.gather(asking, warming)

    assert [call.texts for call in tap.calls] == [["a"], ["b"]]
