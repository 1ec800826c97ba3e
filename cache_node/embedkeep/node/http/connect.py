"""embedkeep.v1.EmbeddingCache over HTTP/1.1: unary calls of the Connect protocol, binary messages.

The messages are those of gRPC; one is a request's body, the other its answer's. It costs a node a
quarter of the CPU that a call over gRPC does, which is what an exact hit mostly consists of; so
embedkeep's own clients can use it. Any Connect client can. Source: connectrpc.com/docs/protocol.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final, TypeVar

import grpc
from aiohttp import web
from google.protobuf.message import DecodeError, Message
from pydantic_core import to_json

from embedkeep.errors import EmbedKeepError, InvalidRequest, status_of
from embedkeep.node.calls import Calls
from embedkeep.node.http import bodies, headers
from embedkeep.node.http.routes import Handler, Misdirected, Route, hints, json_response
from embedkeep.node.trace import trace_of
from embedkeep.node.unary import Sender, Unary
from embedkeep.node.wire import SERVICE
from embedkeep.refusal import malformed
from embedkeep.v1 import cache_pb2

PROTO: Final = "application/proto"
TIMEOUT: Final = "connect-timeout-ms"

_STATUSES: Final[Mapping[grpc.StatusCode, int]] = MappingProxyType(
    {
        grpc.StatusCode.INVALID_ARGUMENT: 400,
        grpc.StatusCode.FAILED_PRECONDITION: 400,
        grpc.StatusCode.UNAUTHENTICATED: 401,
        grpc.StatusCode.NOT_FOUND: 404,
        grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
        grpc.StatusCode.UNKNOWN: 500,
        grpc.StatusCode.INTERNAL: 500,
        grpc.StatusCode.UNIMPLEMENTED: 501,
        grpc.StatusCode.UNAVAILABLE: 503,
        grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    }
)
"""Connect's table, as far as our errors reach."""

RequestT = TypeVar("RequestT", bound=Message)
Serve = Callable[[RequestT, Sender], Awaitable[Message | bytes]]
"""One of `Unary`'s methods."""


class Connect:
    """Answers the service's unary calls.

    Args:
        unary: What they are answered with.
        calls: Knows who may call, and how long a call may take that does not say.
        most: Bytes of a request.
    """

    def __init__(self, unary: Unary, *, calls: Calls, most: int) -> None:
        self._unary = unary
        self._calls = calls
        self._most = most

    def routes(self) -> dict[str, Route]:
        """By path."""
        unary = self._unary
        handlers = {
            "Embed": self._handler(unary.embed_encoded, cache_pb2.EmbedRequest),
            "Import": self._handler(unary.import_pairs, cache_pb2.ImportRequest),
            "Invalidate": self._handler(unary.invalidate, cache_pb2.InvalidateRequest),
            "Info": self._handler(unary.info, cache_pb2.InfoRequest, counted=False),
        }
        return {
            f"/{SERVICE}/{name}": Route(handlers={"POST": handler}, refuse=refuse)
            for name, handler in handlers.items()
        }

    def _handler(
        self, serve: Serve[RequestT], kind: type[RequestT], *, counted: bool = True
    ) -> Handler:
        async def handle(request: web.BaseRequest) -> web.Response:
            left_s = _timeout_s(request.headers.get(TIMEOUT))
            if request.content_type != PROTO:
                raise Misdirected(
                    f"content-type: {request.content_type[: bodies.MAX_SHOWN]} is not taken; "
                    f"send {PROTO}",
                    status=415,
                    headers={"accept-post": PROTO},
                )
            metadata = headers.metadata(request.headers)
            if not counted:
                sender = Sender(tenant=self._calls.caller(metadata), left_s=left_s)
                return await self._answer(request, serve, kind, sender)
            # Before its body is read, which takes room.
            with self._calls.entered(metadata) as tenant:
                sender = Sender(tenant=tenant, trace=trace_of(metadata), left_s=left_s)
                return await self._answer(request, serve, kind, sender)

        return handle

    async def _answer(
        self, request: web.BaseRequest, serve: Serve[RequestT], kind: type[RequestT], sender: Sender
    ) -> web.Response:
        now = asyncio.get_running_loop().time
        ends_s = now() + self._calls.timeout_s(sender.left_s)
        data = await bodies.raw(request, most=self._most, ends_s=ends_s)
        try:
            message = kind.FromString(data)
        except DecodeError as error:
            raise malformed(error) from error
        if sender.left_s is not None:
            sender = replace(sender, left_s=ends_s - now())
        answer = await serve(message, sender)
        body = answer if isinstance(answer, bytes) else answer.SerializeToString()
        return web.Response(body=body, content_type=PROTO)


def refuse(error: EmbedKeepError) -> web.Response:
    """*error* as Connect says it, with our own headers beside."""
    code = status_of(error)
    status = error.status if isinstance(error, Misdirected) else _STATUSES[code]
    body = to_json({"code": code.name.lower(), "message": str(error)})
    return json_response(body, status=status, headers=hints(error, status))


def _timeout_s(value: str | None) -> float | None:
    if value is None:
        return None
    # The protocol's own bound: ten digits.
    if not (value.isascii() and value.isdigit() and len(value) <= 10 and int(value)):
        raise InvalidRequest(
            f"{TIMEOUT}: {value[: bodies.MAX_SHOWN]!r} is no number of milliseconds from 1 to "
            "9999999999"
        )
    return int(value) / 1000
