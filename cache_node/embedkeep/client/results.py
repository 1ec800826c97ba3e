"""What a call returns."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from embedkeep.errors import EmbedKeepError, PartialFailure


class Source(StrEnum):
    """Where a row came from."""

    NONE = "none"
    """It failed."""
    NEAR = "near"
    """The client's near cache."""
    L1 = "l1"
    """A node's memory."""
    VALKEY = "valkey"
    """Valkey."""
    PEER = "peer"
    """Another node's memory or its Valkey, through that node."""
    EMBEDDER = "embedder"
    """Computed for this input."""
    COALESCED = "coalesced"
    """Joined a computation that another row or request had started."""
    FALLBACK = "fallback"
    """The client's fallback: the cache was not available."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFailed:
    """One input that got no vector."""

    index: int
    error: EmbedKeepError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedded:
    """All that is known about the answer to one call; rows are in the order of the texts."""

    vectors: NDArray[np.float32]
    """Shape [n, d], float32, the caller's own; rows of failed inputs hold NaN. d is 0 where no
    input succeeded and the model's size is not known."""
    sources: tuple[Source, ...]
    """One a row."""
    tokens: tuple[int, ...]
    """One a row, as the model counted them, after truncation; 0 for failed and fallback rows."""
    truncated: tuple[int, ...]
    """Indices of inputs longer than the model reads, ascending."""
    imported: tuple[int, ...] = ()
    """Indices of rows that were brought by an import, ascending: the model has returned them
    elsewhere, as far as a sample can tell."""
    failed: tuple[InputFailed, ...]
    """By ascending index."""
    fingerprint: str
    """Of the model that made all rows but the fallback's; empty where there are none."""
    epoch: int
    """The tenant's, as far as the answers show it."""
    saved_device_s: float
    """What the rows from the nodes' caches had cost to compute, seconds. Near rows count 0."""
    spent_device_s: float
    """What the rows computed for this call have cost, seconds."""

    def raise_failures(self) -> None:
        """Raise what plain `embed` raises.

        Raises:
            EmbedKeepError: No input succeeded: the first one's error.
            PartialFailure: Some succeeded, some did not.
        """
        if not self.failed:
            return
        first = self.failed[0]
        if len(self.failed) == len(self.sources):
            raise first.error
        failures: Mapping[int, EmbedKeepError] = MappingProxyType(
            {failure.index: failure.error for failure in self.failed}
        )
        raise PartialFailure(
            f"{len(failures)} of {len(self.sources)} inputs failed, the first at index "
            f"{first.index}: {first.error}",
            failures=failures,
            vectors=self.vectors,
        ) from first.error


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What became of the pairs of one call."""

    stored: int
    """Acknowledged by the cache; of a dry run: would be."""
    present: int
    """Left alone: cached already, or a repeat within a request."""
    withdrawn: int
    """Invalidated while they were being taken in, so not kept."""
    sampled: int
    """Computed by the model, to compare."""
    worst_cosine: float
    """Between what was given and what was computed; 1 where nothing was."""
    spent_device_s: float
    """What the sample has cost, seconds."""
    fingerprint: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """How one tier of the node that answered is doing."""

    name: str
    serving: bool
    message: str
    """Why not; empty where it serves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheInfo:
    """What is served, the limits of a request, and how the tiers of the answering node are."""

    version: str
    model: str
    aliases: tuple[str, ...]
    """What `model` may say in a call."""
    prompts: tuple[str, ...]
    fingerprint: str
    """Empty: no embedder was ever seen."""
    dimensions: int
    """0: unknown yet."""
    max_tokens: int
    epoch: int
    max_inputs: int
    """A request; the client splits longer calls."""
    max_input_bytes: int
    """UTF-8."""
    max_message_bytes: int
    tiers: tuple[Tier, ...]
    imports: bool
    """`import_pairs` is allowed."""
    min_cosine: float
    """Below it two vectors of one text are not the same model's. 0: not known yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientStats:
    """What a client has done since it was made."""

    calls: int = 0
    inputs: int = 0
    near_hits: int = 0
    """Inputs answered by the near cache."""
    requests: int = 0
    """Sent to nodes, with retries."""
    retries: int = 0
    """Requests sent again."""
    fallback_inputs: int = 0
    """Inputs given to the fallback."""
