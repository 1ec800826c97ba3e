"""What a client and a call can be told: units, what None means, why each default.

Each set of options is written twice: as a frozen dataclass, which checks and holds it, and as a
TypedDict, which types the keywords of `Client(...)` and `embed(...)`. A test holds them together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict

import numpy as np
from numpy.typing import NDArray

from embedkeep.errors import InvalidConfig, InvalidRequest
from embedkeep.views import Encoding, View

if TYPE_CHECKING:
    # Only for its type: pydantic would take longer to import than everything else here together.
    from embedkeep.config import ClientTls

ApiKey = str | Path | Callable[[], str]
"""The key itself; a file that holds it (first line, read again for each call, so that it can be
rotated); or a function that returns it, called for each call."""

EmbedTexts = Callable[[Sequence[str], str | None], NDArray[np.float32]]
"""Embeds texts under a prompt's name (None: no prompt). Returns shape [n, d], rows in order."""


class Priority(StrEnum):
    """Who waits for the answer."""

    INTERACTIVE = "interactive"
    """A person."""
    BULK = "bulk"
    """A job: indexing, evaluation."""
    BACKGROUND = "background"
    """Nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheControl:
    """What a cache may do for a call, as in HTTP.

    Raises:
        InvalidRequest: Both no_cache and only_if_cached.
    """

    no_store: bool = False
    """Keep nothing of this call."""
    no_cache: bool = False
    """Compute anew, even if there is an entry."""
    only_if_cached: bool = False
    """Answer from the cache or with NotCached; never compute."""

    def __post_init__(self) -> None:
        if self.no_cache and self.only_if_cached:
            raise InvalidRequest("cache: no_cache and only_if_cached exclude each other")


@dataclass(frozen=True, slots=True, kw_only=True)
class NearCache:
    """A cache inside the client: repeats are answered without a call.

    It is emptied when an answer shows another model or a later epoch. Somebody else's
    `invalidate_all` is therefore seen with the next answer of a node that knows of it; somebody
    else's `invalidate` of single texts is not seen: their rows stay until max_age_s.
    """

    max_bytes: int
    """Vectors, texts and what keeping them costs."""
    max_age_s: float = 60.0
    """How old an answer may be, seconds: how stale you accept answers after an invalidation."""

    def __post_init__(self) -> None:
        _positive("near_cache.max_bytes", self.max_bytes)
        _positive("near_cache.max_age_s", self.max_age_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """When a refused request is sent again: pauses double, each drawn from 0 to its full length.

    Only what the node says may pass is sent again: Unavailable, and Overloaded where the node says
    when. Never after a deadline, and never for longer than the call's timeout.
    Source of the jitter: Brooker 2015, "Exponential Backoff And Jitter".
    """

    max_attempts: int = 5
    """Of each request, with the first. 1: no retries."""
    first_pause_s: float = 0.1
    """Longest first pause, seconds: about what a lost connection takes to come back."""
    max_pause_s: float = 2.0
    """Longest pause, seconds."""

    def __post_init__(self) -> None:
        _positive("retries.max_attempts", self.max_attempts)
        _positive("retries.first_pause_s", self.first_pause_s)
        _positive("retries.max_pause_s", self.max_pause_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """The model itself, for when the cache cannot be reached or does not answer in time.

    It gets the texts as they were given and the *name* of their prompt: the client never learns
    the prompt's text, so the function puts it before the texts. What it returns must be the
    model's full output; the client cuts and scales it as the call asks. It is called in the
    caller's thread (`AsyncClient`: in another one) and is not stopped by the call's timeout.
    Nothing it returns is kept. Calls with only_if_cached never use it.
    """

    embed: EmbedTexts
    after_s: float | None = None
    """How long the cache gets, seconds. None: half of the call's timeout."""

    def __post_init__(self) -> None:
        if self.after_s is not None:
            _positive("fallback.after_s", self.after_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a client behaves."""

    api_key: ApiKey | None = field(default=None, repr=False)
    """None: the cache has no tenants."""
    tls: "ClientTls | None" = None
    """None: plain text."""
    timeout_s: float = 10.0
    """Longest call, seconds, with all its parts and retries: a person's patience."""
    retries: Retries = field(default_factory=Retries)
    near_cache: NearCache | None = None
    """None: each call goes to a node."""
    fallback: Fallback | None = None
    """None: a cache that cannot be reached is an error."""
    encoding: Encoding = Encoding.FLOAT32
    """On the wire. FLOAT16 halves the bytes and rounds; results are float32 in any case."""
    parallel: int = 4
    """Requests of one call in flight at once: bounds its memory, keeps several nodes busy."""

    def __post_init__(self) -> None:
        _positive("timeout_s", self.timeout_s)
        _positive("parallel", self.parallel)


class ClientOptions(TypedDict, total=False):
    """Keywords of a client; `Options` says what they mean."""

    api_key: ApiKey | None
    tls: "ClientTls | None"
    timeout_s: float
    retries: Retries
    near_cache: NearCache | None
    fallback: Fallback | None
    encoding: Encoding
    parallel: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """How one call wants its texts embedded.

    Raises:
        InvalidRequest: A number is out of range.
    """

    model: str | None = None
    """The resource's name, `name:prompt`, or the model's full name. None: the only one served."""
    prompt: str | None = None
    """Name of one of the resource's prompts. None: none, or the one in *model*."""
    dimensions: int | None = None
    """Keep so many components (Matryoshka models). None: all."""
    normalize: bool | None = None
    """Scale to length 1. None: as the model does; uncut vectors are then the model's own bits."""
    priority: Priority = Priority.INTERACTIVE
    cache: CacheControl = field(default_factory=CacheControl)
    timeout_s: float | None = None
    """Longest call, seconds, with all its parts and retries. None: the client's."""

    def __post_init__(self) -> None:
        if self.dimensions is not None and self.dimensions < 1:
            raise InvalidRequest(f"dimensions is {self.dimensions}; at least 1, or None for all")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise InvalidRequest(f"timeout_s is {self.timeout_s}; more than 0, or None")

    def view(self, encoding: Encoding) -> View:
        """How vectors are wanted on the wire."""
        return View(dimensions=self.dimensions or 0, normalize=self.normalize, encoding=encoding)

    @property
    def prompt_name(self) -> str | None:
        """The prompt, from its own field or from `name:prompt`."""
        return self.prompt or (self.model or "").partition(":")[2] or None


PLAIN: Final = Ask()
"""A call without options."""


class EmbedOptions(TypedDict, total=False):
    """Keywords of a call; `Ask` says what they mean."""

    model: str | None
    prompt: str | None
    dimensions: int | None
    normalize: bool | None
    priority: Priority
    cache: CacheControl
    timeout_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportAsk:
    """How one call wants its pairs imported.

    Raises:
        InvalidRequest: A number is out of range.
    """

    model: str | None = None
    """As in `Ask`."""
    prompt: str | None = None
    """As in `Ask`: what stood before the texts when they were embedded."""
    tokens: Sequence[int] | None = None
    """One a text, as the model counted them. None: not known; answers then say 0."""
    truncated: Sequence[int] = ()
    """Indices of texts known to be longer than the model reads."""
    fingerprint: str | None = None
    """Refused where the cache's model is another. None: whatever it is, the sample decides."""
    overwrite: bool = False
    """Replace what is cached already. Other nodes' memories may answer what they hold still."""
    dry_run: bool = False
    """Check only."""
    timeout_s: float | None = None
    """Longest call, seconds, with all its parts and retries. None: the client's."""

    def __post_init__(self) -> None:
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise InvalidRequest(f"timeout_s is {self.timeout_s}; more than 0, or None")


class ImportOptions(TypedDict, total=False):
    """Keywords of `import_pairs`; `ImportAsk` says what they mean."""

    model: str | None
    prompt: str | None
    tokens: Sequence[int] | None
    truncated: Sequence[int]
    fingerprint: str | None
    overwrite: bool
    dry_run: bool
    timeout_s: float | None


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise InvalidConfig(f"must be more than 0, got {value}", field=name)
