"""What only connections of HTTP show: those that were closed, cut, shared, or lead elsewhere."""

import asyncio
import contextlib
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from embedkeep import Retries
from embedkeep.errors import (
    DeadlineExceeded,
    InvalidRequest,
    InvalidResponse,
    NotBuilt,
    Unavailable,
)
from support.clients import AsyncOverHttp, Kind, ThreadedOverHttp
from support.fake_node import FakeNode, running, vector_of
from support.valkey import free_port

WAIT_S = 30.0
ONCE = Retries(max_attempts=1)
CLOSE = b"close"
"""Among answers: the connection ends here."""

pytestmark = pytest.mark.parametrize("kind", [AsyncOverHttp, ThreadedOverHttp])


@asynccontextmanager
async def answering(answers: Iterable[bytes]) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that says *answers*, one a request; yields its URL and the heads it has read."""
    heads: list[bytes] = []
    left = iter(answers)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                heads.append(head)
                answer = next(left)
                writer.write(answer.removesuffix(CLOSE))
                if answer.endswith(CLOSE):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads


def whole(body: bytes, *, kind: str = "application/proto") -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


INFO = FakeNode().described().SerializeToString()


async def test_a_connection_that_was_closed_between_two_calls_is_no_failure(kind: Kind) -> None:
    node = FakeNode()
    with running(node) as (place,):
        client = kind(place, retries=ONCE, timeout_s=WAIT_S)
        await client.embed(["a"])
    with running(node, again=[place]):
        vectors = await client.embed(["b"])
        await client.close()

    np.testing.assert_array_equal(vectors[0], vector_of("b"))


async def test_a_connection_that_says_it_closes_is_not_asked_again(kind: Kind) -> None:
    last = whole(INFO).replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1) + CLOSE
    async with answering([last, whole(INFO)]) as (url, heads), kind(url, retries=ONCE) as client:
        await client.info()
        await client.info()

    assert len(heads) == 2


@pytest.mark.parametrize(
    "cut", [CLOSE, b"HTTP/1.1 200 OK\r\ncontent-" + CLOSE, whole(INFO)[:-5] + CLOSE],
    ids=["before it", "in its head", "in its body"],
)  # fmt: skip
async def test_a_connection_that_ends_before_its_answer_is_a_failure_that_may_pass(
    kind: Kind, cut: bytes
) -> None:
    async with answering([cut, cut, whole(INFO)]) as (url, heads):
        async with kind(url, retries=ONCE) as client:
            with pytest.raises(Unavailable, match="the connection was lost"):
                await client.info()
        async with kind(url, retries=Retries(first_pause_s=0.001)) as client:
            await client.info()

    assert len(heads) == 3


async def test_an_answer_that_drips_ends_with_the_calls_time(kind: Kind) -> None:
    async with answering([whole(INFO)[:-5]]) as (url, _), kind(url, timeout_s=0.3) as client:
        with pytest.raises(DeadlineExceeded, match=url):
            await client.info()


async def test_a_call_that_was_given_up_leaves_nothing_to_the_next(kind: Kind) -> None:
    node = FakeNode()
    with running(node) as (place,):
        async with kind(place, timeout_s=0.3) as client:
            await client.embed(["a"])
            node.hold = threading.Event()
            with pytest.raises(DeadlineExceeded):
                await client.embed(["late"])
            node.hold.set()
            vectors = await client.embed(["b"])

    np.testing.assert_array_equal(vectors[0], vector_of("b"))


async def test_what_came_unasked_answers_nothing(kind: Kind) -> None:
    stale = FakeNode(model="stale").described().SerializeToString()
    unasked = threading.Event()

    def talk(wire: socket.socket) -> None:
        with wire, contextlib.suppress(ConnectionError):
            while wire.recv(1 << 16):
                wire.sendall(whole(INFO))
                if not unasked.is_set():
                    time.sleep(0.05)  # else it is seen together with the answer
                    wire.sendall(whole(stale))
                    unasked.set()

    def serve(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        async with kind(f"http://127.0.0.1:{server.getsockname()[1]}", retries=ONCE) as client:
            await client.info()
            unasked.wait(WAIT_S)  # the loop reads nothing meanwhile
            assert (await client.info()).model == "org/model-a"


async def test_what_never_ends_ends_with_the_calls_time(kind: Kind) -> None:
    endless = b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(endless)
                await writer.drain()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, asyncio.timeout(WAIT_S), kind(url, timeout_s=0.3) as client:
        with pytest.raises(DeadlineExceeded):
            await client.info()


@pytest.mark.parametrize("timeout_s", [1e12, float("inf")])
async def test_any_time_may_be_given(kind: Kind, timeout_s: float) -> None:
    async with answering([whole(INFO)]) as (url, _), kind(url, timeout_s=timeout_s) as client:
        assert (await client.info()).model == "org/model-a"


async def test_a_gateway_that_answers_in_chunks_below_a_path_is_understood(kind: Kind) -> None:
    chunked = (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ntransfer-encoding: chunked\r\n\r\n"
        + b"".join(b"1\r\n%c\r\n" % byte for byte in INFO)
        + b"0\r\n\r\n"
    )
    async with answering([chunked, chunked]) as (url, heads), kind(f"{url}/docs/") as client:
        info = await client.info()
        again = await client.info()

    assert info == again
    assert info.model == "org/model-a"
    assert heads[0].startswith(b"POST /docs/embedkeep.v1.EmbeddingCache/Info HTTP/1.1\r\n")


async def test_what_is_no_node_is_said_to_be_none(kind: Kind) -> None:
    html = whole(b"<html>", kind="text/html")
    nothing = b"HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\nnot found"
    settings = b"\x00\x00\x06\x04" * 8 + b"\r\n\r\n"  # as HTTP/2 begins
    async with (
        answering([html, nothing, settings]) as (url, _),
        kind(url, retries=ONCE) as client,
    ):
        with pytest.raises(InvalidResponse, match="'text/html' instead of application/proto"):
            await client.info()
        with pytest.raises(NotBuilt, match="HTTP status 404: not found"):
            await client.info()
        with pytest.raises(InvalidResponse, match=rf"^{url}: .*does not answer as HTTP/1\.1"):
            await client.info()


async def test_while_one_node_is_away_the_other_answers_every_call(kind: Kind) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    node = FakeNode()
    with running(node) as (place,):
        async with kind([away, place.http], retries=ONCE) as client:
            for number in range(20):
                await client.embed([str(number)])

    assert node.texts == [str(number) for number in range(20)]


async def test_a_name_is_looked_up(kind: Kind) -> None:
    node = FakeNode()
    with running(node) as (place,):
        port = place.http.rpartition(":")[2]
        async with kind(f"http://localhost:{port}", retries=ONCE) as client:
            vectors = await client.embed(["a"])

    np.testing.assert_array_equal(vectors[0], vector_of("a"))


async def test_a_name_that_hangs_holds_up_no_call(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up, answer = socket.getaddrinfo, threading.Event()

    def hanging(host: str, *args: object, **how: int) -> object:
        if host == "hangs.test":
            answer.wait(WAIT_S)
            host = "127.0.0.1"
        return look_up(host, *args, **how)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    node = FakeNode()
    with running(node) as (place,):
        port = place.http.rpartition(":")[2]
        names = [f"http://hangs.test:{port}", f"http://localhost:{port}"]
        try:
            async with kind(names, retries=ONCE, timeout_s=WAIT_S / 3) as client:
                await client.embed(["a"])
        finally:
            answer.set()


async def test_a_call_that_waits_for_a_name_ends_with_its_client(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = threading.Event(), threading.Event()

    def hanging(*_args: object, **_how: int) -> list[object]:
        asked.set()
        answer.wait(WAIT_S)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    client = kind("http://hangs.test:80", retries=ONCE, timeout_s=WAIT_S / 3)
    try:
        call = asyncio.create_task(client.info())
        await asyncio.to_thread(asked.wait, WAIT_S)
        await client.close()
        with pytest.raises(Unavailable, match="closed"):
            await call
    finally:
        answer.set()


@pytest.mark.parametrize("name", ["nobody.invalid", "no..name", "x" * 70])
async def test_a_name_that_nobody_knows_is_named(kind: Kind, name: str) -> None:
    async with kind(f"http://{name}:80", retries=ONCE) as client:
        with pytest.raises(Unavailable, match=f"{re.escape(name)}.*cannot be looked up"):
            await client.info()


async def test_many_calls_at_once_get_their_own_answers(kind: Kind) -> None:
    with running(FakeNode()) as (place,):
        async with kind(place, timeout_s=WAIT_S) as client:
            batches = [[f"{caller} {number}" for number in range(7)] for caller in range(200)]
            answers = await asyncio.gather(*(client.embed(texts) for texts in batches))

    for texts, vectors in zip(batches, answers, strict=True):
        np.testing.assert_array_equal(vectors, [vector_of(text) for text in texts])


async def test_a_refusal_that_comes_before_all_was_sent_is_heard(kind: Kind) -> None:
    refusal = b'{"code": "invalid_argument", "message": "too much"}'
    answer = (
        b"HTTP/1.1 413 Content Too Large\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(refusal), refusal)
    )

    node = FakeNode(max_message_bytes=32 << 20, max_input_bytes=32 << 20)
    info = node.described().SerializeToString()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(whole(info) if b"/Info " in head else answer)
        await writer.drain()
        if b"/Info " not in head:
            await reader.readexactly(1 << 17)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with kind(url, retries=ONCE, timeout_s=WAIT_S) as client:
            with pytest.raises(InvalidRequest, match="too much"):
                await client.embed(["x" * (24 << 20)])
