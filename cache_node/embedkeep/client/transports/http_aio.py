"""HTTP for asyncio: connections that are kept, one for each request under way."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final, cast

from embedkeep.channels import CLOSED, Credentials
from embedkeep.client.exchange import Metadata, Request, Response
from embedkeep.client.transports import pooling
from embedkeep.client.transports.messages import MAX_RECEIVE_BYTES, Asking, answer_of
from embedkeep.client.transports.origins import Origin
from embedkeep.client.transports.pooling import Kept, Lost, Pool
from embedkeep.client.transports.reply import Reply, ReplyReader
from embedkeep.client.transports.rotation import Address, Rotation
from embedkeep.errors import InvalidResponse, Unavailable

MAX_CONNECTIONS: Final = 128
"""Of one client, so that many calls at once wait here and not in a node's backlog."""

Clock = Callable[[], float]


class _Connection(asyncio.BufferedProtocol):
    """One connection, for one request at a time."""

    def __init__(self) -> None:
        self._reader = ReplyReader(most=MAX_RECEIVE_BYTES)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Reply] | None = None
        self._ended: Exception | None = None
        self._asked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast("asyncio.Transport", transport)  # of a TCP connection
        if (wire := transport.get_extra_info("socket")) is not None:
            pooling.prepare(wire)

    def get_buffer(self, sizehint: int) -> memoryview:
        """See asyncio."""
        del sizehint
        return self._reader.room()

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio."""
        answer = self._answer
        if answer is None or answer.done():  # nothing was asked, or nobody waits any more
            self.end()
            return
        try:
            reply = self._reader.received(nbytes)
        except InvalidResponse as error:
            answer.set_exception(error)
            return
        if reply is not None:
            answer.set_result(reply)

    def eof_received(self) -> None:
        """See asyncio. The connection ends with it."""

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        why = exc or ConnectionError("the other side has closed it")
        self._ended = Lost(why, begun=self._reader.begun)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(self._ended)

    async def ask(self, head: bytes, body: bytes) -> Reply:
        """Send a request and wait for its answer.

        Raises:
            Lost: The connection ended before.
            InvalidResponse: It is none of HTTP.
        """
        self._reader.begin()
        if self._ended is not None or self._transport is None or self._transport.is_closing():
            raise Lost(self._ended or "it was closed", begun=False)
        if self._asked and not self._silent():
            raise Lost("it was closed, or said something unasked", begun=False)
        self._asked = True
        self._answer = asyncio.get_running_loop().create_future()
        if len(body) < pooling.SMALL_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines([head, body])
        try:
            return await self._answer
        finally:
            self._answer = None

    def _silent(self) -> bool:
        """Also where the loop was too busy to read what has come."""
        wire = None if self._transport is None else self._transport.get_extra_info("socket")
        return wire is None or pooling.silent(wire.fileno())

    def end(self) -> None:
        """Close it at once; whoever waits for its answer wakes up."""
        if self._transport is not None:
            self._transport.abort()


_Kept = Kept[_Connection]


class AsyncHttpTransport:
    """Sends requests over HTTP/1.1, from one event loop. As `HttpTransport`."""

    def __init__(
        self,
        target: str,
        origins: tuple[Origin, ...],
        contexts: Credentials[ssl.SSLContext] | None,
        *,
        server_name: str | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._target = target
        self._contexts = contexts
        self._server_name = server_name
        self._clock = clock
        self._askings = {origin: Asking(origin) for origin in origins}
        self._rotation = Rotation(origins)
        self._pool: Pool[_Connection] = Pool()
        self._busy: set[_Kept] = set()
        self._dials: set[asyncio.Timeout] = set()
        self._room = asyncio.Semaphore(MAX_CONNECTIONS)
        self._looking_up: set[asyncio.Task[None]] = set()
        self.closed = False

    @property
    def dialled(self) -> bool:
        """There is something to close."""
        return not self.closed and (bool(self._busy) or not self._pool.empty)

    async def call(self, request: Request, metadata: Metadata, *, timeout_s: float) -> Response:
        """Send *request* and wait for its answer.

        Raises:
            EmbedKeepError: There is none.
        """
        timeout_s = min(timeout_s, pooling.LONGEST_S)
        try:
            async with asyncio.timeout(timeout_s), self._room:
                reply = await self._ask(request, metadata, self._clock() + timeout_s)
        except TimeoutError as error:
            raise pooling.late(self._target) from error
        return answer_of(reply, request, target=self._target)

    async def close(self) -> None:
        """Close all connections; calls under way raise Unavailable."""
        self.closed = True
        self._pool.drop_all()
        for kept in (*self._pool.over(), *self._busy):
            kept.connection.end()
        for dial in self._dials:
            if not dial.expired():
                dial.reschedule(asyncio.get_running_loop().time())
        if looking_up := list(self._looking_up):
            for task in looking_up:
                task.cancel()
            await asyncio.wait(looking_up)
        await asyncio.sleep(0)  # what was aborted is closed in the loop's next turn

    async def _ask(self, request: Request, metadata: Metadata, ends_at: float) -> Reply:
        body = request.SerializeToString()
        while True:
            kept = await self._take()
            reusable = False
            try:
                left_s = ends_at - self._clock()
                head = kept.asking.head(request, metadata, timeout_s=left_s, length=len(body))
                reply = await kept.connection.ask(head, body)
                reusable = reply.reusable
            except InvalidResponse as error:
                raise pooling.unread(self._target, error) from error
            except Lost as error:
                if self.closed:
                    raise Unavailable(CLOSED) from error
                if not kept.used or error.begun:
                    self._failed(kept.address)
                    raise pooling.lost(self._target, error) from error
                # It was closed while nobody used it, and its like with it: that is no failure.
                self._pool.drop(kept.address)
            else:
                return reply
            finally:
                self._give_back(kept, reusable=reusable)

    async def _take(self) -> _Kept:
        """A connection to the next node that has one or can be dialled."""
        if self.closed:  # names are not looked up any more
            raise Unavailable(CLOSED)
        why: object = "its name cannot be looked up"
        context = None if self._contexts is None else self._contexts.newest()
        for address in await self._addresses():
            if self.closed:
                raise Unavailable(CLOSED)
            kept = self._pool.take(address, context, self._clock())
            if kept is None:
                try:
                    kept = await self._dial(address, context)
                except OSError as error:
                    if self.closed:
                        raise Unavailable(CLOSED) from error
                    self._failed(address)
                    why = pooling.undialled(address, error)
                    continue
            self._busy.add(kept)
            return kept
        raise pooling.unreachable(self._target, why)

    async def _dial(self, address: Address, context: ssl.SSLContext | None) -> _Kept:
        now = self._clock()
        origin = address.origin
        async with asyncio.timeout(pooling.DIAL_S) as dial:
            self._dials.add(dial)
            try:
                _, connection = await asyncio.get_running_loop().create_connection(
                    _Connection,
                    address.ip,
                    origin.port,
                    ssl=context,
                    server_hostname=None if context is None else self._server_name or origin.host,
                )
            finally:
                self._dials.discard(dial)
        self._rotation.worked(address)
        kept = Kept(
            connection=connection,
            address=address,
            asking=self._askings[origin],
            context=context,
            opened_at=now,
            idle_since=now,
        )
        if self.closed:
            connection.end()
            raise Unavailable(CLOSED)
        return kept

    async def _addresses(self) -> list[Address]:
        """In the order in which they are to be tried. The first call waits for a name of theirs."""
        while True:
            now = self._clock()
            for origin in self._rotation.due(now):
                task = asyncio.create_task(self._look_up(origin), name="embedkeep names")
                self._looking_up.add(task)
                task.add_done_callback(self._looking_up.discard)
            if (order := self._rotation.order(now)) or not self._looking_up:
                return order
            # Other calls wait for them too: they are not this one's to cancel.
            await asyncio.wait(self._looking_up, return_when=asyncio.FIRST_COMPLETED)
            if self.closed:
                raise Unavailable(CLOSED)

    async def _look_up(self, origin: Origin) -> None:
        found = []
        try:
            # UnicodeError: no name server could be asked for it
            with contextlib.suppress(OSError, UnicodeError):
                found = await asyncio.get_running_loop().getaddrinfo(
                    origin.host, origin.port, type=socket.SOCK_STREAM
                )
        finally:
            if found:
                self._rotation.found(origin, [str(each[4][0]) for each in found])
            else:
                self._rotation.unknown(origin, self._clock())

    def _failed(self, address: Address) -> None:
        self._rotation.failed(address, self._clock())
        self._pool.drop(address)
        if self._contexts is not None:
            self._contexts.doubt()

    def _give_back(self, kept: _Kept, *, reusable: bool) -> None:
        self._busy.discard(kept)
        if reusable and not self.closed:
            self._pool.put(kept, self._clock())
        else:
            kept.connection.end()
        for each in self._pool.over():
            each.connection.end()
