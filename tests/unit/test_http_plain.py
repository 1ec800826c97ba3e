"""Which requests are plain calls: whatever is taken for one means what HTTP says it means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep.client.transports.messages import Asking
from embedkeep.client.transports.origins import Origin
from embedkeep.node.http.plain import MOST_BYTES, Not, PlainCall, read
from embedkeep.v1 import cache_pb2

EMBED = "/embedkeep.v1.EmbeddingCache/Embed"
PATHS = frozenset({EMBED})
HEAD = (
    f"POST {EMBED} HTTP/1.1\r\nhost: docs:8080\r\nContent-Type: application/proto\r\n"
    "authorization:Bearer a: b\r\ncontent-length: 5\r\n"
)
WHOLE = f"{HEAD}\r\nhello".encode()


def test_a_plain_call_is_read_with_its_headers_and_its_body() -> None:
    call = read(WHOLE + b"POST and more", PATHS)

    assert call == PlainCall(
        EMBED,
        {
            "host": "docs:8080",
            "content-type": "application/proto",
            "authorization": "Bearer a: b",
            "content-length": "5",
        },
        b"hello",
        len(WHOLE),
    )


@pytest.mark.parametrize(
    "request_",
    [
        cache_pb2.EmbedRequest(inputs=["a"] * 128),
        cache_pb2.InfoRequest(),
        cache_pb2.InvalidateRequest(everything=True),
        cache_pb2.ImportRequest(inputs=["a"]),
    ],
)
@pytest.mark.parametrize("host", ["docs", "127.0.0.1", "::1"])
def test_what_our_own_client_sends_is_plain(
    request_: "cache_pb2.EmbedRequest | cache_pb2.InfoRequest", host: str
) -> None:
    body = request_.SerializeToString()
    metadata = (("authorization", "Bearer sk-1"), ("traceparent", "00-a-b-01"))
    asking = Asking(Origin(secure=False, host=host, port=80))
    head = asking.head(request_, metadata, timeout_s=3.0, length=len(body))
    path = head.split()[1].decode()

    call = read(head + body, frozenset({path}))

    assert isinstance(call, PlainCall)
    assert call.body == body
    assert call.headers.items() >= dict(metadata).items()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("POST", "GET", id="another method"),
        pytest.param("Embed ", "Other ", id="no path that is called"),
        pytest.param("Embed ", "Embed?a=b ", id="a query"),
        pytest.param("/embedkeep", "http://docs/embedkeep", id="an absolute path"),
        pytest.param("HTTP/1.1", "HTTP/1.0", id="an old version"),
        pytest.param("HTTP/1.1", "HTTP/2.0", id="a new version"),
        pytest.param("host: docs:8080\r\n", "", id="no host"),
        pytest.param("content-length: 5\r\n", "", id="no length"),
        pytest.param("Content-Type: application/proto\r\n", "", id="no type"),
        pytest.param("/proto", "/json", id="another type"),
        pytest.param("/proto", "/proto; charset=utf-8", id="a type with parameters"),
        pytest.param(": 5", ": +5", id="a signed length"),
        pytest.param(": 5", ": 05", id="a length with zeros"),
        pytest.param(": 5", ": 5, 5", id="a length twice in a line"),
        pytest.param(": 5", f": {MOST_BYTES}", id="a large body"),
        pytest.param(": 5", f": {'9' * 40}", id="a huge length"),
        pytest.param("length: 5\r\n", "length: 5\r\nContent-Length: 5\r\n", id="a length twice"),
        pytest.param("host", "traceparent: a\r\nTraceparent: b\r\nhost", id="a name twice"),
        pytest.param("host", "transfer-encoding: chunked\r\nhost", id="chunks"),
        pytest.param("host", "Content-Encoding: gzip\r\nhost", id="a coding"),
        pytest.param("host", "expect: 100-continue\r\nhost", id="an expectation"),
        pytest.param("host", "connection: close\r\nhost", id="a wish for the connection"),
        pytest.param("host", "Proxy-Connection: close\r\nhost", id="the same for a proxy"),
        pytest.param("Bearer", "b" * 9000, id="a long head"),
        pytest.param("host", "upgrade: h2c\r\nhost", id="an upgrade"),
        pytest.param("Bearer", "\r\n Bearer", id="a value over two lines"),
        pytest.param("authorization:", "authorization :", id="a space before the colon"),
        pytest.param("authorization:", "autho rization:", id="a space in a name"),
        pytest.param("authorization:", ":", id="no name"),
        pytest.param("authorization:Bearer a: b", "authorization", id="no colon"),
        pytest.param("authorization:Bearer a: b", "authorization:", id="no value"),
        pytest.param("Bearer", "B\x00arer", id="a zero byte"),
        pytest.param("Bearer", "B\rarer", id="a bare carriage return"),
        pytest.param("Bearer", "B\narer", id="a bare line feed"),
        pytest.param("Bearer", "B\xe4rer", id="no ASCII"),
        pytest.param(" HTTP", "  HTTP", id="two spaces"),
        pytest.param("\r\n", "\n", id="line feeds only"),
    ],
)
def test_what_is_not_plain_is_left_to_another(old: str, new: str) -> None:
    assert old in HEAD

    assert read(f"{HEAD.replace(old, new)}\r\nhello".encode("latin-1"), PATHS) is Not.EVER


@given(st.integers(0, len(WHOLE) - 1))
def test_a_part_is_never_taken_for_the_whole(count: int) -> None:
    """Its first line may still become a call's; a head in pieces never does."""
    begun = count <= len("POST /embedkeep.v1.EmbeddingCache/")
    in_body = count >= len(HEAD) + 2

    assert read(WHOLE[:count], PATHS) is (Not.YET if begun or in_body else Not.EVER)


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_a_changed_byte_changes_what_it_changes_and_nothing_else(at: int, byte: int) -> None:
    changed = bytearray(WHOLE)
    changed[at] = byte

    call = read(bytes(changed), PATHS)

    if isinstance(call, PlainCall):
        head, _, body = bytes(changed).partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        said = dict(line.split(":", 1) for line in lines[1:])
        assert lines[0] == f"POST {call.path} HTTP/1.1"
        assert call.headers == {name.lower(): said[name].strip() for name in said}
        assert call.body == body[: int(call.headers["content-length"])]
        assert call.size == len(head) + 4 + len(call.body)
