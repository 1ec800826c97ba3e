"""A request's bytes, and what an answer means: Connect's unary calls, seen from a client. Pure.

Source: connectrpc.com/docs/protocol, "Unary-Response". What is no Connect answer comes from
something between client and node, and is understood by its status alone.
"""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import grpc
from google.protobuf.message import DecodeError, Message

from embedkeep.client.exchange import Metadata, Request, Response
from embedkeep.client.transports.origins import Origin
from embedkeep.client.transports.reply import Reply
from embedkeep.errors import EmbedKeepError, InvalidResponse, from_wire
from embedkeep.v1 import cache_pb2

PROTO: Final = "application/proto"
REASON: Final = "x-embedkeep-reason"
RETRY_AFTER_MS: Final = "retry-after-ms"
MAX_RECEIVE_BYTES: Final = 64 << 20
"""Largest answer a client takes; requests are cut so that answers stay below it."""
_SHOWN: Final = 200
"""Characters of an answer of somebody else."""
MAX_TIMEOUT_MS: Final = 9_999_999_999

_SERVICE: Final = cache_pb2.DESCRIPTOR.services_by_name["EmbeddingCache"].full_name
_KINDS: Final[Mapping[type[Request], tuple[str, type[Response]]]] = MappingProxyType(
    {
        cache_pb2.EmbedRequest: ("Embed", cache_pb2.EmbedResponse),
        cache_pb2.ImportRequest: ("Import", cache_pb2.ImportResponse),
        cache_pb2.InfoRequest: ("Info", cache_pb2.InfoResponse),
        cache_pb2.InvalidateRequest: ("Invalidate", cache_pb2.InvalidateResponse),
    }
)
_CODES: Final[Mapping[str, int]] = MappingProxyType(
    {code.name.lower(): code.value[0] for code in grpc.StatusCode} | {"canceled": 1}
)
"""google.rpc.Code by Connect's names: gRPC's own, but for one that Connect spells with one l."""
_BY_STATUS: Final[Mapping[int, int]] = MappingProxyType(
    {400: 13, 401: 16, 403: 7, 404: 12, 413: 3, 429: 14, 502: 14, 503: 14, 504: 14}
)
"""Connect's table for answers that are not its own; 413 besides, as a node itself means it."""


class Asking:
    """Makes requests to one target.

    Args:
        origin: Any of its origins: what differs between them is the host.
    """

    def __init__(self, origin: Origin) -> None:
        self._heads = {
            kind: (
                f"POST {origin.path}/{_SERVICE}/{name} HTTP/1.1\r\n"
                f"host: {origin.authority}\r\ncontent-type: {PROTO}\r\n"
                "connect-protocol-version: 1\r\n"
            )
            for kind, (name, _) in _KINDS.items()
        }

    def head(self, request: Request, metadata: Metadata, *, timeout_s: float, length: int) -> bytes:
        """All of a request that stands before its body.

        Args:
            metadata: Names and values without line breaks; see `embedkeep.client.core`.
            length: Of the body, bytes.
        """
        said = "".join(f"{name}: {value}\r\n" for name, value in metadata)
        timeout_ms = min(max(int(timeout_s * 1000), 1), MAX_TIMEOUT_MS)
        return (
            f"{self._heads[type(request)]}{said}connect-timeout-ms: {timeout_ms}\r\n"
            f"content-length: {length}\r\n\r\n"
        ).encode()


def answer_of(reply: Reply, request: Request, *, target: str) -> Response:
    """What *reply* answers.

    Raises:
        InvalidResponse: It is no message.
        EmbedKeepError: What the node, or something before it, refused it with.
    """
    if reply.status != 200:
        raise error_of(reply, target=target)
    if (given := reply.headers.get("content-type", "")) != PROTO:
        raise InvalidResponse(f"{target}: answered with {given[:60]!r} instead of {PROTO}")
    _, kind = _KINDS[type(request)]
    message: Message = kind()
    try:
        message.ParseFromString(reply.body)  # type: ignore[arg-type]  # it takes any buffer
    except DecodeError as error:
        raise InvalidResponse(f"{target}: the answer cannot be read: {error}") from error
    assert isinstance(message, kind)  # noqa: S101  # made so
    return message


def error_of(reply: Reply, *, target: str) -> EmbedKeepError:
    """What a refusal means, in the class it had at the node."""
    code, said = _refusal(reply)
    reason = reply.headers.get(REASON, "")
    return from_wire(code, reason, f"{target}: {said}", retry_after_s=_after_s(reply.headers))


def _after_s(headers: Mapping[str, str]) -> float | None:
    for name, unit_s in ((RETRY_AFTER_MS, 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "")
        if value.isascii() and value.isdigit() and len(value) < 10:
            return int(value) * unit_s
    return None


def _refusal(reply: Reply) -> tuple[int, str]:
    """google.rpc.Code and words."""
    try:
        body = json.loads(bytes(reply.body))
    except (ValueError, RecursionError):
        body = None
    match body:
        case {"code": str(code), "message": str(said)} if code in _CODES:
            return _CODES[code], said
        # As the node's other APIs refuse: another path than a client's was asked for.
        case {"error": {"message": str(said)}} | {"error": str(said)}:
            pass
        case _:
            said = bytes(reply.body[:_SHOWN]).decode(errors="replace").strip()
    return _BY_STATUS.get(reply.status, 2), f"HTTP status {reply.status}: {said[:_SHOWN]}"
