"""Connections that bring plain calls, and those that begin so and bring something else."""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from embedkeep.v1 import cache_pb2
from support.certificates import Authority
from support.node import WAIT_S, Node, node_config, running, sources
from support.tap import Tap, serve_tap

PATH = "/embedkeep.v1.EmbeddingCache/Embed"


def call(*texts: str, head: str = "") -> bytes:
    """A call as it is sent; plain unless *head* makes it something else."""
    body = cache_pb2.EmbedRequest(inputs=texts).SerializeToString()
    return (
        f"POST {PATH} HTTP/1.1\r\nhost: docs\r\ncontent-type: application/proto\r\n"
        f"{head}content-length: {len(body)}\r\n\r\n"
    ).encode() + body


pytestmark = pytest.mark.both_loops


@dataclass(frozen=True, slots=True)
class Line:
    """A connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answer(self) -> tuple[bytes, bytes]:
        """The next answer's head and body."""
        async with asyncio.timeout(WAIT_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            return head, await self.reader.readexactly(length)

    async def found(self) -> list[str]:
        """Where the next answer's rows came from."""
        head, body = await self.answer()
        assert head.startswith(b"http/1.1 200 ")
        return list(sources(cache_pb2.EmbedResponse.FromString(body)))

    async def end(self) -> bytes:
        """What comes until the node closes it."""
        async with asyncio.timeout(WAIT_S):
            return await self.reader.read()


@asynccontextmanager
async def connected(node: Node) -> AsyncIterator[Line]:
    reader, writer = await asyncio.open_connection("127.0.0.1", node.http_port)
    try:
        yield Line(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_calls_are_answered_in_their_order_while_the_next_ones_wait(
    node: Node,
) -> None:
    async with connected(node) as line:
        line.writer.write(call("a") + call("a", "b") + call("b"))

        assert await line.found() == ["embedder"]
        assert await line.found() == ["l1", "embedder"]
        assert await line.found() == ["l1"]


async def test_any_request_may_follow_a_plain_call_and_the_other_way_round(node: Node) -> None:
    openai = json.dumps({"model": "docs", "input": "a"}).encode()
    async with connected(node) as line:
        line.writer.write(
            call("a")
            + b"POST /v1/embeddings HTTP/1.1\r\nhost: docs\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n"
            % len(openai)
            + openai
            + call("a", head="connection: keep-alive\r\n")
            + call("a")
        )

        assert await line.found() == ["embedder"]
        head, body = await line.answer()
        assert b"x-embedkeep-sources: l1=1" in head
        assert json.loads(body)["object"] == "list"
        assert await line.found() == ["l1"]
        assert await line.found() == ["l1"]


@pytest.mark.parametrize("before", ["nothing", "a call"])
async def test_a_call_that_comes_byte_by_byte_is_answered(node: Node, before: str) -> None:
    async with connected(node) as line:
        if before == "a call":
            line.writer.write(call("a"))
            await line.found()
        for byte in call("b"):
            line.writer.write(bytes([byte]))
            await line.writer.drain()
            await asyncio.sleep(0)

        assert await line.found() == ["embedder"]


@pytest.mark.parametrize("pause", ["short", "long"])
async def test_a_body_may_come_later_than_its_head(
    tmp_path: Path, tap: Tap, monkeypatch: pytest.MonkeyPatch, pause: str
) -> None:
    """After a while the connection becomes aiohttp's, which waits for as long as it may take."""
    if pause == "long":
        monkeypatch.setattr("embedkeep.node.http.entrance.WHOLE_S", 0.0)
    async with (
        serve_tap(tap) as port,
        running(node_config(tmp_path, port)) as node,
        connected(node) as line,
        connected(node) as beside,
    ):
        whole = call("a")
        line.writer.write(whole[:-2])
        beside.writer.write(call("b"))  # once it is answered, the first was looked at
        await beside.found()
        line.writer.write(whole[-2:])

        assert await line.found() == ["embedder"]


@pytest.mark.parametrize(
    "sent", [b"POST", b"GET / HTTP/1.1\r\nhos", call("a") + b"GET / HTTP/1.1\r\nhos"]
)
async def test_a_head_that_does_not_end_is_not_waited_for(
    tmp_path: Path, tap: Tap, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr("embedkeep.node.http.server.HEADERS_S", 0.1)
    async with (
        serve_tap(tap) as port,
        running(node_config(tmp_path, port)) as node,
        connected(node) as line,
    ):
        line.writer.write(sent)

        assert (b"200 OK" in await line.end()) is (len(sent) > 100)


async def test_an_answer_may_take_longer_than_a_head(
    tmp_path: Path, tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedkeep.node.http.server.HEADERS_S", 0.1)
    async with (
        serve_tap(tap) as port,
        running(node_config(tmp_path, port)) as node,
        connected(node) as line,
    ):
        tap.gate.clear()
        line.writer.write(call("a", head="te: trailers\r\n"))
        await tap.entered.get()
        await asyncio.sleep(0.2)  # twice the time of a head
        tap.gate.set()

        assert await line.found() == ["embedder"]


async def test_a_call_of_a_stranger_or_without_sense_is_refused(node: Node) -> None:
    async with connected(node) as line:
        line.writer.write(
            call() + call("a", head="connect-timeout-ms: soon\r\n") + call("a", head="te: x\r\n")
        )

        for said in (b"none were given", b"'soon'"):
            head, body = await line.answer()
            assert head.startswith(b"http/1.1 400 bad request\r\n")
            assert b"x-embedkeep-reason: invalidrequest" in head
            assert said in body
        assert await line.found() == ["embedder"]


async def test_a_bug_is_a_500_without_a_traceback(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedkeep.node.unary.encode", lambda *_: 1 / 0)
    async with connected(node) as line:
        line.writer.write(call("a") + call("b"))

        for _ in range(2):
            head, body = await line.answer()
            assert head.startswith(b"http/1.1 500 ")
            assert json.loads(body)["message"] == "the node failed; its log says why"


async def test_a_caller_that_reads_nothing_is_given_up(
    tmp_path: Path, tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedkeep.node.http.entrance.READ_S", 0.2)
    loop = asyncio.get_running_loop()
    async with serve_tap(tap) as port, running(node_config(tmp_path, port)) as node:
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.settimeout(0)
            await loop.sock_connect(deaf, ("127.0.0.1", node.http_port))

            async def talk() -> None:
                while True:
                    await loop.sock_sendall(deaf, call(*map(str, range(500))))

            with pytest.raises(ConnectionError):
                await asyncio.wait_for(talk(), WAIT_S)


async def test_a_stopping_node_closes_what_is_idle_and_answers_what_is_not(
    tmp_path: Path, tap: Tap
) -> None:
    async with (
        serve_tap(tap) as port,
        running(node_config(tmp_path, port)) as node,
        connected(node) as idle,
        connected(node) as busy,
        connected(node) as begun,
    ):
        idle.writer.write(call("a"))
        await idle.found()
        tap.gate.clear()
        begun.writer.write(call("c")[:-1])
        busy.writer.write(call("b"))
        await tap.entered.get()
        await tap.entered.get()
        node.stop.set()

        assert await idle.end() == b""
        tap.gate.set()
        begun.writer.write(call("c")[-1:])
        for line in (busy, begun):
            head, _ = await line.answer()
            assert head.startswith(b"http/1.1 200 ")
            assert b"connection: close" in head
            assert await line.end() == b""


async def test_an_idle_connection_over_tls_does_not_hold_up_the_end(
    tmp_path: Path, tap: Tap
) -> None:
    """Its other side may never say that it has heard of the end."""
    authority = Authority(tmp_path / "authority")
    pair = authority.issue()
    tls = {"cert_file": str(pair.cert_file), "key_file": str(pair.key_file)}
    context = ssl.create_default_context(cafile=str(authority.ca_file))

    def deaf(port: int) -> ssl.SSLSocket:
        wire = socket.create_connection(("127.0.0.1", port))
        made = context.wrap_socket(wire, server_hostname="127.0.0.1")
        made.sendall(call("a"))
        assert made.recv(100).startswith(b"HTTP/1.1 ")  # whatever it is
        return made

    async with serve_tap(tap) as port:
        config = node_config(tmp_path, port, tls=tls, drain_s=2 * WAIT_S)
        async with running(config, ready=False) as node:
            wire = await asyncio.to_thread(deaf, node.http_port)
            ends_s = asyncio.get_running_loop().time() + WAIT_S
        wire.close()

    assert asyncio.get_running_loop().time() < ends_s


async def test_what_does_not_end_is_cut_off_when_the_drain_is_over(
    tmp_path: Path, tap: Tap
) -> None:
    async with serve_tap(tap) as port:
        tap.gate.clear()
        async with (
            running(node_config(tmp_path, port, drain_s=0.2)) as node,
            connected(node) as line,
        ):
            line.writer.write(call("a"))
            await tap.entered.get()
            node.stop.set()

            assert await line.end() == b""
