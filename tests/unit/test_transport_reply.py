"""Reading an answer off a connection: however it is cut, it is the same answer."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep.client.transports.reply import MAX_HEAD_BYTES, Reply, ReplyReader
from embedkeep.errors import InvalidResponse

MOST = 1 << 20


def feed(reader: ReplyReader, data: bytes, cuts: list[int] | None = None) -> Reply | None:
    """Give *data* in pieces of these lengths, the last again and again."""
    reply = None
    lengths = iter(cuts or [])
    length = len(data)
    while data:
        room = reader.room()
        assert len(room) > 0
        length = max(1, next(lengths, length))
        piece = data[: min(length, len(room))]
        room[: len(piece)] = piece
        reply = reader.received(len(piece))
        data = data[len(piece) :]
    return reply


def answer(body: bytes, *, chunks: list[int] | None = None, extra: bytes = b"") -> bytes:
    head = b"HTTP/1.1 200 OK\r\nServer: x\r\n" + extra
    if chunks is None:
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    coded, rest = b"", body
    for size in chunks:
        piece, rest = rest[:size], rest[size:]
        coded += b"%x;a=b\r\n%b\r\n" % (len(piece), piece) if piece else b""
    coded += b"%X\r\n%b\r\n" % (len(rest), rest) if rest else b""
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + coded + b"0\r\nX: y\r\n\r\n"


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
BODIES = st.one_of(
    st.binary(max_size=300), st.integers(0, 3 * MAX_HEAD_BYTES).map(lambda size: b"\r\n" * size)
)


@given(
    body=BODIES,
    cuts=st.lists(st.integers(1, 70_000), max_size=8),
    chunks=st.none() | st.lists(st.integers(1, 100_000), max_size=5),
    interim=st.booleans(),
)
def test_an_answer_is_the_same_however_it_is_cut(
    body: bytes, cuts: list[int], chunks: list[int] | None, *, interim: bool
) -> None:
    reader = ReplyReader(most=MOST)
    data = answer(body, chunks=chunks)
    if interim:
        data = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + data

    for _ in range(2):  # a connection is asked again
        reader.begin()
        assert not reader.begun
        reply = feed(reader, data, cuts)

        assert reply is not None
        assert (reply.status, reply.headers["server"], bytes(reply.body)) == (200, "x", body)
        assert reply.reusable


@given(body=BODIES, chunks=st.none() | st.just([100]), missing=st.integers(1, 20))
def test_what_is_not_whole_is_no_answer_yet(
    body: bytes, chunks: list[int] | None, missing: int
) -> None:
    reader = ReplyReader(most=MOST)

    assert feed(reader, answer(body, chunks=chunks)[:-missing]) is None or len(body) == 0
    assert reader.begun


@pytest.mark.parametrize(
    "data",
    [
        answer(b"a", extra=b"Connection: close\r\n"),
        answer(b"a").replace(b"1.1", b"1.0"),
        answer(b"a") + b"HTTP/1.1 200",
    ],
    ids=["it says so", "HTTP/1.0", "more comes than was asked for"],
)
def test_a_connection_that_is_not_to_be_asked_again_is_known(data: bytes) -> None:
    reply = feed(ReplyReader(most=MOST), data)

    assert reply is not None
    assert not reply.reusable


def test_a_refusal_that_does_not_say_how_long_it_is_keeps_its_status() -> None:
    reply = feed(ReplyReader(most=MOST), b"HTTP/1.0 503 Service Unavailable\r\n\r\n<html>")

    assert reply is not None
    assert (reply.status, reply.reusable) == (503, False)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\r\n\r\n", "is it the node's gRPC port"),
        (b"\x15\x03\x01\x00\x02\x02\x16", "speaks TLS: write https://"),
        (b"HTTP/2 200 OK\r\n\r\n", "does not answer as HTTP/1.1"),
        (b"HTTP/1.1 abc\r\n\r\n", "does not answer as HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "does not say how long"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "does not say how long"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1048577\r\n\r\n", "at most 1048576"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n", "no chunk's size"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc", "longer than it says"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffff1\r\n", "at most 1048576"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"0" * 5000, "does not say"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "does not say"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\ncontent-length: 1\r\n\r\n", "'gzip'"),
        (CHUNKED + b"-5\r\nabcdefgh\r\n", "no chunk's size"),
        (CHUNKED + b"1_0\r\n", "no chunk's size"),
        (CHUNKED + b"0000000000000000f\r\n", "no chunk's size"),
        (CHUNKED + b"0\r\n" + b"x: y\r\n" * MAX_HEAD_BYTES, "more than 65536 bytes end"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"x" * MAX_HEAD_BYTES, "more than 65536"),
    ],
)
def test_what_is_no_answer_is_refused_and_says_why(data: bytes, said: str) -> None:
    with pytest.raises(InvalidResponse, match=said):
        feed(ReplyReader(most=MOST), data)


@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(1, 50), max_size=5))
def test_any_bytes_are_an_answer_a_refusal_or_too_few(data: bytes, cuts: list[int]) -> None:
    for prefix in (b"", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"):
        with contextlib.suppress(InvalidResponse):
            feed(ReplyReader(most=100), prefix + data, cuts)
