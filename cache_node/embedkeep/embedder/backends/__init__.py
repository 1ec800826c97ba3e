"""What runs a model, behind one small interface.

Here live the interface (`Backend`, `About`, `Tokens`) and one module an engine: `onnx` and
`torch`, each of which imports its engine, so that the other one may be missing. How texts are put
into batches, and who waits, lives in `embedkeep.embedder.batcher`; how a model's folder is read in
`embedkeep.embedder.folder`. Only `embedkeep.embedder`, benchmarks and tests call it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from embedkeep.config import Backend as BackendName
from embedkeep.config import Dtype, Quantization

Vectors = NDArray[np.float32]
"""Shape (rows, dimensions), float32."""

CPU_RUN_TOKENS: Final = 24
"""What starting a run of the model costs, in tokens of padding that cost as much: an estimate for a
small model on a few cores."""

CPU_MOST_TOKENS: Final = 2048
"""Padded tokens of one run on a CPU. In longer runs a token costs more, because caches overflow."""


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
    quantization: Quantization = Quantization.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """One text as the model reads it."""

    ids: Sequence[int]
    """With the special tokens, at most the model's limit."""
    truncated: bool
    """The text was longer."""


class Backend(Protocol):
    """A loaded model.

    `tokenize` and `detokenize` may be called from any thread, and at the same time as `embed`;
    `embed` only from one thread at a time. All block.
    """

    @property
    def about(self) -> About:
        """What it computes; the same for its whole life."""
        ...

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """One `Tokens` for each of *texts*, in order. Cheap beside `embed`."""
        ...

    def detokenize(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """A text for each row of ids, of which `tokenize` makes that very row.

        Empty where none does, or where the ids may be another tokenizer's.
        """
        ...

    def embed(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """Run the model.

        Args:
            rows: Token ids, from `tokenize`; at least one row, in any order of lengths.

        Returns:
            A new array, shape (len(rows), dimensions), float32, row i for rows[i].
        """
        ...


def runs(
    lengths: Sequence[int], *, run_tokens: int = CPU_RUN_TOKENS, most_tokens: int = CPU_MOST_TOKENS
) -> list[list[int]]:
    """Divide rows into runs of the model, so that runs and padding together cost least.

    Exact for runs without limit: the cheapest division of the sorted lengths, by dynamic
    programming over the distinct ones. Runs beyond *most_tokens* are then cut.

    Args:
        lengths: Tokens of each row.
        run_tokens: What a run costs beside its tokens, in tokens; 0: rows of one length only.
        most_tokens: Of a run, with its padding; a single row may be longer.

    Returns:
        Lists of row numbers, shortest rows first; each row once.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    made: list[list[int]] = []
    for start, end in _divide([lengths[row] for row in order], run_tokens):
        most_rows = max(1, most_tokens // lengths[order[end - 1]])
        made += [order[at : min(at + most_rows, end)] for at in range(start, end, most_rows)]
    return made


def _divide(ordered: Sequence[int], run_tokens: int) -> list[tuple[int, int]]:
    """Half-open ranges of *ordered* lengths with the least padded tokens and run costs."""
    # Rows of one length belong together, so only ends of equal stretches can be cut at.
    cuts = [0, *(at for at in range(1, len(ordered)) if ordered[at] != ordered[at - 1])]
    cuts.append(len(ordered))
    best: list[tuple[int, int]] = [(0, 0)]  # cost up to each cut, and the cut before it
    for end in range(1, len(cuts)):
        longest = ordered[cuts[end] - 1]
        best.append(
            min(
                (best[start][0] + (cuts[end] - cuts[start]) * longest + run_tokens, start)
                for start in range(end)
            )
        )
    ranges = []
    end = len(cuts) - 1
    while end:
        start = best[end][1]
        ranges.append((cuts[start], cuts[end]))
        end = start
    return ranges[::-1]
