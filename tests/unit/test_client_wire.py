from collections.abc import Callable

import grpc
import numpy as np
import pytest

from embedkeep.client.options import Ask
from embedkeep.client.wire import answer_of, error_of, info_of, request_of
from embedkeep.errors import (
    EmbedderUnavailable,
    EmbedKeepError,
    InvalidInput,
    InvalidRequest,
    InvalidResponse,
    Overloaded,
    Unavailable,
)
from embedkeep.v1 import cache_pb2
from embedkeep.views import Encoding
from support.fake_node import FakeNode, vector_of

Response = cache_pb2.EmbedResponse


def a_response(*texts: str, ask: Ask | None = None, node: FakeNode | None = None) -> Response:
    request = request_of(texts, ask or Ask(), Encoding.FLOAT32)
    return (node or FakeNode()).answer(request)


def test_rows_come_out_bit_for_bit() -> None:
    answer = answer_of(a_response("a", "b"), count=2, ask=Ask())

    np.testing.assert_array_equal(np.stack([vector_of("a"), vector_of("b")]), answer.rows)


def test_half_precision_rows_become_float32() -> None:
    node = FakeNode()
    response = node.answer(request_of(["a"], Ask(), Encoding.FLOAT16))

    answer = answer_of(response, count=1, ask=Ask())

    assert answer.rows.dtype == np.float32
    np.testing.assert_array_equal(vector_of("a"), answer.rows[0])  # small whole numbers fit


def _spoil(**fields: object) -> Callable[[Response], None]:
    return lambda response: response.MergeFrom(Response(**fields))  # type: ignore[arg-type]  # fields of the message


def _nan_row(response: Response) -> None:
    response.vectors = np.full((2, 8), np.nan, dtype="<f4").tobytes()


def _silent_failure(response: Response) -> None:
    response.statuses[1] = 3


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda r: setattr(r, "vectors", r.vectors[:-1]), id="a byte is missing"),
        pytest.param(lambda r: setattr(r, "vectors", r.vectors + b"\0"), id="a byte too many"),
        pytest.param(lambda r: setattr(r, "dimensions", 7), id="another stride"),
        pytest.param(lambda r: setattr(r, "encoding", 2), id="another encoding"),
        pytest.param(lambda r: setattr(r, "encoding", 9), id="an unknown encoding"),
        pytest.param(lambda r: r.sources.pop(), id="a source is missing"),
        pytest.param(lambda r: r.sources.append(1), id="a source too many"),
        pytest.param(lambda r: r.tokens.pop(), id="tokens are missing"),
        pytest.param(lambda r: r.statuses.pop(), id="a status is missing"),
        pytest.param(_spoil(truncated=[2]), id="a truncated index out of range"),
        pytest.param(_spoil(errors=[{"index": 2, "code": 3}]), id="an error out of range"),
        pytest.param(_spoil(errors=[{"index": 0, "code": 3}]), id="an error with an OK status"),
        pytest.param(_silent_failure, id="a bad status without its error"),
        pytest.param(_nan_row, id="rows of NaN that are said to be OK"),
        pytest.param(lambda r: r.sources.__setitem__(0, 99), id="an unknown source"),
    ],
)
def test_an_answer_that_does_not_fit_its_request_is_refused(
    spoil: Callable[[Response], None],
) -> None:
    response = a_response("a", "b")
    answer_of(response, count=2, ask=Ask())
    spoil(response)

    with pytest.raises(InvalidResponse, match=r"does not fit|unknown encoding"):
        answer_of(response, count=2, ask=Ask())


def test_another_size_than_asked_for_is_refused() -> None:
    response = a_response("a", ask=Ask(dimensions=4))

    with pytest.raises(InvalidResponse, match="4 dimensions, 3 asked for"):
        answer_of(response, count=1, ask=Ask(dimensions=3))


def test_an_answer_for_another_count_of_inputs_is_refused() -> None:
    with pytest.raises(InvalidResponse):
        answer_of(a_response("a", "b"), count=1, ask=Ask())


def test_failed_rows_keep_the_class_they_had_at_the_node() -> None:
    node = FakeNode(bad_texts={"b": (3, "InvalidInput"), "c": (14, "EmbedderUnavailable")})

    answer = answer_of(a_response("a", "b", "c", node=node), count=3, ask=Ask())

    assert list(answer.errors) == [1, 2]
    assert isinstance(answer.errors[1], InvalidInput)
    assert isinstance(answer.errors[2], EmbedderUnavailable)


@pytest.mark.parametrize(
    ("trailing", "kind", "retry_after_s"),
    [
        pytest.param((), Unavailable, None, id="by its code"),
        pytest.param((("embedkeep-reason", "EmbedderUnavailable"),), EmbedderUnavailable, None,
                     id="by its reason"),
        pytest.param((("embedkeep-reason", "Overloaded"), ("grpc-retry-pushback-ms", "250")),
                     Overloaded, 0.25, id="with its pushback"),
        pytest.param((("grpc-retry-pushback-ms", "-1"),), Unavailable, None, id="not to retry"),
        pytest.param((("grpc-retry-pushback-ms", "soon"),), Unavailable, None, id="nonsense"),
    ],
)  # fmt: skip
def test_a_foreign_error_becomes_ours(
    trailing: tuple[tuple[str, str], ...], kind: type[EmbedKeepError], retry_after_s: float | None
) -> None:
    foreign = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE,
        initial_metadata=grpc.aio.Metadata(),
        trailing_metadata=grpc.aio.Metadata(*trailing),
        details="the details",
    )

    ours = error_of(foreign, target="host:1")

    assert type(ours) is kind
    assert isinstance(ours, Unavailable | Overloaded)
    assert ours.retry_after_s == retry_after_s
    assert str(ours) == "host:1: the details"
    assert ours.__cause__ is foreign


def test_a_message_that_grpc_finds_too_large_is_no_full_queue() -> None:
    foreign = grpc.aio.AioRpcError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        initial_metadata=grpc.aio.Metadata(),
        trailing_metadata=grpc.aio.Metadata(),
        details="SERVER: Received message larger than max (1048577 vs. 1048576)",
    )

    assert type(error_of(foreign, target="host:1")) is InvalidRequest


def test_limits_of_nothing_are_refused() -> None:
    info = FakeNode().described()
    info.max_inputs = 0

    with pytest.raises(InvalidResponse, match="max_inputs is 0"):
        info_of(info)
