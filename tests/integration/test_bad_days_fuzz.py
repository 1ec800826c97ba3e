"""Whatever bytes and fields callers send: a clear refusal or an answer, and the node goes on."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedkeep.v1 import cache_pb2
from support.node import WAIT_S, node_config, running
from support.tap import Tap, serve_tap

SERVICE = "/embedkeep.v1.EmbeddingCache/"
UNARY = ("Embed", "Invalidate", "Info")
CLEAR = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""What a caller may hear; anything else says that the node did not see it coming."""

many = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])

texts = st.one_of(st.text(max_size=40), st.sampled_from(["", "\0", "a", "a" * 200_000, "🙂" * 9]))
models = st.sampled_from(["", "docs", "docs:query", "docs:", ":", "acme/counter:nope", "gpt", "é"])
integers = st.integers(0, 2**32 - 1)
enums = st.integers(-(2**31), 2**31 - 1) | st.integers(0, 3)
views = st.builds(
    cache_pb2.View, dimensions=integers | st.integers(0, 9), normalize=st.booleans(), encoding=enums
)
controls = st.builds(
    cache_pb2.CacheControl,
    no_store=st.booleans(), no_cache=st.booleans(), only_if_cached=st.booleans(),
)  # fmt: skip
requests = st.builds(
    cache_pb2.EmbedRequest,
    inputs=st.lists(texts, max_size=6),
    model=models,
    prompt=models,
    view=views,
    priority=enums,
    cache_control=controls,
)
invalidations = st.builds(
    cache_pb2.InvalidateRequest,
    model=models,
    inputs=st.builds(cache_pb2.InputSet, inputs=st.lists(texts, max_size=4), prompt=models),
) | st.builds(cache_pb2.InvalidateRequest, model=models, everything=st.booleans())
messages = st.one_of(requests, invalidations, st.just(cache_pb2.InfoRequest()))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A node with a loop of its own, so that examples can be drawn beside it."""
    listening: list[str] = []
    ready, stop = threading.Event(), asyncio.Event()

    async def serve(folder: Path) -> None:
        async with serve_tap(Tap()) as port, running(node_config(folder, port)) as node:
            listening.append(f"127.0.0.1:{node.port}")
            ready.set()
            await stop.wait()

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        thread = threading.Thread(target=runner.run, args=(serve(tmp_path_factory.mktemp("node")),))
        thread.start()
        assert ready.wait(WAIT_S)
        yield listening[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(WAIT_S)


def exchange(target: str, method: str, data: bytes) -> tuple[grpc.StatusCode, bytes | None]:
    """Call *method* with exactly these bytes: the status it ends with, and the answer's bytes."""
    with grpc.insecure_channel(target) as channel:
        call: Any = channel.unary_unary(SERVICE + method)
        try:
            return grpc.StatusCode.OK, call(data, timeout=WAIT_S)
        except grpc.RpcError as error:
            return error.code(), None


def send(target: str, method: str, data: bytes) -> grpc.StatusCode:
    """As `exchange`, without the answer."""
    return exchange(target, method, data)[0]


def alive(target: str) -> bool:
    return send(target, "Info", b"") is grpc.StatusCode.OK


@many
@given(method=st.sampled_from(UNARY), data=st.binary(max_size=300))
def test_bytes_that_mean_nothing_are_refused_or_harmless(
    target: str, method: str, data: bytes
) -> None:
    assert send(target, method, data) in CLEAR
    assert alive(target)


@many
@given(method=st.sampled_from(UNARY), message=messages, at=st.integers(0), flip=st.integers(1, 255))
def test_a_message_with_a_byte_changed_is_refused_or_harmless(
    target: str, method: str, message: Message, at: int, flip: int
) -> None:
    data = bytearray(message.SerializeToString())
    if data:
        data[at % len(data)] ^= flip

    assert send(target, method, bytes(data)) in CLEAR
    assert alive(target)


@many
@given(request=requests)
def test_any_fields_get_an_answer_of_the_right_shape_or_a_clear_refusal(
    target: str, request: cache_pb2.EmbedRequest
) -> None:
    data = request.SerializeToString()
    status, answer = exchange(target, "Embed", data)
    assert status in CLEAR
    if answer is not None:
        assert_shaped(cache_pb2.EmbedResponse.FromString(answer), rows=len(request.inputs))


def assert_shaped(answer: cache_pb2.EmbedResponse, *, rows: int) -> None:
    """Every column has a place for each row."""
    width = {cache_pb2.ENCODING_FLOAT32: 4, cache_pb2.ENCODING_FLOAT16: 2}[answer.encoding]
    assert len(answer.vectors) == rows * answer.dimensions * width
    assert [len(answer.sources), len(answer.statuses), len(answer.tokens)] == [rows] * 3
    assert [error.index for error in answer.errors] == [
        index for index, status in enumerate(answer.statuses) if status
    ]


@many
@given(sent=st.lists(requests, max_size=5), timeout_ms=st.integers(0, 2**32 - 1))
def test_each_message_of_a_stream_is_answered_once_under_its_id(
    target: str, sent: list[cache_pb2.EmbedRequest], timeout_ms: int
) -> None:
    with grpc.insecure_channel(target) as channel:
        call: Any = channel.stream_stream(
            SERVICE + "EmbedStream",
            request_serializer=cache_pb2.EmbedStreamRequest.SerializeToString,
            response_deserializer=cache_pb2.EmbedStreamResponse.FromString,
        )
        asked = [
            cache_pb2.EmbedStreamRequest(id=number, timeout_ms=timeout_ms, request=request)
            for number, request in enumerate(sent)
        ]
        answers = list(call(iter(asked), timeout=WAIT_S))

    assert sorted(answer.id for answer in answers) == list(range(len(sent)))
    assert all(answer.WhichOneof("result") for answer in answers)
