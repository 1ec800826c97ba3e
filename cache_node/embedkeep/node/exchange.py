"""What is asked of a cache and what it answers, as plain data. Nothing here knows gRPC."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from embedkeep import views
from embedkeep.errors import EmbedKeepError, InvalidInput, NotCached
from embedkeep.node.admission import Urgency
from embedkeep.node.metrics import Result
from embedkeep.node.space import Space
from embedkeep.node.tenants import Partition
from embedkeep.node.trace import Trace
from embedkeep.records import FLAG_IMPORTED, FLAG_TRUNCATED, Entries, Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One batch of one tenant."""

    texts: Sequence[str]
    prompt: str
    """Put before each text; resolved, not a name."""
    view: views.View
    urgency: Urgency = Urgency.DEMAND
    store: bool = True
    """Answers may be kept."""
    fresh: bool = False
    """Compute anew, whatever is stored."""
    cached_only: bool = False
    """Do not compute."""
    trace: Trace | None = None
    """Passed on with what this request has computed. Who joins a computation is not seen in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request, and what was true when its keys were made."""

    request: Request
    tenant: Partition
    epoch: int
    space: Space


@dataclass(slots=True, kw_only=True)
class Answer:
    """One row for each text; filled while tiers answer, then handed out."""

    space: Space
    """Which model's vectors these are."""
    epoch: int
    """The tenant's when the request was read."""
    rows: NDArray[np.float32]
    """Shape (texts, model's dimensions); NaN where there is no vector."""
    results: list[Result]
    tokens: list[int]
    truncated: list[int] = field(default_factory=list)
    """Indices of texts that the model did not read to their end."""
    imported: list[int] = field(default_factory=list)
    """Indices of rows that a caller brought."""
    errors: dict[int, EmbedKeepError] = field(default_factory=dict)
    saved_ns: int = 0
    spent_ns: int = 0
    spent_tokens: int = 0

    @property
    def saved_tokens(self) -> int:
        """Of the rows that were answered from a cache."""
        return sum(self.tokens) - self.spent_tokens

    @classmethod
    def empty(cls, count: int, space: Space, epoch: int) -> Self:
        """No row answered yet; each must be taken or failed."""
        return cls(
            space=space,
            epoch=epoch,
            rows=np.empty((count, space.dimensions), np.float32),
            results=[Result.ERROR] * count,
            tokens=[0] * count,
        )

    def take(self, index: int, entry: Entry, result: Result) -> None:
        """Answer one row."""
        self.rows[index] = entry.vector
        self.results[index] = result
        self.tokens[index] = entry.tokens
        if entry.truncated:
            self.truncated.append(index)
        if entry.imported:
            self.imported.append(index)
        if result is Result.EMBEDDER:
            self.spent_ns += entry.device_ns
            self.spent_tokens += entry.tokens
        else:
            self.saved_ns += entry.device_ns

    def take_all(self, indices: list[int], entries: Entries, result: Result) -> None:
        """Answer rows from a cache, all at once."""
        self.truncated.extend(indices[at] for at in entries.marked(FLAG_TRUNCATED))
        self.imported.extend(indices[at] for at in entries.marked(FLAG_IMPORTED))
        self.saved_ns += entries.device_ns
        if indices == list(range(len(self.results))):  # the common case, without another copy
            self.rows, self.tokens = entries.vectors, entries.tokens
            self.results = [result] * len(indices)
            return
        self.rows[indices] = entries.vectors
        for index, tokens in zip(indices, entries.tokens, strict=True):
            self.results[index] = result
            self.tokens[index] = tokens

    def settle(
        self, indices: Sequence[int], outcome: Entry | EmbedKeepError, result: Result
    ) -> None:
        """Answer all rows of one text with how its flight has ended."""
        for index in indices:
            if isinstance(outcome, EmbedKeepError):
                self.fail(index, outcome)
            else:
                self.take(index, outcome, result)
            if result is Result.EMBEDDER:  # for the first row alone
                result = Result.COALESCED

    def fail(self, index: int, error: EmbedKeepError) -> None:
        """Refuse one row."""
        self.errors[index] = error
        self.results[index] = Result.NOT_CACHED if isinstance(error, NotCached) else Result.ERROR
        self.rows[index] = np.nan


def faults(texts: Sequence[str], max_bytes: int) -> dict[int, InvalidInput]:
    """What `check` says of each that cannot be embedded, by index; most batches have none."""
    # Of all at once first: a fifth of the time.
    if all(texts) and "\0" not in "".join(texts) and 4 * max(map(len, texts)) <= max_bytes:
        return {}
    return {index: error for index, text in enumerate(texts) if (error := check(text, max_bytes))}


def check(text: str, max_bytes: int) -> InvalidInput | None:
    """Why *text* cannot be embedded; None: it can."""
    if not text:
        return InvalidInput("the input is empty: there is nothing to embed")
    if "\0" in text:
        return InvalidInput("the input holds a NUL character: remove it")
    # 4 bytes a character at most; only texts near the limit are measured.
    if 4 * len(text) > max_bytes and (size := len(text.encode())) > max_bytes:
        return InvalidInput(
            f"the input is {size} bytes of UTF-8; at most {max_bytes} are taken: split it into "
            "chunks"
        )
    return None
