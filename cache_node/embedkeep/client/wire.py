"""Between the wire's messages and the client's own types."""

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
_DTYPES: Mapping[int, Encoding] = MappingProxyType(
    {
        cache_pb2.ENCODING_UNSPECIFIED: Encoding.FLOAT32,
        cache_pb2.ENCODING_FLOAT32: Encoding.FLOAT32,
        cache_pb2.ENCODING_FLOAT16: Encoding.FLOAT16,
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
    for name, column in (
        ("sources", response.sources),
        ("statuses", response.statuses),
        ("tokens", response.tokens),
    ):
        _expect(len(column) == count, f"{len(column)} {name} for {count} inputs")
    errors = _errors_of(response, count)
    rows = _rows_of(response, count)
    asked = ask.dimensions or rows.shape[1]
    failed = len(errors) == count
    _expect(failed or rows.shape[1] == asked, f"{rows.shape[1]} dimensions, {asked} asked for")
    _expect(failed or rows.shape[1] > 0, "no dimensions")
    if not failed:
        # A failed row is NaN throughout, so its first component tells.
        blank = set(map(int, np.flatnonzero(np.isnan(rows[:, 0]))))
        _expect(blank <= errors.keys(), f"NaN in rows {sorted(blank - errors.keys())}: they are OK")
    truncated, imported = frozenset(response.truncated), frozenset(response.imported)
    _expect(max(truncated, default=0) < count, "a truncated index out of range")
    _expect(max(imported, default=0) < count, "an imported index out of range")
    sources = tuple(map(_SOURCES.get, response.sources))
    _expect(None not in sources, "an unknown source")
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
        _expect(getattr(response, limit) > 0, f"{limit} is 0")
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
    ours = from_call(code, trailing, f"{target}: {details or code.name}")
    ours.__cause__ = error
    return ours


def _rows_of(response: cache_pb2.EmbedResponse, count: int) -> NDArray[np.float32]:
    encoding = _DTYPES.get(response.encoding)
    if encoding is None:
        raise InvalidResponse(f"unknown encoding {response.encoding}")
    dtype = np.dtype(encoding.value)
    vectors = response.vectors
    expected = count * response.dimensions * dtype.itemsize
    _expect(
        len(vectors) == expected,
        f"{len(vectors)} bytes of vectors, {expected} expected for {count} rows of "
        f"{response.dimensions} {encoding.name}",
    )
    rows = np.frombuffer(vectors, dtype=dtype).reshape(count, response.dimensions)
    return rows.astype(np.float32, copy=False)


def _errors_of(response: cache_pb2.EmbedResponse, count: int) -> dict[int, EmbedKeepError]:
    errors: dict[int, EmbedKeepError] = {}
    if not response.errors and not any(response.statuses):
        return errors
    for item in response.errors:
        _expect(item.index < count, f"an error at index {item.index} of {count} inputs")
        errors[item.index] = from_wire(item.code, item.reason, item.message)
    failed = {index for index, status in enumerate(response.statuses) if status}
    _expect(failed == errors.keys(), "statuses and errors name different inputs")
    return errors


def at_index(error: EmbedKeepError, index: int) -> EmbedKeepError:
    """*error*, telling the index where its class has room for it."""
    if isinstance(error, InvalidInput):
        error.index = index
    return error


def _expect(fits: bool, otherwise: str) -> None:  # noqa: FBT001  # an assertion's first argument
    if not fits:
        raise InvalidResponse(f"the node's answer does not fit the request: {otherwise}")
