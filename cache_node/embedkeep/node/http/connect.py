"""embedkeep.v1.EmbeddingCache over HTTP/1.1: unary calls of the Connect protocol, binary messages.

The messages are those of gRPC; one is a request's body, the other its answer's. It costs a node a
third of the CPU that a call over gRPC does, which is what an exact hit mostly consists of; so
embedkeep's own clients can use it. Any Connect client can. Source: connectrpc.com/docs/protocol.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, TypeVar

import grpc
from aiohttp import web
from google.protobuf.message import DecodeError, Message
from pydantic_core import to_json

from embedkeep.errors import EmbedKeepError, InvalidRequest, status_of
from embedkeep.node.calls import Calls
from embedkeep.node.http import bodies, headers
from embedkeep.node.http.routes import Handler, Misdirected, Route, hints, ours
from embedkeep.node.trace import trace_of
from embedkeep.node.unary import Sender, Unary
from embedkeep.node.wire import SERVICE
from embedkeep.refusal import malformed
from embedkeep.v1 import cache_pb2

PROTO: Final = "application/proto"
TIMEOUT: Final = "connect-timeout-ms"
SERVICE_PATH: Final = f"/{SERVICE}/"

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
Body = Callable[[float], Awaitable[bytes]]
"""Reads a request's body, until a time on the loop's clock."""
_Call = Callable[[Mapping[str, str], Body], Awaitable[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer, whichever server sends it."""

    status: int = 200
    headers: Mapping[str, str]
    """Names in lower case; the content's type among them, its length not."""
    body: bytes


_PROTO: Final = MappingProxyType({"content-type": PROTO})


class Connect:
    """Answers the service's unary calls.

    Args:
        unary: What they are answered with.
        calls: Knows who may call, and how long a call may take that does not say.
    """

    def __init__(self, unary: Unary, *, calls: Calls) -> None:
        self._calls = calls
        self._handlers: dict[str, _Call] = {
            f"{SERVICE_PATH}Embed": self._call(unary.embed_encoded, cache_pb2.EmbedRequest),
            f"{SERVICE_PATH}Import": self._call(unary.import_pairs, cache_pb2.ImportRequest),
            f"{SERVICE_PATH}Invalidate": self._call(unary.invalidate, cache_pb2.InvalidateRequest),
            f"{SERVICE_PATH}Info": self._call(unary.info, cache_pb2.InfoRequest, counted=False),
        }

    @property
    def paths(self) -> AbstractSet[str]:
        """Where it answers."""
        return self._handlers.keys()

    def routes(self, *, most: int) -> dict[str, Route]:
        """What aiohttp answers, by path.

        Args:
            most: Bytes of a request.
        """
        return {
            path: Route(handlers={"POST": self._handler(path, most)}, refuse=refuse)
            for path in self.paths
        }

    async def answer(self, path: str, sent: Mapping[str, str], body: Body) -> Reply:
        """Answer a call. Never raises but for a cancellation.

        Args:
            path: One of `paths`.
            sent: The request's headers, names in lower case or of any.
            body: What has the content type `PROTO`.
        """
        try:
            return Reply(headers=_PROTO, body=await self._handlers[path](sent, body))
        except Exception as error:  # noqa: BLE001  # the outermost edge, which logs it
            return _refusal(ours(error, path))

    def _handler(self, path: str, most: int) -> Handler:
        async def handle(request: web.BaseRequest) -> web.Response:
            if request.content_type != PROTO:
                raise Misdirected(
                    f"content-type: {request.content_type[: bodies.MAX_SHOWN]} is not taken; "
                    f"send {PROTO}",
                    status=415,
                    headers={"accept-post": PROTO},
                )

            async def body(ends_s: float) -> bytes:
                return await bodies.raw(request, most=most, ends_s=ends_s)

            return _response(await self.answer(path, request.headers, body))

        return handle

    def _call(self, serve: Serve[RequestT], kind: type[RequestT], *, counted: bool = True) -> _Call:
        async def call(sent: Mapping[str, str], body: Body) -> bytes:
            left_s = _timeout_s(sent.get(TIMEOUT))
            metadata = headers.metadata(sent)
            if not counted:
                sender = Sender(tenant=self._calls.caller(metadata), left_s=left_s)
                return await self._served(serve, kind, body, sender)
            # Before its body is read, which takes room.
            with self._calls.entered(metadata) as tenant:
                sender = Sender(tenant=tenant, trace=trace_of(metadata), left_s=left_s)
                return await self._served(serve, kind, body, sender)

        return call

    async def _served(
        self, serve: Serve[RequestT], kind: type[RequestT], body: Body, sender: Sender
    ) -> bytes:
        now = asyncio.get_running_loop().time
        ends_s = now() + self._calls.timeout_s(sender.left_s)
        data = await body(ends_s)
        try:
            message = kind.FromString(data)
        except DecodeError as error:
            raise malformed(error) from error
        if sender.left_s is not None:
            sender = replace(sender, left_s=ends_s - now())
        answer = await serve(message, sender)
        return answer if isinstance(answer, bytes) else answer.SerializeToString()


def refuse(error: EmbedKeepError) -> web.Response:
    """*error* as Connect says it, with our own headers beside."""
    return _response(_refusal(error))


def _refusal(error: EmbedKeepError) -> Reply:
    code = status_of(error)
    status = error.status if isinstance(error, Misdirected) else _STATUSES[code]
    body = to_json({"code": code.name.lower(), "message": str(error)})
    return Reply(
        status=status, headers={"content-type": bodies.JSON} | hints(error, status), body=body
    )


def _response(reply: Reply) -> web.Response:
    return web.Response(body=reply.body, status=reply.status, headers=reply.headers)


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
