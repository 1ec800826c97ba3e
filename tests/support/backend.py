"""A backend whose model is arithmetic: behind the real batcher and service, it counts and waits."""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np

from embedkeep.config import Backend as BackendName
from embedkeep.config import Dtype
from embedkeep.embedder.backends import About, Tokens, Vectors

DIMENSIONS = 4
ABOUT = About(
    fingerprint="arithmetic",
    dimensions=DIMENSIONS,
    max_tokens=64,
    normalized=False,
    backend=BackendName.ONNX,
    device="cpu",
    dtype=Dtype.FLOAT32,
)


def token(word: str) -> int:
    """A word's id: stable, and another for nearly every word."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=3).digest(), "little")


def vector_of(text: str) -> list[float]:
    """What the arithmetic gives for *text*."""
    ids = [token(word) for word in text.split()][: ABOUT.max_tokens]
    return [float(len(ids)), float(ids[0]), float(ids[-1]), float(sum(ids) % 9973)]


@dataclass(eq=False)
class ArithmeticBackend:
    """One token a word."""

    about: About = ABOUT
    gate: threading.Event = field(default_factory=threading.Event)
    """Batches wait for it; open unless a test shuts it."""
    entered: SimpleQueue[int] = field(default_factory=SimpleQueue)
    """The size of each batch, as it comes to the gate."""
    batches: list[list[list[int]]] = field(default_factory=list)
    poison: set[int] = field(default_factory=set)
    """Ids that make the whole batch fail."""
    not_finite: set[int] = field(default_factory=set)
    """Ids whose row becomes NaN."""
    dead: bool = False

    def __post_init__(self) -> None:
        self.gate.set()

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        words = [text.split() for text in texts]
        most = self.about.max_tokens
        return [
            Tokens(ids=[token(word) for word in row[:most]], truncated=len(row) > most)
            for row in words
        ]

    def detokenize(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return ["" for _ in rows]

    def embed(self, rows: Sequence[Sequence[int]]) -> Vectors:
        self.batches.append([list(row) for row in rows])
        self.entered.put(len(rows))
        assert self.gate.wait(30)
        if self.dead or any(self.poison & set(row) for row in rows):
            raise RuntimeError("planted")
        vectors = np.array(
            [[len(row), row[0], row[-1], sum(row) % 9973] for row in rows], np.float32
        )
        vectors[[bool(self.not_finite & set(row)) for row in rows]] = np.nan
        return vectors
