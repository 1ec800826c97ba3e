"""What request headers ask for, and what response headers say: the same for every API."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from embedkeep.errors import InvalidRequest
from embedkeep.node.admission import Urgency
from embedkeep.node.exchange import Answer
from embedkeep.node.metrics import Result
from embedkeep.node.tenants import BEARER, KEY_HEADERS
from embedkeep.node.trace import PARENT, STATE, Trace, trace_of

TIMEOUT: Final = "x-request-timeout-ms"
PRIORITY: Final = "x-embedkeep-priority"
CACHE_CONTROL: Final = "cache-control"
CREDENTIALS: Final = (BEARER, *KEY_HEADERS)

SOURCES: Final = "x-embedkeep-sources"
SAVED: Final = "x-embedkeep-saved-device-seconds"
SPENT: Final = "x-embedkeep-spent-device-seconds"
FINGERPRINT: Final = "x-embedkeep-fingerprint"
REASON: Final = "x-embedkeep-reason"
CACHE_STATUS: Final = "cache-status"

PRIORITIES: Final = {
    "interactive": Urgency.DEMAND,
    "bulk": Urgency.BULK,
    "background": Urgency.BACKGROUND,
}
MAX_TIMEOUT_MS: Final = 24 * 3600 * 1000

_SHOWN: Final = (Result.L1, Result.VALKEY, Result.PEER, Result.EMBEDDER, Result.COALESCED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a caller asks for beside the body."""

    timeout_s: float | None = None
    """None: the node's default."""
    urgency: Urgency = Urgency.DEMAND
    store: bool = True
    fresh: bool = False
    cached_only: bool = False
    trace: Trace | None = None
    """None: there is none, or it is not one."""


def read(headers: Mapping[str, str]) -> Wishes:
    """What *headers* ask for.

    Raises:
        InvalidRequest: A header of ours has no such value; names it.
    """
    # RFC 9111 5.2: names are case-insensitive, and what is unknown is ignored.
    control = {part.strip().lower() for part in headers.get(CACHE_CONTROL, "").split(",")}
    return Wishes(
        timeout_s=_timeout_s(headers.get(TIMEOUT)),
        urgency=_urgency(headers.get(PRIORITY)),
        store="no-store" not in control,
        fresh="no-cache" in control,
        cached_only="only-if-cached" in control,
        trace=trace(headers),
    )


def trace(headers: Mapping[str, str]) -> Trace | None:
    """The trace that a request belongs to; None: to none that can be read."""
    if PARENT not in headers:
        return None
    return trace_of((name.lower(), value) for name, value in headers.items())


def credentials(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """What says who calls, as gRPC's metadata has it."""
    return [(name, headers[name]) for name in CREDENTIALS if name in headers]


def metadata(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """All that gRPC's metadata would say: who calls, and in which trace."""
    said = credentials(headers)
    if PARENT in headers:
        named = ((name.lower(), value) for name, value in headers.items())
        said += [item for item in named if item[0] in {PARENT, STATE}]
    return said


def of(answer: Answer, *, name: str, fresh: bool) -> dict[str, str]:
    """What is said of *answer*.

    Args:
        name: Of this cache.
        fresh: The caller wanted nothing stored.
    """
    counts = Counter(answer.results)
    return {
        SOURCES: ", ".join(f"{each}={counts[each]}" for each in _SHOWN if each in counts),
        SAVED: _seconds(answer.saved_ns),
        SPENT: _seconds(answer.spent_ns),
        FINGERPRINT: answer.space.fingerprint,
        CACHE_STATUS: f"{name}; {_status(counts, fresh=fresh)}",
    }


def _status(counts: Mapping[Result, int], *, fresh: bool) -> str:
    """In the words of RFC 9211, for all inputs together."""
    hits = [each for each in (Result.L1, Result.VALKEY, Result.PEER) if each in counts]
    if hits and len(hits) == len(counts):
        return f"hit; detail={hits[-1]}"  # the slower one, where both had some
    forward = "request" if fresh else "partial" if hits else "miss"
    return f"fwd={forward}" + ("; collapsed" if Result.EMBEDDER not in counts else "")


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e9:.6f}"


def _timeout_s(value: str | None) -> float | None:
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and 0 < int(value[:12]) <= MAX_TIMEOUT_MS):
        raise InvalidRequest(
            f"{TIMEOUT}: {value[:40]!r} is no whole number of milliseconds from 1 to "
            f"{MAX_TIMEOUT_MS}"
        )
    return int(value) / 1000


def _urgency(value: str | None) -> Urgency:
    if value is None:
        return Urgency.DEMAND
    if (found := PRIORITIES.get(value.strip().lower())) is None:
        raise InvalidRequest(f"{PRIORITY}: {value[:40]!r} is none; {', '.join(PRIORITIES)} are")
    return found
