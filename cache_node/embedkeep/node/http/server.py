"""The server: a port, certificates, and an orderly end."""

import asyncio
import logging
import socket
from types import TracebackType
from typing import Any, Final, Self

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader

from embedkeep.config import Listen, ServerTls
from embedkeep.errors import InvalidConfig
from embedkeep.node.http.entrance import IDLE_S, READ_S, Entrances
from embedkeep.node.http.facades import Facades
from embedkeep.tls import server_context

HEADERS_S: Final = 60.0
"""How long the headers of one request may take to come, from their first bytes to their last,
seconds: what nginx and Node.js allow. A client on the slowest of lines needs a second."""
BACKLOG: Final = 1024

_SILENT: Final = logging.getLogger(__name__)
"""Of aiohttp, which would log what is no HTTP with the header it stands in, an API key's too. Our
own failures are logged where they are answered."""
_SILENT.disabled = True


class _Connection(web.RequestHandler):
    """Hangs up where the headers of a request do not end, or where nobody reads an answer.

    aiohttp has no setting for either.
    """

    __slots__ = ("_late", "_unread")

    _late: asyncio.TimerHandle | None
    _unread: asyncio.TimerHandle | None

    def __init__(self, server: web.Server, **settings: Any) -> None:  # aiohttp's own
        super().__init__(server, **settings)
        self._late = None
        self._unread = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = asyncio.get_running_loop().call_later(READ_S, self._abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()  # a close would wait for the reader

    def _read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # While aiohttp waits for a request, what comes can only be a part of its headers.
        if self._waiter is None or self._waiter.done():
            self._forget()
        elif self._late is None:
            self._late = asyncio.get_running_loop().call_later(HEADERS_S, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._forget()
        self._read()
        super().connection_lost(exc)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class _Server(web.Server):
    """Makes each connection one of ours."""

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class HttpServer:
    """Serves HTTP/1.1 while the block runs.

    Args:
        listen: Where.
        facades: What it answers with.
        tls: Certificates. None: plain text.
        max_body_bytes: Of a request, decompressed.
        drain_s: How long requests in flight may take to their end, seconds.

    Raises:
        InvalidConfig: The address cannot be bound, or a certificate cannot be read.
    """

    def __init__(
        self,
        listen: Listen,
        facades: Facades,
        *,
        tls: ServerTls | None,
        max_body_bytes: int,
        drain_s: float,
    ) -> None:
        self._listen = listen
        self._tls = tls
        self._facades = facades
        self._max_body_bytes = max_body_bytes
        self._drain_s = drain_s
        self._listener: asyncio.Server | None = None
        self._draining: asyncio.Task[None] | None = None
        self.port = 0
        """Where it listens."""

    async def __aenter__(self) -> Self:
        context = server_context(self._tls) if self._tls is not None else None
        self._aiohttp = _Server(
            self._facades.router,
            request_factory=self._request,
            handler_cancellation=True,  # whom nobody waits for is not computed for
            access_log=None,  # inputs are never logged, and /metrics counts
            logger=_SILENT,
            keepalive_timeout=IDLE_S,
        )
        self._entrances = Entrances(self._facades.connect, self._aiohttp)
        bound = _bound(self._listen)
        self.port = bound.getsockname()[1]
        self._listener = await asyncio.get_running_loop().create_server(
            self._entrances, sock=bound, ssl=context, backlog=BACKLOG
        )
        return self

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        return web.BaseRequest(
            message,
            payload,
            protocol,
            writer,
            task,
            task.get_loop(),
            client_max_size=self._max_body_bytes,
        )

    def drain(self) -> None:
        """Take no new connections, and let requests in flight end; the block's end waits for it."""
        if self._draining is None and self._listener is not None:
            self._listener.close()
            self._draining = asyncio.create_task(self._drain(), name="http drain")

    async def _drain(self) -> None:
        await asyncio.sleep(0)  # what has come already is begun
        self._aiohttp.pre_shutdown()
        async with asyncio.TaskGroup() as ends:
            ends.create_task(self._entrances.drain(self._drain_s), name="plain calls")
            # It waits twice: for handlers, then for connections that are still written to.
            ends.create_task(self._aiohttp.shutdown(self._drain_s / 2), name="aiohttp")

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.drain()
        if self._draining is not None:
            await self._draining


def _bound(listen: Listen) -> socket.socket:
    """A socket that is bound, so that port 0 has become a number.

    Raises:
        InvalidConfig: It cannot be bound.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
        except OSError:
            made.close()
            raise
    except OSError as error:
        raise InvalidConfig(
            f"cannot listen on {listen.host}:{listen.port}: {error.strerror}", field="http"
        ) from error
    return made
