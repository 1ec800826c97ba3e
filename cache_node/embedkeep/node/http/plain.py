"""Plain calls: those of Connect's unary calls that need no HTTP server to be understood. Pure.

One is a head of known shape that came in one piece, and a small body behind it. Whatever else HTTP
has room for (chunks, codings, expectations, a name twice, a value over two lines) is left to
another, and so is what is doubtful: a strict parser shall judge it. Source: RFC 9112.
"""

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from embedkeep.node.http.connect import PROTO, SERVICE_PATH

MOST_BYTES: Final = 64 << 10
"""Of a call, with its head. Four times what a hundred questions take."""
MOST_HEAD_BYTES: Final = 8 << 10

_START: Final = f"POST {SERVICE_PATH}".encode()
_HEAD: Final = re.compile(
    rb"POST (/[A-Za-z0-9./]+) HTTP/1\.1\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[\x21-\x7e][\x20-\x7e]*\r\n)+)"
    rb"\r\n"
)
_LENGTH: Final = re.compile(r"0|[1-9][0-9]{0,5}")
_HEADERS: Final = frozenset({"host", "content-type", "content-length"})
"""Every plain call has them."""
_OTHERS: Final = frozenset(
    {
        "connection", "content-encoding", "expect", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade",
    }
)  # fmt: skip
"""No plain call has any."""


class Not(Enum):
    """What has come is no plain call."""

    YET = auto()
    """It may become one."""
    EVER = auto()


@dataclass(frozen=True, slots=True)
class PlainCall:
    """One call."""

    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    size: int
    """Of all of it, bytes; what came behind them is the next one's."""


def read(came: bytes, paths: AbstractSet[str]) -> PlainCall | Not:
    """What *came* on a connection, from the first byte of a request on.

    Args:
        paths: That are called.
    """
    if (head := _HEAD.match(came)) is None:
        return Not.YET if _START.startswith(came) else Not.EVER
    path = head[1].decode()
    headers = dict[str, str]()
    lines = head[2][:-2].decode().split("\r\n")
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    if (
        path not in paths
        or len(headers) != len(lines)  # a name stands there twice
        or not headers.keys() >= _HEADERS
        or not headers.keys().isdisjoint(_OTHERS)
        or headers["content-type"] != PROTO
        or not _LENGTH.fullmatch(headers["content-length"])
        or (start := head.end()) > MOST_HEAD_BYTES
    ):
        return Not.EVER
    if (size := start + int(headers["content-length"])) > MOST_BYTES:
        return Not.EVER
    if len(came) < size:
        return Not.YET
    return PlainCall(path, headers, came[start:size], size)
