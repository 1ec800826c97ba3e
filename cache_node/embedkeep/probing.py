"""/metrics, and beside it /livez and /readyz for whoever watches a process: plain HTTP, no keys.

Answered by threads of their own, so that a process whose event loop is stuck is heard to be silent.
The names are those of Kubernetes' own servers.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from embedkeep.config import Listen
from embedkeep.errors import InvalidConfig

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LIVE: Final = "/livez"
READY: Final = "/readyz"
ANSWER_WITHIN_S: Final = 2.0
"""How long the event loop may take to come round, seconds: long beside the longest call that it
makes, and below what a kubelet waits."""


class Probes:
    """What is said of a process.

    Args:
        loop: Does its work.
        ready: Whether it can answer.
        within_s: How long the loop may take to come round, seconds.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        ready: Callable[[], bool],
        within_s: float = ANSWER_WITHIN_S,
    ) -> None:
        self._loop = loop
        self._ready = ready
        self._within_s = within_s

    def is_live(self) -> bool:
        """The loop comes round in time. Blocks; to be called from another thread."""
        came_round = threading.Event()
        try:
            self._loop.call_soon_threadsafe(came_round.set)
        except RuntimeError:  # closed: it is about to end
            return False
        return came_round.wait(self._within_s)

    def is_ready(self) -> bool:
        """It is live, and can answer."""
        return self._ready() and self.is_live()


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a request, none of which the process waits for at its end."""

    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Silent(WSGIRequestHandler):
    """Probes and scrapes come every few seconds, and are not logged."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serve_metrics(
    listen: Listen, registry: CollectorRegistry, probes: Probes
) -> tuple[WSGIServer, threading.Thread]:
    """Serve until the server is shut down; the thread ends with it.

    Raises:
        InvalidConfig: Cannot listen there.
    """
    metrics: WSGIApplication = make_wsgi_app(registry)
    answers = {LIVE: probes.is_live, READY: probes.is_ready}

    def app(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
        asked = answers.get(environ.get("PATH_INFO", ""))
        if asked is None:
            return metrics(environ, start)
        well = asked()
        start("200 OK" if well else "503 Service Unavailable", [("Content-Type", "text/plain")])
        return [b"ok\n" if well else b"no\n"]

    family = _Server6 if ":" in listen.host else _Server
    try:
        server = make_server(listen.host, listen.port, app, family, handler_class=_Silent)
    except OSError as error:
        raise InvalidConfig(
            f"cannot listen on {listen.host}:{listen.port}: {error.strerror}", field="metrics"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    return server, thread
