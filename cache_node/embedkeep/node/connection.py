"""One connection to Valkey that carries many commands at once and is never waited for in vain.

Each `pipeline` call writes all its commands in one go and gets one future for all replies. A
caller whose time is up just goes: its replies are read and thrown away when they come. Nothing
is ever cancelled on the wire, so replies cannot slip to the wrong caller. If they stop coming
altogether, the connection is dropped.

RESP2 through hiredis, which parses and packs in C.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

import hiredis

from embedkeep.config import ValkeyTarget
from embedkeep.errors import InvalidConfig, Unavailable

Reply = bytes | int | None | hiredis.HiredisError | list["Reply"]
"""What RESP2 holds; errors are values, since one command's failure is not the pipeline's."""

Command = tuple[bytes | str | int | float, ...]

CONNECT_TIMEOUT_S: Final = 1.0
FEED_BYTES: Final = 1 << 13
"""Given to hiredis at once: with each reply it moves up all that it still holds."""
_NOTHING = object()


@dataclass(slots=True, eq=False)
class _Batch:
    """Commands written together, and what has come back of them."""

    expected: int
    nbytes: int
    written_at: float
    done: asyncio.Future[list[Reply]]
    replies: list[Reply] = field(default_factory=list)


class Connection(asyncio.Protocol):
    """A connected, authenticated pipeline.

    Args:
        on_lost: Called once, when the connection ends for whatever reason.
        stall_s: Age of the oldest unanswered batch at which the peer counts as gone.
        max_waiting_bytes: Written and not yet answered; beyond it `pipeline` refuses.
    """

    def __init__(
        self, *, on_lost: Callable[[], None], stall_s: float, max_waiting_bytes: int
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._waiting: deque[_Batch] = deque()
        self._waiting_bytes = 0
        self._transport: asyncio.Transport | None = None
        self._on_lost = on_lost
        self._stall_s = stall_s
        self._max_waiting_bytes = max_waiting_bytes

    @property
    def open(self) -> bool:
        """Commands can be written."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def waiting_bytes(self) -> int:
        """Written and not yet answered."""
        return self._waiting_bytes

    def pipeline(self, commands: Sequence[Command]) -> asyncio.Future[list[Reply]]:
        """Write *commands*; the future gets their replies, in order.

        The future may be cancelled at any time: its replies are then thrown away as they come. It
        fails with Unavailable when the connection is lost.

        Raises:
            Unavailable: Not connected, stalled, or too much is waiting already. Nothing was sent.
        """
        data = b"".join(
            [
                hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub knows 1-tuples only
                for command in commands
            ]
        )
        return self.send(data, len(commands))

    def send(self, data: bytes, expected: int) -> asyncio.Future[list[Reply]]:
        """As `pipeline`, of commands that are packed already and get *expected* replies."""
        if self._transport is None or self._transport.is_closing():
            raise Unavailable("not connected")
        if not expected:
            # A batch that no reply completes would take the next one's.
            nothing: asyncio.Future[list[Reply]] = self._loop.create_future()
            nothing.set_result([])
            return nothing
        now = self._loop.time()
        if self._waiting and now - self._waiting[0].written_at > self._stall_s:
            self._transport.abort()
            raise Unavailable(f"no reply for {self._stall_s:g} s")
        if self._waiting_bytes + len(data) > self._max_waiting_bytes:
            raise Unavailable("too much is waiting to be written")
        batch = _Batch(expected, len(data), now, self._loop.create_future())
        # A caller that left does not hear of a lost connection: that is no unheard error.
        batch.done.add_done_callback(_heard)
        self._waiting.append(batch)
        self._waiting_bytes += len(data)
        self._transport.write(data)
        return batch.done

    def close(self) -> None:
        """Drop the connection; what is waiting fails."""
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Hand each reply to the batch it answers."""
        reader = self._reader
        try:
            for start in range(0, len(data), FEED_BYTES):
                reader.feed(data, start, min(FEED_BYTES, len(data) - start))
                while (reply := reader.gets()) is not _NOTHING:
                    self._replied(cast("Reply", reply))
        except (hiredis.ProtocolError, IndexError):
            # Whatever is at the other end, it does not answer what was asked.
            self.close()

    def _replied(self, reply: Reply) -> None:
        batch = self._waiting[0]
        batch.replies.append(reply)
        if len(batch.replies) == batch.expected:
            self._waiting.popleft()
            self._waiting_bytes -= batch.nbytes
            if not batch.done.done():
                batch.done.set_result(batch.replies)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Fail what is waiting."""
        self._transport = None
        self._waiting_bytes = 0
        while self._waiting:
            done = self._waiting.popleft().done
            if not done.done():
                done.set_exception(Unavailable("the connection to Valkey was lost"))
        self._on_lost()


async def in_time(asked: asyncio.Future[list[Reply]], timeout_s: float) -> list[Reply]:
    """Wait for replies; what has come while this process was busy elsewhere is in time.

    Raises:
        TimeoutError: Nothing came; whatever comes now is thrown away.
        Unavailable: The connection was lost.
    """
    timer = asked.get_loop().call_later(timeout_s, _give_up, asked, 2)
    try:
        return await asked
    finally:
        timer.cancel()


def _give_up(asked: asyncio.Future[list[Reply]], looks: int) -> None:
    """End *asked* where the sockets were looked at so often since and still nothing came."""
    if asked.done():
        return
    if looks:  # the timer may have fired late, before the socket was looked at: look now
        asked.get_loop().call_soon(_give_up, asked, looks - 1)
    else:
        asked.set_exception(TimeoutError())


def _heard(done: asyncio.Future[list[Reply]]) -> None:
    if not done.cancelled():
        done.exception()


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where Valkey is and what it wants to see."""

    host: str
    port: int
    username: str | None
    passwords: tuple[str, ...]
    """Tried in this order. Empty: no AUTH is sent."""
    tls: ssl.SSLContext | None
    server_name: str | None

    def __repr__(self) -> str:
        """Without the passwords."""
        return f"{self.host}:{self.port}"


def read_address(target: ValkeyTarget) -> Address:
    """*target* with its secrets read.

    Raises:
        Unavailable: A file cannot be read now; it may be mounted later.
        InvalidConfig: A file is not what it should be.
    """
    try:
        passwords = (
            tuple(filter(None, map(str.strip, target.password_file.read_text().splitlines())))
            if target.password_file is not None
            else ()
        )
        context = None
        if target.tls is not None:
            context = ssl.create_default_context(cafile=target.tls.ca_file)
            if target.tls.cert_file is not None:
                context.load_cert_chain(target.tls.cert_file, target.tls.key_file)
    except ssl.SSLError as error:
        raise InvalidConfig(f"no usable certificate: {error}", field="valkey.tls") from error
    except UnicodeDecodeError as error:
        raise InvalidConfig(
            f"{target.password_file} is no text", field="valkey.password_file"
        ) from error
    except OSError as error:
        raise Unavailable(f"valkey: {error.filename}: {error.strerror}") from error
    return Address(
        host=target.host,
        port=target.port,
        username=target.username,
        passwords=passwords,
        tls=context,
        server_name=target.tls.server_name if target.tls is not None else None,
    )


async def connect(
    address: Address, *, on_lost: Callable[[], None], stall_s: float, max_waiting_bytes: int
) -> Connection:
    """Connect and authenticate, within a second.

    Raises:
        Unavailable: No connection, or the password is refused.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, connection = await loop.create_connection(
                lambda: Connection(
                    on_lost=on_lost, stall_s=stall_s, max_waiting_bytes=max_waiting_bytes
                ),
                address.host,
                address.port,
                ssl=address.tls,
                server_hostname=(address.server_name or address.host) if address.tls else None,
            )
            if address.passwords:
                await _authenticate(connection, address)
    except (OSError, TimeoutError) as error:
        raise Unavailable(f"{address}: {str(error) or 'no answer'}") from error
    return connection


async def _authenticate(connection: Connection, address: Address) -> None:
    """Show each password until one is accepted: during a rotation there are two."""
    user = (address.username,) if address.username else ()
    refusal: hiredis.HiredisError | None = None
    try:
        for password in address.passwords:
            (reply,) = await connection.pipeline([("AUTH", *user, password)])
            if not isinstance(reply, hiredis.HiredisError):
                return
            refusal = reply
    except BaseException:
        connection.close()
        raise
    connection.close()
    raise Unavailable(f"{address}: refuses the password: {refusal}")
