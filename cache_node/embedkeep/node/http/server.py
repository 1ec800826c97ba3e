"""The server: a port, certificates, and an orderly end."""

import asyncio
import logging
import socket
from types import TracebackType
from typing import Final, Self

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader

from embedkeep.config import Listen, ServerTls
from embedkeep.errors import InvalidConfig
from embedkeep.node.http.routes import Router
from embedkeep.tls import server_context

KEEPALIVE_S: Final = 630.0
"""How long an idle connection stays open: longer than the proxies that clouds put before a server,
or they send a request into a connection that is just being closed."""
BACKLOG: Final = 1024

_SILENT: Final = logging.getLogger(__name__)
"""Of aiohttp, which would log what is no HTTP with the header it stands in, an API key's too. Our
own failures are logged where they are answered."""
_SILENT.disabled = True


class HttpServer:
    """Serves HTTP/1.1 while the block runs.

    Args:
        listen: Where.
        tls: Certificates. None: plain text.
        max_body_bytes: Of a request, decompressed.
        drain_s: How long requests in flight may take to their end, seconds.

    Raises:
        InvalidConfig: The address cannot be bound, or a certificate cannot be read.
    """

    def __init__(
        self,
        listen: Listen,
        router: Router,
        *,
        tls: ServerTls | None,
        max_body_bytes: int,
        drain_s: float,
    ) -> None:
        self._listen = listen
        self._tls = tls
        self._router = router
        self._max_body_bytes = max_body_bytes
        self._drain_s = drain_s
        self._runner: web.ServerRunner | None = None
        self._draining: asyncio.Task[None] | None = None
        self.port = 0
        """Where it listens."""

    async def __aenter__(self) -> Self:
        context = server_context(self._tls) if self._tls is not None else None
        server = web.Server(
            self._router,
            request_factory=self._request,
            handler_cancellation=True,  # whom nobody waits for is not computed for
            access_log=None,  # inputs are never logged, and /metrics counts
            logger=_SILENT,
            keepalive_timeout=KEEPALIVE_S,
        )
        # aiohttp waits twice: for handlers, then for connections that are still written to.
        runner = web.ServerRunner(server, shutdown_timeout=self._drain_s / 2)
        await runner.setup()
        try:
            bound = _bound(self._listen)
            self.port = bound.getsockname()[1]
            await web.SockSite(runner, bound, ssl_context=context, backlog=BACKLOG).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
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
        if self._draining is None and self._runner is not None:
            self._draining = asyncio.create_task(self._runner.cleanup(), name="http drain")

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
