"""Pairs of a text and its vector: from JSON lines, Parquet, or a LangChain store beside its texts.

Nothing is judged here but whether there is a text and a vector; whether they are a model's is
`embedkeep.pairs`' business, and the node's.
"""

import base64
import binascii
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedkeep.cli.langchain_store import Store, key_of
from embedkeep.cli.reading import count_lines, from_lines, lines_of, opened, total_of

MGET_KEYS: Final = 256
"""Read from a store at once."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """One pair and where it stood."""

    number: int
    """From 1, over all files."""
    place: str
    """File and line, for people."""
    text: str = ""
    vector: NDArray[np.float32] | None = None
    """Shape (d,). None: there is none."""
    tokens: int = 0
    """As the model counted them; 0: not known."""
    truncated: bool = False
    problem: str = ""
    """Why there is no pair; empty: there is one."""
    absent: bool = False
    """The problem is only that the store does not hold this text."""

    @property
    def cost(self) -> int:
        """About what it takes of memory, bytes."""
        return len(self.text) + (self.vector.nbytes if self.vector is not None else 0)

    @property
    def evidence(self) -> bytes:
        """What tells it from another one that might stand in its place."""
        vector = self.vector.tobytes() if self.vector is not None else b""
        return self.text.encode(errors="surrogatepass") + b"\0" + vector + self.problem.encode()


class Pairs(ABC):
    """Where pairs come from; may be read several times."""

    @abstractmethod
    def total(self) -> int:
        """How many there are."""

    @abstractmethod
    def read(self, only: Collection[int] | None = None) -> Iterator[Pair]:
        """All of them in order, or only those with such numbers, which is quicker."""


class JsonPairs(Pairs):
    """An object a line; the vector is a list of numbers, or float32 in base64 as OpenAI sends it.

    `tokens` and `truncated` are read too where they stand there, as `embedkeep export` writes them.
    """

    def __init__(self, file: Path, *, text_field: str, vector_field: str) -> None:
        self._file, self._text, self._vector = file, text_field, vector_field
        opened(file, flag="FILE").close()

    def total(self) -> int:
        """See `Pairs`."""
        with opened(self._file, flag="FILE") as file:
            return count_lines(file)

    def read(self, only: Collection[int] | None = None) -> Iterator[Pair]:
        """See `Pairs`."""
        with opened(self._file, flag="FILE") as file:
            for line in from_lines(file):
                if only is None or line.number in only:
                    place = f"{self._file} line {line.number}"
                    if line.problem:
                        yield Pair(number=line.number, place=place, problem=line.problem)
                    else:
                        yield self._pair(line.number, place, line.text)

    def _pair(self, number: int, place: str, raw: str) -> Pair:
        def failed(problem: str) -> Pair:
            return Pair(number=number, place=place, problem=problem)

        try:
            record = json.loads(raw)
        except ValueError as error:
            return failed(f"is no JSON: {error}")
        if not isinstance(record, dict) or not isinstance(text := record.get(self._text), str):
            return failed(f"has no string at {self._text!r} (see --text-field)")
        try:
            vector = vector_of(record.get(self._vector))
        except ValueError as error:
            return failed(f"{error} at {self._vector!r} (see --vector-field)")
        tokens = record.get("tokens")
        return Pair(
            number=number,
            place=place,
            text=text,
            vector=vector,
            tokens=tokens if isinstance(tokens, int) and 0 <= tokens < 1 << 32 else 0,
            truncated=record.get("truncated") is True,
        )


class StorePairs(Pairs):
    """Texts, each looked up in a LangChain store."""

    def __init__(
        self, texts: Path, store: Store, *, field: str, namespace: str, encoder: str
    ) -> None:
        self._texts, self._store, self._field = texts, store, field
        self._namespace, self._encoder = namespace, encoder
        opened(texts, flag="--texts").close()

    def total(self) -> int:
        """See `Pairs`."""
        return total_of(self._texts)

    def read(self, only: Collection[int] | None = None) -> Iterator[Pair]:
        """See `Pairs`."""
        lines = lines_of(self._texts, self._field)
        wanted = (line for line in lines if only is None or line.number in only)
        while batch := list(itertools.islice(wanted, MGET_KEYS)):
            keys = [
                key_of(line.text, namespace=self._namespace, encoder=self._encoder)
                for line in batch
            ]
            for line, value in zip(batch, self._store.read(keys), strict=True):
                place = f"{self._texts} line {line.number}"
                if line.problem:
                    yield Pair(number=line.number, place=place, problem=line.problem)
                else:
                    yield _stored(line.number, place, line.text, value)


def _stored(number: int, place: str, text: str, value: bytes | None) -> Pair:
    if value is None:
        return Pair(number=number, place=place, problem="is not in the store", absent=True)
    try:
        vector = vector_of(json.loads(value))
    except ValueError as error:
        return Pair(number=number, place=place, problem=f"its value in the store: {error}")
    return Pair(number=number, place=place, text=text, vector=vector)


class Chained(Pairs):
    """Several, one after the other."""

    def __init__(self, parts: Sequence[Pairs]) -> None:
        self._parts = parts
        self._totals = [part.total() for part in parts]

    def total(self) -> int:
        """See `Pairs`."""
        return sum(self._totals)

    def read(self, only: Collection[int] | None = None) -> Iterator[Pair]:
        """See `Pairs`; numbers go on from part to part."""
        before = 0
        for part, total in zip(self._parts, self._totals, strict=True):
            mine = None if only is None else {at - before for at in only if at > before}
            for pair in part.read(mine):
                yield pair if before == 0 else _renumbered(pair, before)
            before += total


def _renumbered(pair: Pair, before: int) -> Pair:
    return Pair(
        number=pair.number + before, place=pair.place, text=pair.text, vector=pair.vector,
        tokens=pair.tokens, truncated=pair.truncated, problem=pair.problem, absent=pair.absent,
    )  # fmt: skip


def vector_of(value: object) -> NDArray[np.float32]:
    """A vector from JSON.

    Raises:
        ValueError: It is none; says what it is.
    """
    if isinstance(value, str):
        try:
            data = base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise ValueError(f"no base64 ({error})") from error
        if not data or len(data) % 4:
            raise ValueError(f"{len(data)} bytes in base64, which are no float32")
        return np.frombuffer(data, "<f4")
    if not isinstance(value, list) or not value:
        raise ValueError("no vector")
    try:
        found = np.asarray(value)
    except ValueError as error:
        raise ValueError("a list that is no vector") from error
    if found.ndim != 1 or found.dtype.kind not in "if":
        raise ValueError("a list that is no vector")
    with np.errstate(over="ignore"):
        return found.astype(np.float32)
