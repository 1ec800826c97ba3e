import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import hiredis
import pytest

from embedkeep.errors import Unavailable
from embedkeep.node.connection import Address, Connection, connect
from support.valkey import Valkey, free_port, valkey

WAIT_S = 30.0
"""For what must happen; a test that needs it all has failed."""


class Link:
    """A connection, and whether it was lost."""

    def __init__(self, connection: Connection, lost: asyncio.Queue[None]) -> None:
        self.connection = connection
        self.pipeline = connection.pipeline
        self._lost = lost

    async def until_lost(self) -> None:
        """Wait for the word that it is lost, and see that it came once."""
        await asyncio.wait_for(self._lost.get(), WAIT_S)
        assert self._lost.empty()
        self._lost.put_nowait(None)


def address(
    port: int, *, password: str | None = None, username: str | None = None, host: str = "127.0.0.1"
) -> Address:
    passwords = (password,) if password is not None else ()
    return Address(
        host=host, port=port, username=username, passwords=passwords, tls=None, server_name=None
    )


@asynccontextmanager
async def linked(
    target: Address, *, stall_s: float = WAIT_S, max_waiting_bytes: int = 1 << 20
) -> AsyncIterator[Link]:
    """A connection while the block runs."""
    lost = asyncio.Queue[None]()
    connection = await connect(
        target,
        on_lost=lambda: lost.put_nowait(None),
        stall_s=stall_s,
        max_waiting_bytes=max_waiting_bytes,
    )
    link = Link(connection, lost)
    try:
        yield link
    finally:
        connection.close()
        await link.until_lost()


@pytest.fixture
async def link(store: Valkey) -> AsyncIterator[Link]:
    """A connection to an empty Valkey."""
    async with linked(address(store.port)) as made:
        yield made


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey that the test may harm."""
    with valkey(tmp_path) as server:
        yield server


async def test_replies_come_in_the_order_of_the_commands(link: Link) -> None:
    binary = bytes(range(256))

    replies = await link.pipeline(
        [("SET", b"k", binary, "EX", 100), ("GET", "k"), ("TTL", "k"), ("GET", "gone")]
    )

    assert replies == [b"OK", binary, 100, None]
    assert link.connection.waiting_bytes == 0


async def test_many_callers_each_get_their_own_replies(link: Link) -> None:
    await link.pipeline([("SET", f"k{n}", f"v{n}" * n) for n in range(200)])

    answers = await asyncio.gather(
        *(link.pipeline([("GET", f"k{n}"), ("STRLEN", f"k{n}")]) for n in range(200))
    )

    assert answers == [[f"v{n}".encode() * n, len(f"v{n}") * n] for n in range(200)]


async def test_one_commands_error_is_a_value_among_the_others(link: Link) -> None:
    replies = await link.pipeline(
        [("RPUSH", "list", "x"), ("GET", "list"), ("NONSENSE",), ("LRANGE", "list", 0, -1)]
    )

    assert replies[0] == 1
    assert isinstance(replies[1], hiredis.HiredisError)
    assert "WRONGTYPE" in str(replies[1])
    assert isinstance(replies[2], hiredis.HiredisError)
    assert replies[3] == [b"x"]


async def test_no_commands_take_nobodys_reply(link: Link) -> None:
    first = link.pipeline([])
    second = link.pipeline([("ECHO", "mine")])

    assert await asyncio.wait_for(first, WAIT_S) == []
    assert await second == [b"mine"]


async def test_replies_for_a_caller_that_left_reach_nobody_else(
    mortal: Valkey,
) -> None:
    """Cancelled commands still have replies on the wire: they must be counted off."""
    async with linked(address(mortal.port)) as link:
        mortal.pause()
        left = [link.pipeline([("ECHO", f"left {n}"), ("ECHO", "too")]) for n in range(10)]
        stayed = [link.pipeline([("ECHO", f"stayed {n}")]) for n in range(10)]
        for future in left:
            future.cancel()
        mortal.resume()

        answers = await asyncio.gather(*stayed)
        after = await link.pipeline([("ECHO", "after")])

    assert answers == [[f"stayed {n}".encode()] for n in range(10)]
    assert after == [b"after"]
    assert link.connection.waiting_bytes == 0


async def test_no_more_is_written_than_may_wait(mortal: Valkey) -> None:
    async with linked(address(mortal.port), max_waiting_bytes=10_000) as link:
        mortal.pause()
        taken = [link.pipeline([("SET", f"k{n}", b"x" * 1000)]) for n in range(9)]
        with pytest.raises(Unavailable, match="too much is waiting"):
            link.pipeline([("SET", "k9", b"x" * 1000)])
        assert 9_000 < link.connection.waiting_bytes <= 10_000
        mortal.resume()

        replies = await asyncio.gather(*taken)
        again = await link.pipeline([("DBSIZE",)])

    assert replies == [[b"OK"]] * 9
    assert again == [9]


async def test_a_server_that_stops_replying_is_left(mortal: Valkey) -> None:
    async with linked(address(mortal.port), stall_s=0.05) as link:
        mortal.pause()
        waiting = link.pipeline([("PING",)])
        await asyncio.wait([waiting], timeout=0.1)

        with pytest.raises(Unavailable, match=r"no reply for 0\.05 s"):
            link.pipeline([("PING",)])
        with pytest.raises(Unavailable, match="connection to Valkey was lost"):
            await waiting

        assert not link.connection.open


async def test_a_lost_connection_fails_all_that_wait_and_is_told_once(mortal: Valkey) -> None:
    async with linked(address(mortal.port)) as link:
        mortal.pause()
        waiting = [link.pipeline([("PING",)]) for _ in range(5)]

        mortal.kill()
        ended = await asyncio.gather(*waiting, return_exceptions=True)

        assert [type(each) for each in ended] == [Unavailable] * 5
        with pytest.raises(Unavailable, match="not connected"):
            link.pipeline([("PING",)])
        assert link.connection.waiting_bytes == 0
        await link.until_lost()


async def test_closing_fails_what_waits(mortal: Valkey) -> None:
    async with linked(address(mortal.port)) as link:
        mortal.pause()
        waiting = link.pipeline([("PING",)])

        link.connection.close()

        with pytest.raises(Unavailable):
            await waiting
        assert not link.connection.open


async def test_a_lost_connection_that_nobody_waits_for_is_no_unheard_error(
    mortal: Valkey,
) -> None:
    """Else asyncio would log one for each batch, when the future is collected."""
    heard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: heard.append(what))
    async with linked(address(mortal.port)) as link:
        mortal.pause()
        link.pipeline([("PING",)])
        mortal.kill()
        await link.until_lost()

    assert heard == []


@asynccontextmanager
async def answering(reply: bytes) -> AsyncIterator[int]:
    """A server that answers anything with *reply*; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(1 << 16):
                writer.write(reply)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="another protocol"),
        pytest.param(b"+OK\r\n+OK\r\n+OK\r\n", id="more replies than commands"),
    ],
)
async def test_what_does_not_answer_as_valkey_is_left(reply: bytes) -> None:
    heard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: heard.append(what))
    async with answering(reply) as port, linked(address(port)) as link:
        first = link.pipeline([("PING",)])
        await link.until_lost()

        assert not link.connection.open
        assert first.done()
        first.exception()
    assert heard == []


async def test_with_the_right_password_commands_are_answered(tmp_path: Path) -> None:
    server = Valkey(tmp_path)
    server.start(password="sesame")
    try:
        async with linked(address(server.port, password="sesame")) as plain:
            assert await plain.pipeline([("PING",)]) == [b"PONG"]
        async with linked(address(server.port, password="sesame", username="default")) as named:
            assert await named.pipeline([("PING",)]) == [b"PONG"]
    finally:
        server.kill()


@pytest.mark.parametrize("username", [None, "default", "nobody"])
async def test_a_wrong_password_is_said_and_not_shown(tmp_path: Path, username: str | None) -> None:
    server = Valkey(tmp_path)
    server.start(password="sesame")
    try:
        with pytest.raises(Unavailable, match="refuses the password") as refused:
            async with linked(address(server.port, password="open up", username=username)):
                pass
    finally:
        server.kill()

    assert f"127.0.0.1:{server.port}" in str(refused.value)
    assert "open up" not in str(refused.value)


async def test_nobody_listening_is_unavailable() -> None:
    port = free_port()

    with pytest.raises(Unavailable, match=f"127.0.0.1:{port}: "):
        async with linked(address(port)):
            pass


async def test_a_name_that_does_not_resolve_is_unavailable() -> None:
    with pytest.raises(Unavailable, match=r"valkey\.invalid:1: "):
        async with linked(address(1, host="valkey.invalid")):
            pass


async def test_a_server_that_hangs_while_the_password_is_checked_is_unavailable(
    mortal: Valkey,
) -> None:
    """The kernel accepts for it; only the missing reply tells."""
    mortal.pause()

    with pytest.raises(Unavailable, match="no answer"):
        async with linked(address(mortal.port, password="sesame")):
            pass


def test_an_address_in_a_log_shows_no_password() -> None:
    assert repr(address(6379, password="sesame")) == "127.0.0.1:6379"
