"""A stand-in for a node, over HTTP: what it answers over gRPC, in the words of Connect."""

import json
import ssl
import threading
from collections.abc import Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Never

import grpc

from embedkeep.errors import REASON_KEY, RETRY_KEY
from embedkeep.v1 import cache_pb2

_STATUSES = {
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
}
_KINDS: dict[str, Any] = {
    "Embed": cache_pb2.EmbedRequest,
    "Import": cache_pb2.ImportRequest,
    "Info": cache_pb2.InfoRequest,
    "Invalidate": cache_pb2.InvalidateRequest,
}


class _Aborted(Exception):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code


class _Context:
    """What of a gRPC context a stand-in uses."""

    def __init__(self, headers: Iterable[tuple[str, str]]) -> None:
        self._headers = [(name.lower(), value) for name, value in headers]
        self.trailing: dict[str, str] = {}

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self._headers

    def set_trailing_metadata(self, metadata: Iterable[tuple[str, str]]) -> None:
        self.trailing = dict(metadata)

    def abort(self, code: grpc.StatusCode, details: str) -> Never:
        raise _Aborted(code, details)


def serve_http(
    node: object, port: int, *, tls: ssl.SSLContext | None = None
) -> ThreadingHTTPServer:
    """Serve a stand-in for gRPC over HTTP too, until the returned server is shut down."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            name = self.path.rpartition("/")[2]
            data = self.rfile.read(int(self.headers["content-length"]))
            context = _Context(self.headers.items())
            try:
                answer = getattr(node, name)(_KINDS[name].FromString(data), context)
            except _Aborted as aborted:
                self._refuse(aborted, context)
            else:
                self._reply(HTTPStatus.OK, "application/proto", answer.SerializeToString(), {})

        def _refuse(self, aborted: _Aborted, context: _Context) -> None:
            said = {"code": aborted.code.name.lower(), "message": str(aborted)}
            headers = {
                theirs: context.trailing[ours]
                for ours, theirs in (
                    (REASON_KEY, "x-embedkeep-reason"),
                    (RETRY_KEY, "retry-after-ms"),
                )
                if ours in context.trailing
            }
            body = json.dumps(said).encode()
            self._reply(_STATUSES[aborted.code], "application/json", body, headers)

        def _reply(
            self, status: HTTPStatus, kind: str, body: bytes, headers: dict[str, str]
        ) -> None:
            self.send_response(status)
            for key, value in {"content-type": kind, **headers}.items():
                self.send_header(key, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the library's
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256
        block_on_close = False

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that has left

    server = Server(("127.0.0.1", port), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    threading.Thread(target=server.serve_forever, name="fake-node http", daemon=True).start()
    return server
