"""The near cache: answers kept in the client, bounded in bytes and age."""

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from embedkeep.client.options import NearCache
from embedkeep.views import View

ENTRY_OVERHEAD_BYTES: Final = 400
"""What CPython keeps for an entry beside text and vector: key, row, dict and list slots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What, beside its text, makes two answers the same."""

    model: str | None
    prompt: str | None
    view: View


@dataclass(frozen=True, slots=True, kw_only=True)
class NearRow:
    """One answer."""

    vector: bytes
    """float32, little-endian."""
    tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whose answers these are; with another one they are all void."""

    fingerprint: str
    epoch: int


class NearStore:
    """Rows by text, the least recently used one going first. Safe between threads.

    A call notes the `generation` when it begins and gives it back with what it wants kept:
    answers that were asked for before the store was emptied are not kept.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, options: NearCache, *, clock: Callable[[], float]) -> None:
        self._options = options
        self._clock = clock
        self._lock = threading.Lock()
        self._rows: OrderedDict[tuple[int, str], tuple[float, NearRow]] = OrderedDict()
        # Numbers stand for scopes in the keys: hashing a scope for each text doubled a hit's cost.
        self._scopes: dict[Scope, int] = {}
        self._identity: Identity | None = None
        self._generation = 0
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes in use; never above the bound."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._rows)

    def look_up(
        self, scope: Scope, texts: list[str]
    ) -> tuple[int, Identity | None, dict[str, NearRow]]:
        """The generation, whose answers are kept, and those that are there for *texts*."""
        oldest = self._clock() - self._options.max_age_s
        found: dict[str, NearRow] = {}
        with self._lock:
            number = self._scopes.get(scope, -1)
            for text in texts:
                key = (number, text)
                if (kept := self._rows.get(key)) is None:
                    continue
                if kept[0] < oldest:
                    self._drop(key)
                    continue
                self._rows.move_to_end(key)
                found[text] = kept[1]
            return self._generation, self._identity, found

    def keep(
        self, generation: int, identity: Identity, scope: Scope, rows: dict[str, NearRow]
    ) -> None:
        """Keep *rows*, unless they were asked for before the store was last emptied."""
        now = self._clock()
        with self._lock:
            if generation != self._generation:
                return
            if self._identity is not None and identity != self._identity:
                self._empty()
            self._identity = identity
            number = self._scopes.setdefault(scope, len(self._scopes))
            for text, row in rows.items():
                key = (number, text)
                self._drop(key)
                size = _size(text, row)
                if size > self._options.max_bytes:
                    continue
                self._rows[key] = (now, row)
                self._bytes += size
                while self._bytes > self._options.max_bytes:
                    self._drop(next(iter(self._rows)))

    def empty(self) -> None:
        """Forget everything, and keep nothing of the calls under way."""
        with self._lock:
            self._empty()

    def _empty(self) -> None:
        self._rows.clear()
        self._bytes = 0
        self._identity = None
        self._generation += 1

    def _drop(self, key: tuple[int, str]) -> None:
        if (kept := self._rows.pop(key, None)) is not None:
            self._bytes -= _size(key[1], kept[1])


def _size(text: str, row: NearRow) -> int:
    return sys.getsizeof(text) + len(row.vector) + ENTRY_OVERHEAD_BYTES
