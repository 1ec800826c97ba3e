"""What no caller can see of a connection's protocol: when it reads on, and when it gives up."""

import asyncio
from collections.abc import Mapping

import pytest

from embedkeep.node.http.connect import Body, Reply
from embedkeep.node.http.entrance import Entrances
from embedkeep.node.http.plain import MOST_BYTES

PATH = "/embedkeep.v1.EmbeddingCache/Embed"
CALL = (
    f"POST {PATH} HTTP/1.1\r\nhost: docs\r\ncontent-type: application/proto\r\n"
    "content-length: 1000\r\n\r\n"
).encode() + bytes(1000)


class Wire(asyncio.Transport):
    """Remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = True
        self.aborted = False
        self.sent = 0

    def is_closing(self) -> bool:
        return self.aborted

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def writelines(self, _data: object) -> None:
        self.sent += 1

    def set_protocol(self, _protocol: asyncio.BaseProtocol) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


class Answering:
    """Answers each call once it is let."""

    paths = frozenset({PATH})

    def __init__(self) -> None:
        self.permits = asyncio.Semaphore(0)
        self.answered = asyncio.Semaphore(0)

    async def answer(self, _path: str, _said: Mapping[str, str], _body: Body) -> Reply:
        await self.permits.acquire()
        self.answered.release()
        return Reply(headers={}, body=b"")


class Other(asyncio.Protocol):
    """Takes one piece, and reads no more."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, Wire)
        self.wire = transport
        self.came = b""

    def data_received(self, data: bytes) -> None:
        self.came += data
        self.wire.pause_reading()


async def test_what_is_sent_ahead_of_answers_is_bounded() -> None:
    wire, answering = Wire(), Answering()
    entrance = Entrances(answering, Other)()
    assert isinstance(entrance, asyncio.Protocol)
    entrance.connection_made(wire)
    calls = 4 * MOST_BYTES // len(CALL)
    entrance.data_received(CALL * calls)

    read_again_after = []
    for number in range(calls):
        if wire.reads:
            read_again_after.append(calls - number)
        answering.permits.release()
        await answering.answered.acquire()
        await asyncio.sleep(0)

    assert wire.sent == calls
    assert max(read_again_after[1:]) * len(CALL) <= MOST_BYTES + len(CALL)


async def test_a_call_that_ends_without_an_answer_ends_its_connection() -> None:
    class Failing(Answering):
        async def answer(self, _path: str, _said: Mapping[str, str], _body: Body) -> Reply:
            raise asyncio.CancelledError

    wire = Wire()
    entrance = Entrances(Failing(), Other)()
    entrance.connection_made(wire)

    entrance.data_received(CALL)
    await asyncio.sleep(0)

    assert wire.aborted
    assert wire.sent == 0


@pytest.mark.parametrize("before", [b"", CALL])
async def test_another_protocol_gets_all_that_came_and_reads_when_it_wants(before: bytes) -> None:
    wire, answering, other = Wire(), Answering(), Other()
    entrance = Entrances(answering, lambda: other)()
    entrance.connection_made(wire)
    answering.permits.release()

    entrance.data_received(before + b"GET / HTTP/1.1\r\n")
    for _ in range(5):
        await asyncio.sleep(0)

    assert other.came == b"GET / HTTP/1.1\r\n"
    assert not wire.reads
