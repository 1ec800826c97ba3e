"""One answer of HTTP/1.1, read off a connection without knowing what a connection is.

Whoever has bytes asks for `room`, fills it, and tells how much came. A body whose length is known
is received where it stays. Source: RFC 9112.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from embedkeep.errors import InvalidResponse

MAX_HEAD_BYTES: Final = 64 << 10
MAX_LINE_BYTES: Final = 4 << 10
_VERSION: Final = b"HTTP/1."
_TLS_ALERT: Final = b"\x15"
_LINE: Final = b"\r\n"
_END: Final = b"\r\n\r\n"
_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,16}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case; of a name that came twice, both values with a comma between them."""
    body: bytes | memoryview
    reusable: bool
    """The connection may be asked again."""


class ReplyReader:
    """Reads the answers of one connection, one after the other.

    Args:
        most: Bytes of a body.
    """

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._buffer = bytearray(MAX_HEAD_BYTES)
        self._view = memoryview(self._buffer)
        self.begin()

    def begin(self) -> None:
        """Expect an answer."""
        self._filled = 0
        """Of the buffer."""
        self._status = 0
        self._headers: dict[str, str] = {}
        self._body: memoryview | None = None
        self._got = 0
        """Of the body."""
        self._chunked = False
        self._raw = bytearray()
        """Of the chunks, what was not looked at yet."""
        self._chunks = bytearray()
        self._left = 0
        """Of a chunk, with the line's end behind it."""

    @property
    def begun(self) -> bool:
        """Something of the answer came."""
        return self._filled > 0 or self._status > 0

    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        if self._body is not None:
            return self._body[self._got :]
        return self._view[self._filled :]

    def received(self, count: int) -> Reply | None:
        """Take *count* bytes that were put into `room`; the answer, once it is whole.

        Raises:
            InvalidResponse: It is none of HTTP/1.1, or larger than it may be.
        """
        if self._body is not None:
            self._got += count
            return self._whole(self._body) if self._got == len(self._body) else None
        self._filled += count
        return self._read_chunks() if self._chunked else self._read_head()

    def _read_head(self) -> Reply | None:
        while (end := self._buffer.find(_END, 0, self._filled)) >= 0:
            self._status, self._headers = _head(bytes(self._view[:end]))
            self._drop(end + len(_END))
            if self._status >= 200:
                return self._read_body()
            # An interim answer: the real one follows.
        if self._filled >= len(_VERSION) and not self._buffer.startswith(_VERSION):
            raise _no_http(self._buffer)
        if self._filled == len(self._buffer):
            raise InvalidResponse(f"an answer's headers take more than {MAX_HEAD_BYTES} bytes")
        return None

    def _read_body(self) -> Reply | None:
        if (coding := self._headers.get("transfer-encoding", "").lower()) == "chunked":
            self._chunked = True
            return self._read_chunks()
        if coding:
            raise InvalidResponse(f"an answer is coded as {coding[:40]!r}, which is not understood")
        length = self._headers.get("content-length", "")
        if not length and self._status != 200:  # a refusal of old kind, which its status explains
            body = bytes(self._view[: self._filled])
            self._headers["connection"] = "close"
            return self._whole(body)
        if not (length.isascii() and length.isdigit() and len(length) < 16):
            raise InvalidResponse("an answer does not say how long it is")
        size = int(length)
        self._check(size)
        if self._filled >= size:
            body = bytes(self._view[:size])
            return self._whole(body, rest=self._filled - size)
        self._body = memoryview(bytearray(size))
        self._body[: self._filled] = self._view[: self._filled]
        self._got = self._filled
        return None

    def _read_chunks(self) -> Reply | None:
        """Only what stands between a client and a node sends such answers."""
        raw, chunks = self._raw, self._chunks
        raw += self._view[: self._filled]
        self._filled = 0
        while True:
            if self._left:
                taken = min(self._left, len(raw))
                chunks += raw[:taken]
                del raw[:taken]
                self._left -= taken
                if self._left:
                    return None
                if not chunks.endswith(_LINE):
                    raise InvalidResponse("a chunk is longer than it says")
                del chunks[-len(_LINE) :]
            if (end := raw.find(_LINE)) < 0:
                if len(raw) > MAX_LINE_BYTES:
                    raise InvalidResponse("a chunk does not say how long it is")
                return None
            size = _hexadecimal(bytes(raw[:end]))
            if size == 0:
                if (stop := raw.find(_END, end)) < 0:
                    if len(raw) > MAX_HEAD_BYTES:
                        raise InvalidResponse(f"more than {MAX_HEAD_BYTES} bytes end an answer")
                    return None
                return self._whole(bytes(chunks), rest=len(raw) - stop - len(_END))
            self._check(len(chunks) + size)
            del raw[: end + len(_LINE)]
            self._left = size + len(_LINE)

    def _check(self, size: int) -> None:
        if size > self._most:
            raise InvalidResponse(f"an answer of {size} bytes; at most {self._most} are taken")

    def _drop(self, count: int) -> None:
        """Forget the buffer's first bytes."""
        rest = bytes(self._view[count : self._filled])
        self._view[: len(rest)] = rest
        self._filled = len(rest)

    def _whole(self, body: bytes | memoryview, *, rest: int = 0) -> Reply:
        self._body, self._filled = None, 0  # what comes now was not asked for, and has room too
        stays = self._headers.get("connection", "").lower() != "close"
        return Reply(
            status=self._status, headers=self._headers, body=body, reusable=stays and rest == 0
        )


def _head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1.") or not (rest[:3].isascii() and rest[:3].isdigit()):
        raise _no_http(head)
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if version == "HTTP/1.0":
        headers["connection"] = "close"
    return int(rest[:3]), headers


def _no_http(given: bytes | bytearray) -> InvalidResponse:
    if given.startswith(_TLS_ALERT):
        return InvalidResponse("the other side speaks TLS: write https://")
    return InvalidResponse(
        "the other side does not answer as HTTP/1.1: is it the node's gRPC port? "
        "Then leave http:// out"
    )


def _hexadecimal(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not _SIZE.fullmatch(digits):
        raise InvalidResponse(f"{digits[:16]!r} is no chunk's size")
    return int(digits, 16)
