"""Between the wire's messages and the client's own types."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, cast

import grpc
import numpy as np
from numpy.typing import NDArray

from embedkeep.client.options import Ask, Priority
from embedkeep.client.results import CacheInfo, Source, Tier
from embedkeep.errors import (
    EmbedKeepError,
    InvalidInput,
    InvalidResponse,
    from_call,
    from_wire,
)
from embedkeep.v1 import cache_pb2
from embedkeep.views import Encoding

ROW_OVERHEAD_BYTES: Final = 32
"""What a row adds to an answer beside its vector: source, status, tokens, truncated, imported."""
INPUT_OVERHEAD_BYTES: Final = 6
"""What an input adds to a request beside its UTF-8: tag and length, at most."""

_TOO_LARGE: Final = "message larger than max"
"""How gRPC itself refuses a message, on either side, under the code of a full queue."""

_HINTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Failed parsing HTTP/2": "the other side does not answer as gRPC: is it the node's HTTP "
        "port? Then write http:// before it",
        "WRONG_VERSION_NUMBER": "the other side does not speak TLS: give no certificates",
    }
)
"""What gRPC's words for a connection to what is no gRPC mean. They stay in the cause."""

_PRIORITIES: Mapping[Priority, cache_pb2.Priority.ValueType] = MappingProxyType(
    {
        Priority.INTERACTIVE: cache_pb2.PRIORITY_INTERACTIVE,
        Priority.BULK: cache_pb2.PRIORITY_BULK,
        Priority.BACKGROUND: cache_pb2.PRIORITY_BACKGROUND,
    }
)
_ENCODINGS: Mapping[Encoding, cache_pb2.Encoding.ValueType] = MappingProxyType(
    {
        Encoding.FLOAT32: cache_pb2.ENCODING_FLOAT32,
        Encoding.FLOAT16: cache_pb2.ENCODING_FLOAT16,
    }
)
_DTYPES: Mapping[int, np.dtype[np.floating]] = MappingProxyType(
    {
        cache_pb2.ENCODING_UNSPECIFIED: np.dtype(Encoding.FLOAT32.value),
        cache_pb2.ENCODING_FLOAT32: np.dtype(Encoding.FLOAT32.value),
        cache_pb2.ENCODING_FLOAT16: np.dtype(Encoding.FLOAT16.value),
    }
)
_SOURCES: Mapping[int, Source] = MappingProxyType(
    {
        cache_pb2.SOURCE_UNSPECIFIED: Source.NONE,
        cache_pb2.SOURCE_L1: Source.L1,
        cache_pb2.SOURCE_VALKEY: Source.VALKEY,
        cache_pb2.SOURCE_PEER: Source.PEER,
        cache_pb2.SOURCE_EMBEDDER: Source.EMBEDDER,
        cache_pb2.SOURCE_COALESCED: Source.COALESCED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """One EmbedResponse, checked against its request."""

    rows: NDArray[np.float32]
    """Shape [n, d], float32; NaN where failed."""
    sources: tuple[Source, ...]
    tokens: tuple[int, ...]
    truncated: frozenset[int]
    imported: frozenset[int]
    errors: Mapping[int, EmbedKeepError]
    """By position in the request."""
    fingerprint: str
    epoch: int
    saved_device_s: float
    spent_device_s: float


def request_of(texts: Sequence[str], ask: Ask, encoding: Encoding) -> cache_pb2.EmbedRequest:
    """The message that asks for *texts*."""
    request = cache_pb2.EmbedRequest(
        inputs=texts,
        model=ask.model or "",
        prompt=ask.prompt or "",
        view=cache_pb2.View(dimensions=ask.dimensions or 0, encoding=_ENCODINGS[encoding]),
        priority=_PRIORITIES[ask.priority],
        cache_control=cache_pb2.CacheControl(
            no_store=ask.cache.no_store,
            no_cache=ask.cache.no_cache,
            only_if_cached=ask.cache.only_if_cached,
        ),
    )
    if ask.normalize is not None:
        request.view.normalize = ask.normalize
    return request


def answer_of(response: cache_pb2.EmbedResponse, *, count: int, ask: Ask) -> Answer:
    """*response*, once everything in it fits *count* inputs and what was asked.

    Raises:
        InvalidResponse: A column's length, an index, a size or a status does not fit.
    """
    if not len(response.sources) == len(response.statuses) == len(response.tokens) == count:
        raise _misfit(
            f"{len(response.sources)} sources, {len(response.statuses)} statuses and "
            f"{len(response.tokens)} tokens for {count} inputs"
        )
    errors = _errors_of(response, count)
    rows = _rows_of(response, count)
    if len(errors) < count:
        asked = ask.dimensions or rows.shape[1]
        if rows.shape[1] != asked or not asked:
            raise _misfit(f"{rows.shape[1]} dimensions, {asked or 'some'} asked for")
        _check_numbers(rows, errors)
    truncated, imported = frozenset(response.truncated), frozenset(response.imported)
    if max(truncated, default=0) >= count:
        raise _misfit("a truncated index out of range")
    if max(imported, default=0) >= count:
        raise _misfit("an imported index out of range")
    sources = tuple(map(_SOURCES.get, response.sources))
    if None in sources:
        raise _misfit("an unknown source")
    return Answer(
        rows=rows,
        sources=cast("tuple[Source, ...]", sources),
        tokens=tuple(response.tokens),
        truncated=truncated,
        imported=imported,
        errors=errors,
        fingerprint=response.fingerprint,
        epoch=response.epoch,
        saved_device_s=response.saved_device_seconds,
        spent_device_s=response.spent_device_seconds,
    )


def info_of(response: cache_pb2.InfoResponse) -> CacheInfo:
    """*response* as the client's type.

    Raises:
        InvalidResponse: A limit is 0, so that nothing could be asked.
    """
    for limit in ("max_inputs", "max_input_bytes", "max_message_bytes"):
        if not getattr(response, limit):
            raise _misfit(f"{limit} is 0")
    return CacheInfo(
        version=response.version,
        model=response.model,
        aliases=tuple(response.aliases),
        prompts=tuple(response.prompts),
        fingerprint=response.fingerprint,
        dimensions=response.dimensions,
        max_tokens=response.max_tokens,
        epoch=response.epoch,
        max_inputs=response.max_inputs,
        max_input_bytes=response.max_input_bytes,
        max_message_bytes=response.max_message_bytes,
        tiers=tuple(
            Tier(name=tier.name, serving=tier.serving, message=tier.message)
            for tier in response.tiers
        ),
        imports=response.imports,
        min_cosine=response.min_cosine,
    )


def error_of(error: grpc.RpcError, *, target: str) -> EmbedKeepError:
    """*error* as ours, in the class it had at the node; with the peer's word on when to retry.

    The caller keeps it as the cause: ``raise error_of(error, ...) from error``.
    """
    code, details = grpc.StatusCode.UNKNOWN, ""
    trailing: dict[str, str | bytes] = {}
    if isinstance(error, (grpc.Call, grpc.aio.AioRpcError)):
        code = error.code()
        details = error.details() or ""
        trailing = dict(error.trailing_metadata() or ())
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in details:
        code = grpc.StatusCode.INVALID_ARGUMENT
    hint = next((said for words, said in _HINTS.items() if words in details), "")
    ours = from_call(code, trailing, f"{target}: {hint or details or code.name}")
    ours.__cause__ = error
    return ours


def _rows_of(response: cache_pb2.EmbedResponse, count: int) -> NDArray[np.float32]:
    dtype = _DTYPES.get(response.encoding)
    if dtype is None:
        raise InvalidResponse(f"unknown encoding {response.encoding}")
    expected = count * response.dimensions * dtype.itemsize
    if len(vectors := response.vectors) != expected:
        raise _misfit(
            f"{len(vectors)} bytes of vectors, {expected} expected for {count} rows of "
            f"{response.dimensions} {dtype.name}"
        )
    rows = np.frombuffer(vectors, dtype=dtype).reshape(count, response.dimensions)
    return rows.astype(np.float32, copy=False)


def _check_numbers(rows: NDArray[np.float32], errors: Mapping[int, EmbedKeepError]) -> None:
    """Only rows that have failed hold NaN, and those throughout: their first component tells.

    Raises:
        InvalidResponse: Another does.
    """
    first = rows[:, 0]
    if not math.isnan(first.dot(first)):  # one call for all, where isnan and any are two
        return
    blank = set(map(int, np.flatnonzero(np.isnan(first))))
    if not blank <= errors.keys():
        raise _misfit(f"NaN in rows {sorted(blank - errors.keys())}: they are OK")


def _errors_of(response: cache_pb2.EmbedResponse, count: int) -> dict[int, EmbedKeepError]:
    errors: dict[int, EmbedKeepError] = {}
    if not response.errors and not any(response.statuses):
        return errors
    for item in response.errors:
        if item.index >= count:
            raise _misfit(f"an error at index {item.index} of {count} inputs")
        errors[item.index] = from_wire(item.code, item.reason, item.message)
    failed = {index for index, status in enumerate(response.statuses) if status}
    if failed != errors.keys():
        raise _misfit("statuses and errors name different inputs")
    return errors


def at_index(error: EmbedKeepError, index: int) -> EmbedKeepError:
    """*error*, telling the index where its class has room for it."""
    if isinstance(error, InvalidInput):
        error.index = index
    return error


def _misfit(why: str) -> InvalidResponse:
    return InvalidResponse(f"the node's answer does not fit the request: {why}")
