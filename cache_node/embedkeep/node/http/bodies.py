"""Bodies in and out: what APIs read is checked once, what they answer is JSON made for speed."""

import asyncio
from binascii import b2a_base64
from collections.abc import Callable, Sequence
from typing import Annotated, Final, TypeVar

import numpy as np
from aiohttp import web
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError
from pydantic_core import ErrorDetails, to_json

from embedkeep.errors import DeadlineExceeded, InvalidRequest
from embedkeep.node.http.routes import Misdirected

JSON: Final = "application/json"
STEP_COMPONENTS: Final = 16_384
"""So many are encoded between two turns of the event loop: about 3 ms as decimals."""
BODY_S: Final = 60.0
"""How long a body may take to come, seconds, however much time its caller has: a call that is only
read holds one of the node's places. The most that a node takes by default, 4 MiB, comes in time at
0.6 Mbit/s."""
CODINGS: Final = ("gzip", "deflate", "identity")
"""That a body may have; others would need packages that a node does without."""
MAX_SHOWN: Final = 60
"""Characters of a wrong value that are shown to whoever sent it."""


class WrongField(InvalidRequest):
    """A field of the body cannot be used.

    Args:
        param: Its path, as OpenAI writes one: ``input[3]``.
    """

    def __init__(self, message: str, *, param: str | None) -> None:
        super().__init__(message)
        self.param = param


class Body(BaseModel):
    """Base of what callers send: exact types, unknown fields ignored."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="ignore", use_attribute_docstrings=True
    )


BodyT = TypeVar("BodyT", bound=Body)

TokenId = Annotated[int, Field(ge=0, lt=1 << 32)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]

KINDS: Final = "must be a string, a list of strings, a list of token ids, or a list of such lists"


def _kind(given: object) -> str | None:
    """Which kind of inputs *given* is meant to be, by its first item."""
    if isinstance(given, str):
        return "text"
    if not isinstance(given, list):
        return None
    first = given[0] if given else ""
    if isinstance(first, list):
        return "token_lists"
    return "tokens" if isinstance(first, int) and not isinstance(first, bool) else "texts"


Inputs = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[Annotated[list[str], Field(min_length=1)], Tag("texts")]
    | Annotated[TokenIds, Tag("tokens")]
    | Annotated[Annotated[list[TokenIds], Field(min_length=1)], Tag("token_lists")],
    Discriminator(_kind, custom_error_type="inputs", custom_error_message=KINDS),
]
"""One text, several, or the same as token ids of the model's own tokenizer. A list is what its
first item says, so that an error names the item that differs."""

Given = str | list[str] | list[int] | list[list[int]]
"""What `Inputs` lets through."""


def parted(given: Given) -> tuple[Sequence[str], Sequence[Sequence[int]]]:
    """The texts, or the rows of token ids; the other is empty."""
    if isinstance(given, str):
        return [given], []
    match given[0]:
        case str():
            return given, []
        case int():
            return [], [given]
        case _:
            return [], given


_TAGS: Final = frozenset({"text", "texts", "tokens", "token_lists"})


async def read(request: web.BaseRequest, kind: type[BodyT], *, most: int, ends_s: float) -> BodyT:
    """The body of *request*.

    Args:
        most: Bytes of it, decompressed.
        ends_s: When the caller's time is up, on the loop's clock.

    Raises:
        Misdirected: No JSON by its type, or too large.
        WrongField: A field cannot be used; names it.
        InvalidRequest: It is no JSON.
        DeadlineExceeded: It did not come before *ends_s*, or within `BODY_S`.
    """
    if request.content_type != JSON and "content-type" in request.headers:
        raise Misdirected(
            f"content-type: {request.content_type[:MAX_SHOWN]} is not taken; send {JSON}",
            status=415,
        )
    data = await raw(request, most=most, ends_s=ends_s)
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise _wrong(error.errors(include_url=False, include_context=False)[0]) from error


async def raw(request: web.BaseRequest, *, most: int, ends_s: float) -> bytes:
    """The body of *request* as it is.

    Args:
        most: Bytes of it, decompressed.
        ends_s: When the caller's time is up, on the loop's clock.

    Raises:
        Misdirected: Too large, or in a coding that is not taken.
        InvalidRequest: Its encoding is broken.
        DeadlineExceeded: It did not come in time.
    """
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in CODINGS:
        raise Misdirected(
            f"content-encoding: {coding[:MAX_SHOWN]!r} is not taken; {', '.join(CODINGS)} are",
            status=415,
            headers={"accept-encoding": ", ".join(CODINGS)},
        )
    if (request.content_length or 0) > most:
        raise _too_large(most)
    if request.headers.get("expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    late_s = asyncio.get_running_loop().time() + BODY_S
    try:
        if request.content.is_eof():  # the usual one came with its head: it needs no timer
            return await request.read()
        async with asyncio.timeout_at(min(ends_s, late_s)):
            return await request.read()
    except TimeoutError as error:
        slow = f"the body did not come within {BODY_S:g} s"
        raise DeadlineExceeded(
            slow if late_s < ends_s else "time was up before the request was read"
        ) from error
    except web.HTTPRequestEntityTooLarge as error:
        raise _too_large(most) from error
    except web.RequestPayloadError as error:
        raise InvalidRequest("the body cannot be read: its encoding is broken") from error


def _too_large(most: int) -> Misdirected:
    return Misdirected(
        f"the body is larger than {most} bytes, the most that is taken: send fewer inputs at once",
        status=413,
    )


_PLAINLY: Final = {"missing": "is missing", "too_short": "must not be empty"}
"""By pydantic's type of error: what it says of itself speaks of validation."""


def _wrong(item: ErrorDetails) -> InvalidRequest:
    said = item["msg"].replace("Input should be", "must be")
    if item["type"] == "json_invalid":
        return InvalidRequest(f"the body is no JSON: {said.removeprefix('Invalid JSON: ')}")
    where = ""
    for part in item["loc"]:
        if isinstance(part, int):
            where += f"[{part}]"
        elif part not in _TAGS:
            where += f".{part}" if where else part
    said = _PLAINLY.get(item["type"], said)
    given = "" if item["type"] == "missing" else f", got {_short(item['input'])}"
    return WrongField(f"{where or 'the body'}: {said}{given}", param=where or None)


def _short(value: object) -> str:
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    said = repr(value if not isinstance(value, str) else value[:MAX_SHOWN])
    return said[:MAX_SHOWN]


Encode = Callable[[NDArray[np.float32]], bytes]
"""One vector, shape (dimensions,), as JSON."""


def decimals(row: NDArray[np.float32]) -> bytes:
    """A list of numbers. Each is the shortest that is its float64, so its float32 too."""
    return to_json(row.tolist())


def base64(row: NDArray[np.float32]) -> bytes:
    """A string: the float32, little-endian, in base64."""
    return b'"%b"' % b2a_base64(row.data, newline=False)


async def encoded(rows: NDArray[np.float32], encode: Encode) -> list[bytes]:
    """Every row by *encode*, with turns of the event loop between them.

    Args:
        rows: Shape (n, dimensions), float32, little-endian, contiguous.
    """
    step = max(1, STEP_COMPONENTS // rows.shape[1])
    done: list[bytes] = []
    for start in range(0, len(rows), step):
        if start:
            await asyncio.sleep(0)
        done += [encode(row) for row in rows[start : start + step]]
    return done
