"""One batch of lines, asked of a cache: what each line got, and why some got nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embedkeep.cli.reading import Line
from embedkeep.client import Client, Source
from embedkeep.client.options import EmbedOptions
from embedkeep.errors import EmbedKeepError, InvalidInput, ModelDrift, NotCached


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """What came of some lines, one row each, in their order."""

    lines: Sequence[Line]
    vectors: NDArray[np.float32]
    """Shape [n, d]; NaN where there is none. d is 0 where no line got one."""
    sources: Sequence[Source]
    tokens: Sequence[int]
    truncated: frozenset[int]
    """Places of lines longer than the model reads."""
    problems: Mapping[int, str]
    """Why lines got nothing, by place."""
    missing: frozenset[int]
    """Places among the problems: only what is cached was asked for, and they are not."""
    fingerprint: str
    saved_device_s: float
    spent_device_s: float


def ask(client: Client, lines: Sequence[Line], how: EmbedOptions) -> Rows:
    """Embed *lines*; those without a text are not sent.

    Raises:
        EmbedKeepError: The batch failed as a whole.
    """
    count = len(lines)
    problems = {place: line.problem for place, line in enumerate(lines) if line.problem}
    good = [place for place in range(count) if place not in problems]
    if not good:
        return Rows(
            lines=lines, vectors=np.empty((count, 0), np.float32), sources=[Source.NONE] * count,
            tokens=[0] * count, truncated=frozenset(), problems=problems, missing=frozenset(),
            fingerprint="", saved_device_s=0.0, spent_device_s=0.0,
        )  # fmt: skip
    answer = client.embed_detailed([lines[place].text for place in good], **how)
    sources, tokens, vectors = list(answer.sources), list(answer.tokens), answer.vectors
    if len(good) < count:
        sources, tokens = [Source.NONE] * count, [0] * count
        vectors = np.full((count, answer.vectors.shape[1]), np.nan, np.float32)
        vectors[good] = answer.vectors
        for place, source, number in zip(good, answer.sources, answer.tokens, strict=True):
            sources[place], tokens[place] = source, number
    for failure in answer.failed:
        problems[good[failure.index]] = said(failure.error)
    return Rows(
        lines=lines,
        vectors=vectors,
        sources=sources,
        tokens=tokens,
        truncated=frozenset(good[index] for index in answer.truncated),
        problems=problems,
        missing=frozenset(
            good[failure.index] for failure in answer.failed if isinstance(failure.error, NotCached)
        ),
        fingerprint=answer.fingerprint,
        saved_device_s=answer.saved_device_s,
        spent_device_s=answer.spent_device_s,
    )


@dataclass(slots=True)
class Tally:
    """What a run has done so far. All rows of a run are made by one model."""

    sources: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    """Of those without a source: not cached, where only that was asked for."""
    dimensions: int = 0
    fingerprint: str = ""
    saved_device_s: float = 0.0
    spent_device_s: float = 0.0

    @property
    def inputs(self) -> int:
        """All that were seen."""
        return self.sources.total()

    @property
    def failed(self) -> int:
        """Inputs without a vector, but for those that only are not cached."""
        return self.sources[Source.NONE] - self.missing

    @property
    def hits(self) -> int:
        """Inputs that cost no computation."""
        return self.inputs - self.sources[Source.NONE] - self.sources[Source.EMBEDDER]

    def add(self, rows: Rows, *, missing_is_fine: bool = False) -> None:
        """Count *rows*.

        Raises:
            ModelDrift: They are another model's than those before.
        """
        if self.fingerprint and rows.fingerprint and rows.fingerprint != self.fingerprint:
            raise ModelDrift(
                f"the model was replaced before line {rows.lines[0].number}: begin anew, so that "
                "all vectors are of one model"
            )
        self.fingerprint = self.fingerprint or rows.fingerprint
        self.sources.update(rows.sources)
        if missing_is_fine:
            self.missing += len(rows.missing)
        self.dimensions = max(self.dimensions, rows.vectors.shape[1])
        self.saved_device_s += rows.saved_device_s
        self.spent_device_s += rows.spent_device_s

    def __str__(self) -> str:
        """In a line, for people."""
        counts = [
            f"{count:,} from {source}"
            for source, count in self.sources.most_common()
            if count and source != Source.NONE
        ]
        if self.missing:
            counts.append(f"{self.missing:,} not cached")
        if self.failed:
            counts.append(f"{self.failed:,} failed")
        return f"{self.inputs:,} inputs, {self.dimensions} dimensions; {', '.join(counts)}"


def said(error: EmbedKeepError) -> str:
    """*error* without an index, which would be the one in its batch."""
    text = str(error)
    if isinstance(error, InvalidInput) and error.index is not None:
        text = text.removeprefix(f"input {error.index} ").removeprefix(f"input {error.index}: ")
    return text
