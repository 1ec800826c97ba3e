"""What runs a model, behind one small interface. Each backend's module imports its own engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from embedkeep.config import Backend as BackendName
from embedkeep.config import Dtype

Vectors = NDArray[np.float32]
"""Shape (rows, dimensions), float32."""

PADDING_RATIO: Final = 1.25
"""Longest row over shortest row of one run of the model; beyond it padding costs more than another
run. On 2 CPU cores a run of MiniLM has a fixed cost of about 1 ms, a token one of 0.2 ms."""

PADDING_TOKENS: Final = 4
"""Rows whose lengths differ by no more than this share a run in any case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a backend computes, as said on the wire."""

    fingerprint: str
    """Of all that decides its vectors; see `embedkeep.embedder.fingerprint`."""
    dimensions: int
    max_tokens: int
    normalized: bool
    """The model's own pipeline ends with a normalization."""
    backend: BackendName
    device: str
    """cpu, cuda or mps."""
    dtype: Dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """One text as the model reads it."""

    ids: Sequence[int]
    """With the special tokens, at most the model's limit."""
    truncated: bool
    """The text was longer."""


class Backend(Protocol):
    """A loaded model.

    `tokenize` may be called from any thread, and at the same time as `embed`; `embed` only from
    one thread at a time. Both block.
    """

    @property
    def about(self) -> About:
        """What it computes; the same for its whole life."""
        ...

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """One `Tokens` for each of *texts*, in order. Cheap beside `embed`."""
        ...

    def embed(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """Run the model.

        Args:
            rows: Token ids, from `tokenize`; at least one row, in any order of lengths.

        Returns:
            A new array, shape (len(rows), dimensions), float32, row i for rows[i].
        """
        ...


def runs(lengths: Sequence[int], *, equal: bool = False) -> list[list[int]]:
    """Put rows into runs of the model, so that little of each run is padding.

    Args:
        lengths: Tokens of each row.
        equal: Only rows of the same length share a run.

    Returns:
        Lists of row numbers, shortest rows first; each row once.
    """
    made: list[list[int]] = []
    limit = -1.0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if lengths[row] > limit:
            made.append([])
            shortest = lengths[row]
            limit = shortest if equal else max(shortest * PADDING_RATIO, shortest + PADDING_TOKENS)
        made[-1].append(row)
    return made
