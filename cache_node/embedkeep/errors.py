"""Everything that can go wrong here, as one tree, and the tables that put it on the wires.

EmbedKeepError
├── InvalidRequest          the caller must change the request; never retried
│   ├── InvalidInput        one text is at fault; carries its index
│   │   └── InvalidVector   one given vector is not what the model returns for its text
│   ├── UnknownModel        no such model or alias here
│   ├── Unauthenticated     no API key, or one that no tenant has
│   └── NotBuilt            valid, but this version does not do it yet
├── PartialFailure          some inputs of a client's call failed; keeps the rows of the others
├── NotCached               only_if_cached was asked for and there is no entry
├── ModelDrift              an embedder does not compute what the cache was filled with
├── DeadlineExceeded        the caller's time was up
├── Retryable               may pass by itself; carries retry_after_s
│   ├── Overloaded          a bounded queue is full
│   └── Unavailable         a part that is needed cannot be reached
│       └── EmbedderUnavailable
├── InvalidConfig           a file, field or flag is wrong; names it, its value and what is allowed
├── InvalidResponse         a peer answered something that does not fit the request
└── Internal                the other side failed in a way it has no name for

Bugs stay outside the tree. Foreign errors become ours where they enter, with their cause kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Final, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray


class EmbedKeepError(Exception):
    """Root of every error that embedkeep raises on purpose."""

    reason: ClassVar[str] = "Error"
    """Stable name for programs; it travels beside the gRPC code."""


class InvalidRequest(EmbedKeepError):
    """The request can never succeed as it is."""

    reason = "InvalidRequest"


class InvalidInput(InvalidRequest):
    """One of the texts cannot be embedded.

    Args:
        index: Its position in the request, or None where the position is said elsewhere.
    """

    reason = "InvalidInput"

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class InvalidVector(InvalidInput):
    """A vector that was to be imported is not what the model returns for its text."""

    reason = "InvalidVector"


class UnknownModel(InvalidRequest):
    """No model of that name or alias is served here."""

    reason = "UnknownModel"


class Unauthenticated(InvalidRequest):
    """The call carries no API key, or one that belongs to no tenant."""

    reason = "Unauthenticated"


class NotBuilt(InvalidRequest):
    """A valid wish that this version cannot fulfil."""

    reason = "NotBuilt"


class PartialFailure(EmbedKeepError):
    """Some inputs of a call failed and some did not. Raised by the client, never sent.

    Args:
        failures: The failed inputs' errors by index, in ascending order.
        vectors: Shape [n, d], float32; rows of failed inputs hold NaN.
    """

    reason = "PartialFailure"

    def __init__(
        self,
        message: str,
        *,
        failures: Mapping[int, EmbedKeepError],
        vectors: NDArray[np.float32],
    ) -> None:
        super().__init__(message)
        self.failures = failures
        self.vectors = vectors


class NotCached(EmbedKeepError):
    """The caller wanted a cached answer or none, and there is no entry."""

    reason = "NotCached"


class ModelDrift(EmbedKeepError):
    """An embedder computes something else than the entries of this cache."""

    reason = "ModelDrift"


class DeadlineExceeded(EmbedKeepError):
    """The time that the caller gave was up before the answer was there."""

    reason = "DeadlineExceeded"


class Retryable(EmbedKeepError):
    """May pass by itself.

    Args:
        retry_after_s: When a retry has a chance, seconds; None: no estimate.
    """

    reason = "Retryable"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(Retryable):
    """Refused at once, because a bounded queue is full. Nothing was started."""

    reason = "Overloaded"


LEAST_PUSHBACK_S: Final = 0.05
"""Below it, coming again costs more than it gains."""
MOST_PUSHBACK_S: Final = 30.0
"""Beyond it no estimate holds."""
_UNMEASURED_S: Final = 0.5


def pushback_s(wait_s: float | None) -> float:
    """When one who is refused as `Overloaded` should come again, seconds.

    After the time that it would have waited. Sooner there is room for the first of those who were
    refused, and all others would come for nothing.

    Args:
        wait_s: As it was measured. None: it was not yet.
    """
    if wait_s is None:
        return _UNMEASURED_S
    return round(min(max(wait_s, LEAST_PUSHBACK_S), MOST_PUSHBACK_S), 3)


class Unavailable(Retryable):
    """A part that is needed cannot be reached."""

    reason = "Unavailable"


class EmbedderUnavailable(Unavailable):
    """No embedder answers, and the vector is not cached."""

    reason = "EmbedderUnavailable"


class InvalidConfig(EmbedKeepError):
    """A file, field or flag is wrong.

    Args:
        message: What is wrong and what is allowed.
        field: Path of the field, or the flag.
        source: File the field stands in, with a line where known.
    """

    reason = "InvalidConfig"

    def __init__(self, message: str, *, field: str = "", source: str = "") -> None:
        where = ": ".join(part for part in (source, field) if part)
        super().__init__(f"{where}: {message}" if where else message)
        self.field = field
        self.source = source


class InvalidResponse(EmbedKeepError):
    """A peer answered something that does not fit what was asked."""

    reason = "InvalidResponse"


class Internal(EmbedKeepError):
    """The other side failed in a way it has no name for."""

    reason = "Internal"


CODES: Mapping[type[EmbedKeepError], grpc.StatusCode] = MappingProxyType(
    {
        InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
        InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
        InvalidVector: grpc.StatusCode.INVALID_ARGUMENT,
        UnknownModel: grpc.StatusCode.NOT_FOUND,
        Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
        NotBuilt: grpc.StatusCode.UNIMPLEMENTED,
        NotCached: grpc.StatusCode.NOT_FOUND,
        ModelDrift: grpc.StatusCode.FAILED_PRECONDITION,
        DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
        Retryable: grpc.StatusCode.UNAVAILABLE,
        Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
        Unavailable: grpc.StatusCode.UNAVAILABLE,
        EmbedderUnavailable: grpc.StatusCode.UNAVAILABLE,
        InvalidConfig: grpc.StatusCode.FAILED_PRECONDITION,
        InvalidResponse: grpc.StatusCode.INTERNAL,
        Internal: grpc.StatusCode.INTERNAL,
        EmbedKeepError: grpc.StatusCode.UNKNOWN,
    }
)
"""The one table from the tree to gRPC; docs/reference shows it."""


@dataclass(frozen=True, slots=True)
class OverHttp:
    """How an error is said over HTTP, in the words of each API's own server."""

    openai: tuple[int, str, str | None]
    """Status, `type` and `code`."""
    tei: tuple[int, str]
    """Status and `error_type`."""


_INVALID = OverHttp((400, "invalid_request_error", None), (422, "validation"))
_BACKEND = OverHttp((502, "server_error", "bad_embedder_answer"), (424, "backend"))
_DOWN = OverHttp((503, "server_error", "unavailable"), (503, "unhealthy"))

HTTP: Mapping[type[EmbedKeepError], OverHttp] = MappingProxyType(
    {
        InvalidRequest: _INVALID,
        InvalidInput: OverHttp((400, "invalid_request_error", None), (413, "validation")),
        InvalidVector: _INVALID,
        UnknownModel: OverHttp(
            (404, "invalid_request_error", "model_not_found"), (404, "validation")
        ),
        Unauthenticated: OverHttp(
            (401, "invalid_request_error", "invalid_api_key"), (401, "validation")
        ),
        NotBuilt: OverHttp((400, "invalid_request_error", "unsupported"), (422, "tokenizer")),
        NotCached: OverHttp((504, "server_error", "not_cached"), (504, "backend")),
        ModelDrift: OverHttp((503, "server_error", "model_drift"), (424, "backend")),
        DeadlineExceeded: OverHttp((504, "server_error", "timeout"), (504, "backend")),
        Retryable: _DOWN,
        Overloaded: OverHttp((429, "rate_limit_error", "overloaded"), (429, "overloaded")),
        Unavailable: _DOWN,
        EmbedderUnavailable: _DOWN,
        InvalidConfig: OverHttp((500, "server_error", None), (424, "backend")),
        InvalidResponse: _BACKEND,
        Internal: OverHttp((500, "server_error", None), (424, "backend")),
        EmbedKeepError: OverHttp((500, "server_error", None), (424, "backend")),
    }
)
"""The one table from the tree to HTTP; docs/reference shows it. 504 for what is not cached is
RFC 9111's word for only-if-cached (5.2.1.7)."""

REASON_KEY = "embedkeep-reason"
"""Trailing metadata: the class of an error, by its reason."""

RETRY_KEY = "grpc-retry-pushback-ms"
"""Trailing metadata: when a retry has a chance, ms. The name that gRPC's own retries look for."""

_BY_REASON = {cls.reason: cls for cls in CODES}
_BY_CODE: Mapping[int, type[EmbedKeepError]] = MappingProxyType(
    {
        grpc.StatusCode.INVALID_ARGUMENT.value[0]: InvalidRequest,
        grpc.StatusCode.UNAUTHENTICATED.value[0]: Unauthenticated,
        grpc.StatusCode.UNIMPLEMENTED.value[0]: NotBuilt,
        grpc.StatusCode.FAILED_PRECONDITION.value[0]: ModelDrift,
        grpc.StatusCode.DEADLINE_EXCEEDED.value[0]: DeadlineExceeded,
        grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]: Overloaded,
        grpc.StatusCode.UNAVAILABLE.value[0]: Unavailable,
        grpc.StatusCode.NOT_FOUND.value[0]: NotCached,
    }
)


def status_of(error: EmbedKeepError) -> grpc.StatusCode:
    """GRPC's status of *error*, by its nearest class in the table."""
    return _nearest(CODES, error)


def code_of(error: EmbedKeepError) -> int:
    """The same as google.rpc.Code's number."""
    return int(status_of(error).value[0])


def over_http(error: EmbedKeepError) -> OverHttp:
    """What to say over HTTP of *error*, by its nearest class in the table."""
    return _nearest(HTTP, error)


Said = TypeVar("Said")


def _nearest(table: Mapping[type[EmbedKeepError], Said], error: EmbedKeepError) -> Said:
    return next(table[cls] for cls in type(error).__mro__ if cls in table)  # the root is in both


def from_wire(
    code: int, reason: str, message: str, *, retry_after_s: float | None = None
) -> EmbedKeepError:
    """The error that a peer reported, as the class it had there.

    Args:
        code: google.rpc.Code number.
        reason: The peer's class; unknown or empty: chosen by *code*.
        retry_after_s: The peer's estimate, seconds.
    """
    cls = _BY_REASON.get(reason) or _BY_CODE.get(code, Internal)
    if issubclass(cls, Retryable):
        return cls(message, retry_after_s=retry_after_s)
    return cls(message)


def from_call(
    code: grpc.StatusCode, trailers: Mapping[str, str | bytes], message: str
) -> EmbedKeepError:
    """The error of a call that failed, as the class it had at the peer.

    Args:
        trailers: The call's trailing metadata: REASON_KEY and RETRY_KEY are looked for.
    """
    return from_wire(
        int(code.value[0]),
        str(trailers.get(REASON_KEY, "")),
        message,
        retry_after_s=_pushback_s(trailers.get(RETRY_KEY)),
    )


def _pushback_s(value: str | bytes | None) -> float | None:
    """Seconds from the peer's milliseconds; None where it says none, or says not to retry."""
    try:
        milliseconds = int(value) if value is not None else -1
    except ValueError:
        return None
    return milliseconds / 1000 if milliseconds >= 0 else None
