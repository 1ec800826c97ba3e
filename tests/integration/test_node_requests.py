"""What callers may ask, and what they hear when they ask for something else."""

from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from embedkeep.v1 import cache_pb2, embedder_pb2
from support.node import Node, floats, rows, sources
from support.tap import DEVICE_NS, DIMENSIONS, Tap

OK, INVALID = 0, grpc.StatusCode.INVALID_ARGUMENT.value[0]


async def refusal(node: Node, *texts: str, **fields: object) -> grpc.aio.AioRpcError:
    """The error of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await node.embed(*texts, **fields)  # type: ignore[arg-type]  # fields of the message
    return refused.value


if TYPE_CHECKING:  # at run time it takes no parameters
    Stream = grpc.aio.StreamStreamCall[cache_pb2.EmbedStreamRequest, cache_pb2.EmbedStreamResponse]


async def read(stream: "Stream") -> cache_pb2.EmbedStreamResponse:
    """The next answer of a stream that has not ended."""
    answer = await stream.read()
    assert isinstance(answer, cache_pb2.EmbedStreamResponse)
    return answer


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param("", "empty", id="an empty string"),
        pytest.param("a\0b", "NUL", id="a NUL"),
        pytest.param("x" * 1_000_000, "1000000 bytes", id="a megabyte of text"),
        pytest.param("é" * 70_000, "140000 bytes", id="bytes are counted, not characters"),
    ],
)
async def test_a_bad_input_fails_alone_in_its_place_and_says_why(
    node: Node, tap: Tap, text: str, named: str
) -> None:
    answer = await node.embed("good", text, "fine")

    assert list(answer.statuses) == [OK, INVALID, OK]
    (error,) = answer.errors
    assert (error.index, error.reason) == (1, "InvalidInput")
    assert named in error.message
    assert rows(answer)[0::2] == [tap.computed["good"][0], tap.computed["fine"][0]]
    assert np.isnan(floats(answer)[1]).all()
    assert tap.texts == ["good", "fine"]


async def test_a_single_bad_input_is_still_answered_in_place(node: Node) -> None:
    answer = await node.embed("")

    assert [error.index for error in answer.errors] == [0]


async def test_no_inputs_are_refused(node: Node) -> None:
    error = await refusal(node)

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "inputs: none" in (error.details() or "")


async def test_a_hundred_thousand_inputs_are_refused_with_the_number_that_fits(
    node: Node, tap: Tap
) -> None:
    error = await refusal(node, *["x"] * 100_000)

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "100000" in (error.details() or "")
    assert str((await node.info()).max_inputs) in (error.details() or "")
    assert tap.calls == []


async def test_the_largest_request_and_its_answer_fit_the_messages(node: Node) -> None:
    most = (await node.info()).max_inputs

    answer = await node.embed(*map(str, range(most)))

    assert len(answer.statuses) == most
    assert set(answer.statuses) == {OK}


@pytest.mark.parametrize(
    ("fields", "code", "named"),
    [
        ({"model": "gpt"}, grpc.StatusCode.NOT_FOUND, "'gpt' is not served here"),
        ({"model": "docs:nope"}, grpc.StatusCode.INVALID_ARGUMENT, "'nope' is unknown"),
        ({"prompt": "nope"}, grpc.StatusCode.INVALID_ARGUMENT, "'query', 'document'"),
        (
            {"model": "docs:query", "prompt": "document"},
            grpc.StatusCode.INVALID_ARGUMENT,
            "'document', but model names 'query'",
        ),
        (
            {"view": {"dimensions": DIMENSIONS + 1}},
            grpc.StatusCode.INVALID_ARGUMENT,
            f"dimensions is {DIMENSIONS + 1}; this model has {DIMENSIONS}",
        ),
        ({"view": {"encoding": 7}}, grpc.StatusCode.INVALID_ARGUMENT, "view.encoding: 7"),
        ({"priority": 9}, grpc.StatusCode.INVALID_ARGUMENT, "priority: 9"),
        (
            {"cache_control": {"no_cache": True, "only_if_cached": True}},
            grpc.StatusCode.INVALID_ARGUMENT,
            "exclude each other",
        ),
    ],
)
async def test_a_wrong_field_is_named_with_its_value_and_what_is_allowed(
    node: Node, tap: Tap, fields: dict[str, object], code: grpc.StatusCode, named: str
) -> None:
    error = await refusal(node, "a", **fields)

    assert error.code() is code
    assert named in (error.details() or "")
    assert tap.calls == []


@pytest.mark.parametrize("model", ["docs:query", "acme/counter:query"])
async def test_a_prompt_by_alias_and_by_name_is_one_entry(node: Node, tap: Tap, model: str) -> None:
    await node.embed("a", prompt="query")

    answer = await node.embed("a", model=model)

    assert sources(answer) == ["l1"]
    assert tap.texts == ["query: a"]


async def test_a_prompt_and_the_text_that_begins_with_it_are_two_entries(
    node: Node, tap: Tap
) -> None:
    await node.embed("a", prompt="query")

    answer = await node.embed("query: a")

    assert sources(answer) == ["embedder"]
    assert tap.texts == ["query: a", "query: a"]


async def test_texts_are_never_normalized(node: Node, tap: Tap) -> None:
    texts = ["cafe\u0301", "caf\u00e9", "cafe ", "cafe", "Cafe", "cafe?"]

    answer = await node.embed(*texts)

    assert tap.texts == texts
    assert set(sources(answer)) == {"embedder"}


async def test_a_view_is_cut_and_scaled_from_the_one_entry(node: Node, tap: Tap) -> None:
    await node.embed("a")
    whole = np.frombuffer(tap.computed["a"][0], "<f4")

    cut = await node.embed("a", view={"dimensions": 4, "normalize": True})
    half = await node.embed("a", view={"encoding": cache_pb2.ENCODING_FLOAT16})

    assert cut.dimensions == 4
    expected = whole[:4].astype(np.float64) / np.linalg.norm(whole[:4].astype(np.float64))
    assert np.allclose(floats(cut)[0], expected, atol=1e-7)
    assert half.vectors == whole.astype("<f2").tobytes()
    assert tap.texts == ["a"]


async def test_no_store_keeps_nothing(node: Node, tap: Tap) -> None:
    answers = [await node.embed("a", cache_control={"no_store": True}) for _ in range(2)]

    assert [sources(answer) for answer in answers] == [["embedder"]] * 2
    assert len(tap.computed["a"]) == 2


async def test_no_cache_computes_anew_and_replaces_the_entry(node: Node, tap: Tap) -> None:
    await node.embed("a")

    fresh = await node.embed("a", cache_control={"no_cache": True})
    later = await node.embed("a")

    assert rows(fresh) == rows(later) == tap.computed["a"][1:]
    assert sources(later) == ["l1"]


async def test_only_if_cached_never_reaches_the_model(node: Node, tap: Tap) -> None:
    await node.embed("known")
    calls = len(tap.calls)

    answer = await node.embed("known", "new", cache_control={"only_if_cached": True})

    assert list(answer.statuses) == [OK, grpc.StatusCode.NOT_FOUND.value[0]]
    assert [error.reason for error in answer.errors] == ["NotCached"]
    assert len(tap.calls) == calls


async def test_priorities_become_the_purposes_that_device_time_is_booked_under(
    node: Node, tap: Tap
) -> None:
    for number, priority in enumerate(("INTERACTIVE", "BULK", "BACKGROUND")):
        await node.embed(f"text {number}", priority=f"PRIORITY_{priority}")

    assert [call.purpose for call in tap.calls] == [
        embedder_pb2.PURPOSE_DEMAND,
        embedder_pb2.PURPOSE_BULK,
        embedder_pb2.PURPOSE_BACKGROUND,  # and not what the node itself warms
    ]


async def test_savings_are_what_the_rows_had_cost(node: Node) -> None:
    first = await node.embed("a", "b")

    second = await node.embed("a", "b", "c")

    assert first.spent_device_seconds == pytest.approx(2 * DEVICE_NS / 1e9)
    assert first.saved_device_seconds == 0
    assert second.saved_device_seconds == pytest.approx(2 * DEVICE_NS / 1e9)
    assert second.spent_device_seconds == pytest.approx(DEVICE_NS / 1e9)
    assert await node.metric("embedkeep_saved_device_seconds_total") == pytest.approx(
        2 * DEVICE_NS / 1e9
    )


async def test_metrics_count_each_input_by_how_it_was_answered(node: Node) -> None:
    await node.embed("a", "b", "b", "")
    await node.embed("a", "new", cache_control={"only_if_cached": True})

    counted = {
        result: await node.metric("embedkeep_lookups_total", result=result)
        for result in ("l1", "valkey", "embedder", "coalesced", "not_cached", "error")
    }

    assert counted == {
        "l1": 1, "valkey": 0, "embedder": 2, "coalesced": 1, "not_cached": 1, "error": 1,
    }  # fmt: skip


async def test_a_stream_answers_in_any_order_with_errors_in_band(node: Node, tap: Tap) -> None:
    await node.embed("known")
    tap.gate.clear()
    stream = node.stub.EmbedStream(timeout=30)
    send = {
        1: cache_pb2.EmbedRequest(inputs=["slow"]),
        2: cache_pb2.EmbedRequest(inputs=["known"]),
        3: cache_pb2.EmbedRequest(inputs=["known"], model="gpt"),
    }
    for number, request in send.items():
        await stream.write(cache_pb2.EmbedStreamRequest(id=number, request=request))
    await tap.entered.get()

    early = [await read(stream), await read(stream)]
    tap.gate.set()
    late = await read(stream)
    await stream.done_writing()

    assert {answer.id for answer in early} == {2, 3}
    by_id = {answer.id: answer for answer in (*early, late)}
    assert by_id[2].response.vectors == tap.computed["known"][0]
    assert by_id[3].error.reason == "UnknownModel"
    assert by_id[1].response.vectors == tap.computed["slow"][0]
    assert await stream.read() == grpc.aio.EOF


async def test_a_stream_message_has_a_deadline_of_its_own(node: Node, tap: Tap) -> None:
    tap.gate.clear()
    stream = node.stub.EmbedStream(timeout=30)
    await stream.write(
        cache_pb2.EmbedStreamRequest(
            id=1, timeout_ms=100, request=cache_pb2.EmbedRequest(inputs=["slow"])
        )
    )

    answer = await read(stream)
    tap.gate.set()
    stream.cancel()

    assert answer.error.reason == "DeadlineExceeded"


async def test_a_draining_node_answers_what_a_stream_has_asked_and_then_ends_it(
    tap: Tap, node: Node
) -> None:
    """Long-lived streams must not hold a pod until its grace is over."""
    tap.gate.clear()
    stream = node.stub.EmbedStream(timeout=30)
    await stream.write(
        cache_pb2.EmbedStreamRequest(id=1, request=cache_pb2.EmbedRequest(inputs=["a"]))
    )
    await tap.entered.get()

    node.stop.set()
    tap.gate.set()
    answer = await read(stream)
    end = await stream.read()

    assert answer.response.vectors == tap.computed["a"][0]
    assert end == grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK


async def test_bytes_that_are_no_message_are_the_callers_fault(node: Node, tap: Tap) -> None:
    """A lone surrogate in UTF-8, as some languages send it, among them."""
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = node.channel.unary_unary(
        "/embedkeep.v1.EmbeddingCache/Embed"
    )

    for data in (b"\x0a\x03\xed\xa0\x80", b"\xff\xff\xff"):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(data, timeout=30)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "surrogates" in (refused.value.details() or "")

    assert tap.calls == []


async def test_a_stream_ends_at_bytes_that_are_no_message_and_answers_what_came_before(
    node: Node, tap: Tap
) -> None:
    method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = node.channel.stream_stream(
        "/embedkeep.v1.EmbeddingCache/EmbedStream"
    )
    stream = method(timeout=30)
    good = cache_pb2.EmbedStreamRequest(id=1, request=cache_pb2.EmbedRequest(inputs=["a"]))
    await stream.write(good.SerializeToString())
    await stream.write(b"\xff\xff\xff")

    data = await stream.read()
    assert isinstance(data, bytes)
    answer = cache_pb2.EmbedStreamResponse.FromString(data)

    assert answer.response.vectors == tap.computed["a"][0]
    assert await stream.code() is grpc.StatusCode.INVALID_ARGUMENT
