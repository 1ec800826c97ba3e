"""What an upstream's refusal means, and when it wants to be asked again. Pure.

An upstream's own words may hold the texts of a whole batch, of several tenants. They are told only
where a request held one text, to whoever asked for it, and never logged.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Final

from embedkeep.errors import EmbedderUnavailable, EmbedKeepError, InvalidResponse, Overloaded

LONGEST_PAUSE_S: Final = 3600.0
"""An upstream that asks for more is asked again after this."""

_MOST_WORDS: Final = 300
"""Characters of an upstream's own words that are told."""


class Kind(StrEnum):
    """What went wrong with a request."""

    THROTTLED = "throttled"
    """Too much for now: all requests pause."""
    EXHAUSTED = "exhausted"
    """The account has no quota or credit left."""
    KEY = "key"
    """The key is missing, wrong or not allowed to do this."""
    MODEL = "model"
    """No such model, no such path, or it is elsewhere: redirects are not followed."""
    TOO_MANY = "too_many"
    """More inputs than it takes at once."""
    TOO_LONG = "too_long"
    """More tokens or bytes than it takes at once, or in one input."""
    REJECTED = "rejected"
    """Something in it is wrong: one of the inputs, where others were taken before."""
    FAILED = "failed"
    """It broke, did not answer in time, or was not reached."""
    LATE = "late"
    """It did not answer in the time that its callers had, which says nothing of the upstream."""
    NONSENSE = "nonsense"
    """It answered something that does not fit the question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A request that gave no vectors."""

    kind: Kind
    said: str
    """For people, without anything that was sent: "429 rate_limit_exceeded"."""
    words: str = ""
    """The upstream's own, which may quote what was sent."""
    retry_after_s: float | None = None
    """When it wants to be asked again. None: it does not say."""
    suspect: int | None = None
    """Index of the input that it names. None: it names none."""


def from_status(
    status: int, headers: Mapping[str, str], body: bytes, *, now_s: float
) -> Failure:  # fmt: skip
    """What an answer means that is no success.

    Args:
        headers: Names in lower case, or found in any.
        now_s: Unix time, seconds: what a date in Retry-After is read against.
    """
    told = _Told.read(body)
    kind = _kind(status, told)
    return Failure(
        kind=kind,
        said=" ".join(filter(None, [str(status), *dict.fromkeys((told.type, told.code))])),
        words=" ".join(told.message.split())[:_MOST_WORDS],
        retry_after_s=retry_after_s(headers, now_s=now_s),
        suspect=told.suspect,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """The parts of an error's body that are known, whoever wrote it."""

    message: str = ""
    type: str = ""
    code: str = ""
    param: str = ""

    @classmethod
    def read(cls, body: bytes) -> "_Told":
        try:
            data = json.loads(body)
        except (ValueError, RecursionError):
            return cls(message=body[: 4 * _MOST_WORDS].decode(errors="replace"))
        if not isinstance(data, dict):
            return cls()
        inner = data.get("error")
        known = {**data, **inner} if isinstance(inner, dict) else data
        message = inner if isinstance(inner, str) else known.get("message", known.get("detail"))
        return cls(
            message=message if isinstance(message, str) else "",
            type=_token(known.get("type", known.get("error_type"))),
            code=_token(known.get("code")),
            param=_token(known.get("param")),
        )

    @property
    def suspect(self) -> int | None:
        found = re.search(r"\binputs?[\[.](\d{1,6})\b", f"{self.param} {self.message}")
        return int(found[1]) if found else None


def _token(value: object) -> str:
    """A code as programs write them; anything else could be text that was sent."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        return ""
    return str(value) if re.fullmatch(r"[\w.\[\]-]{1,64}", str(value), re.ASCII) else ""


_TOO_MANY: Final = re.compile(
    r"array too long|array_above_max_length|too many (inputs|texts|items)"
    r"|batch.?size|inputs? (count|length) (exceeds|is larger)",
    re.IGNORECASE,
)
_TOO_LONG: Final = re.compile(
    r"max_tokens_per_request|tokens per request|too many tokens|(payload|entity|body) too large",
    re.IGNORECASE,
)
_QUOTA: Final = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "quota_exceeded"}
)


_BY_STATUS: Final = {
    400: Kind.REJECTED, 401: Kind.KEY, 402: Kind.EXHAUSTED, 403: Kind.KEY, 404: Kind.MODEL,
    405: Kind.MODEL, 407: Kind.KEY, 410: Kind.MODEL, 413: Kind.TOO_LONG, 422: Kind.REJECTED,
    429: Kind.THROTTLED, 503: Kind.THROTTLED, 529: Kind.THROTTLED,
}  # fmt: skip


def _kind(status: int, told: _Told) -> Kind:
    tokens = {told.type, told.code}
    if tokens & _QUOTA:
        return Kind.EXHAUSTED
    if "model_not_found" in tokens or 300 <= status < 400:
        return Kind.MODEL
    if (kind := _BY_STATUS.get(status, Kind.FAILED)) in {Kind.REJECTED, Kind.TOO_LONG}:
        said = f"{told.type} {told.code} {told.message}"
        if _TOO_MANY.search(said):
            return Kind.TOO_MANY
        if _TOO_LONG.search(said):
            return Kind.TOO_LONG
    return kind


def retry_after_s(headers: Mapping[str, str], *, now_s: float) -> float | None:
    """How long an upstream asks to be left alone, seconds; None: it does not say.

    Retry-After in seconds or as a date (RFC 9110, 10.2.3), retry-after-ms, or the time until
    those of the x-ratelimit-* limits are renewed that are used up.
    """
    for wait_s in (
        _number(headers.get("retry-after-ms"), 1e-3),
        _number(headers.get("retry-after")),
        _until(headers.get("retry-after"), now_s),
        _until_renewed(headers),
    ):
        if wait_s is not None and wait_s > 0:
            return min(wait_s, LONGEST_PAUSE_S)
    return None


def _number(value: str | None, scale: float = 1.0) -> float | None:
    if value is None or not re.fullmatch(r"\s*[0-9]{1,12}(\.[0-9]{0,9})?\s*", value):
        return None
    return float(value) * scale


def _until(value: str | None, now_s: float) -> float | None:
    try:
        return parsedate_to_datetime(value or "").timestamp() - now_s
    except (ValueError, TypeError, OverflowError):
        return None


def _until_renewed(headers: Mapping[str, str]) -> float | None:
    waits = {
        limit: wait_s
        for limit in ("requests", "tokens")
        if (wait_s := _span(headers.get(f"x-ratelimit-reset-{limit}"))) is not None
    }
    used_up = [
        wait_s
        for limit, wait_s in waits.items()
        if (_number(headers.get(f"x-ratelimit-remaining-{limit}")) or 0) < 1
    ]
    return max(used_up, default=None)


_SPAN: Final = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")


def _span(value: str | None) -> float | None:
    """Seconds of a span such as 6m0s, 1.5s or 20ms; a bare number counts seconds."""
    if value is None or len(value) > 32:
        return None
    if (plain := _number(value)) is not None:
        return plain
    found = _SPAN.fullmatch(value.strip())
    if found is None or not any(found.groups()):
        return None
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + seconds + milliseconds / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What an upstream's parts are called in errors."""

    url: str
    key: str
    model: str


def refusal(failure: Failure | None, names: Names, *, retry_after_s: float) -> EmbedKeepError:
    """What callers hear of a failure that is not the fault of their input.

    Args:
        failure: None: not known.
        retry_after_s: When they may try again.
    """
    if failure is None:
        return EmbedderUnavailable("the upstream cannot be used", retry_after_s=retry_after_s)
    said = failure.said
    match failure.kind:
        case Kind.THROTTLED:
            return Overloaded(f"the upstream is overloaded ({said})", retry_after_s=retry_after_s)
        case Kind.EXHAUSTED:
            message = f"the upstream's account has no quota left ({said})"
        case Kind.KEY:
            message = f"the upstream refuses {names.key} ({said})"
        case Kind.MODEL:
            message = f"the upstream has no model {names.model} at {names.url} ({said})"
        case Kind.NONSENSE:
            return InvalidResponse(f"the upstream's answer does not fit: {said}")
        case Kind.REJECTED | Kind.TOO_MANY | Kind.TOO_LONG:
            message = f"the upstream at {names.url} refuses a request ({said})"
        case _:
            message = f"the upstream at {names.url} fails: {said}"
    return EmbedderUnavailable(message, retry_after_s=retry_after_s)
