"""Which key lies in which slot: an open-addressing table over two flat arrays.

A dictionary of `bytes` to `int` takes two objects and up to 60 bytes of table for an entry, and
stops the node for as long as it takes to double. This takes 40 bytes, all of them set aside at
the start and touched as keys come, and finds a batch with a few calls to numpy.

A cell of the table is a 32-bit word of a key's digest, above the slot that holds the key, plus 1;
0 is empty. The word alone says where probing begins, so a cell can be moved without looking at
its key, and a key is only read where the words agree. Digests are uniform as they are; they are
made with each tenant's own secret, so that nobody can aim at one place of the table.
"""

import sys
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedkeep.keys import KEY_BYTES, TAG_BYTES, Key

MISSING: Final = -1

Slots = NDArray[np.int32]
"""Shape (n,): numbers of slots, or MISSING."""

BYTES_A_SLOT: Final = KEY_BYTES + 2 * 8
"""The key, and two cells of the table: at most half of them are taken, so probes are short."""

_BATCH: Final = 24
"""From so many keys on, numpy's calls cost less than looking one by one."""
_WINDOW: Final = np.arange(8, dtype=np.uint64)
"""Cells that a batch looks at for each key: a cache line. Of 100 keys 1 lies beyond."""
_WORD_AT: Final = 2 * TAG_BYTES
_LOW: Final = (1 << 32) - 1
_LOW_WORD: Final = np.uint64(_LOW)
_SHIFT: Final = np.uint64(32)

if sys.byteorder != "little":  # pragma: no cover - rows are read as whole words
    raise ImportError("embedkeep's node needs a little-endian machine")


class KeyTable:
    """Gives each of up to *capacity* keys a slot of its own, 0 to capacity - 1."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._count = 0
        self._touched = 0
        self._free = 0
        """Slot that was let go last, plus 1; its row names the one before. 0: none."""
        self._size = 2 * capacity or 1
        # Zeros that the kernel gives as they are touched. One row too many: none has no memory.
        self._table = np.zeros(self._size, np.uint64)
        self._rows = np.zeros((capacity + 1, KEY_BYTES // 8), np.uint64)
        self._cells = self._table.data
        self._bytes = self._rows.data.cast("B")

    def __len__(self) -> int:
        return self._count

    def key(self, slot: int) -> Key:
        """What lies in *slot*, which is taken."""
        return Key(bytes(self._bytes[slot * KEY_BYTES : (slot + 1) * KEY_BYTES]))

    def get(self, key: Key) -> int:
        """The slot of *key*, or MISSING."""
        at = self._cell_of(key)
        return (self._cells[at] & _LOW) - 1  # an empty cell is 0

    def find(self, keys: Sequence[Key]) -> Slots:
        """The slot of each of *keys*, or MISSING."""
        if not self._count:
            return np.full(len(keys), MISSING, np.int32)
        if len(keys) < _BATCH:
            return np.array([self.get(key) for key in keys], np.int32)
        wanted = _rows(keys)
        words = wanted[:, 1] & _LOW_WORD
        homes = words * np.uint64(self._size) >> _SHIFT
        window = self._table.take(homes[:, None] + _WINDOW, mode="wrap")
        alike = window >> _SHIFT == words[:, None]
        cells = window[np.arange(len(keys)), alike.argmax(axis=1)]
        slots: Slots = (cells & _LOW_WORD).astype(np.int32) - np.int32(1)  # an empty cell is 0
        lies_there = self._rows.take(slots, axis=0, mode="wrap")
        found = (lies_there == wanted).all(axis=1) & (slots != MISSING)
        if not found.all():
            slots[~found] = MISSING
            # A window without an empty cell may not be the end; a word may be another key's too.
            doubtful = ~found & (window.all(axis=1) | alike.any(axis=1))
            for index in np.flatnonzero(doubtful).tolist():
                slots[index] = self.get(keys[index])
        return slots

    def add(self, key: Key) -> int:
        """Give *key* a slot; it has none yet, and not all are taken."""
        if self._free:
            slot = self._free - 1
            self._free = int(self._rows[slot, 0])
        else:
            slot = self._touched
            self._touched += 1
        self._bytes[slot * KEY_BYTES : (slot + 1) * KEY_BYTES] = key
        self._cells[self._cell_of(key)] = _word(key) << 32 | slot + 1
        self._count += 1
        return slot

    def add_all(self, keys: Sequence[Key]) -> Slots:
        """As `add`, of many at once, all different; a third of the time."""
        slots = self._let_go(len(keys))
        rows = _rows(keys)
        self._rows[slots] = rows
        words = rows[:, 1] & _LOW_WORD
        homes = words * np.uint64(self._size) >> _SHIFT
        made = words << _SHIFT | (slots + 1).astype(np.uint64)
        cells, size = self._cells, self._size
        for at, cell in zip(homes.tolist(), made.tolist(), strict=True):
            while cells[at]:
                at = at + 1 if at + 1 < size else 0  # noqa: PLW2901 - the next cell
            cells[at] = cell
        self._count += len(keys)
        return slots

    def remove(self, key: Key) -> int:
        """Take the slot of *key*, or MISSING, from it."""
        cells, size = self._cells, self._size
        hole = at = self._cell_of(key)
        if not (cell := cells[at]):
            return MISSING
        slot = (cell & _LOW) - 1
        # Keys behind the hole move up, unless that were before the place where they are looked for.
        while True:
            at = at + 1 if at + 1 < size else 0
            if not (cell := cells[at]):
                break
            home = (cell >> 32) * size >> 32
            if (at - home) % size >= (at - hole) % size:
                cells[hole], hole = cell, at
        cells[hole] = 0
        self._rows[slot, 0] = self._free
        self._free = slot + 1
        self._count -= 1
        return slot

    def remove_tenant(self, tag: bytes) -> Slots:
        """Take their slots from all keys of the tenant with *tag*; returns them.

        One pass over the table, in numpy: tens of ms a million keys, where one by one costs
        seconds.
        """
        cells = self._table[self._table != 0]
        slots = (cells & _LOW_WORD).astype(np.int32) - np.int32(1)
        gone = self._rows[slots, 0] >> _SHIFT == int.from_bytes(tag, "little")
        self._table[:] = 0
        self._fill(cells[~gone])
        let_go: Slots = slots[gone]
        if len(let_go):
            self._rows[let_go[1:], 0] = let_go[:-1] + 1
            self._rows[let_go[0], 0] = self._free
            self._free = int(let_go[-1]) + 1
            self._count -= len(let_go)
        return let_go

    def _let_go(self, count: int) -> Slots:
        """So many slots that no key has, those that were let go last first."""
        slots = np.empty(count, np.int32)
        taken = 0
        while self._free and taken < count:
            slots[taken] = slot = self._free - 1
            self._free = int(self._rows[slot, 0])
            taken += 1
        touched = self._touched
        self._touched += count - taken
        slots[taken:] = np.arange(touched, self._touched)
        return slots

    def _fill(self, cells: NDArray[np.uint64]) -> None:
        """Lay *cells* into the empty table: each where it is looked for first, or next to it."""
        cells = np.sort(cells)  # so are their homes
        order = np.arange(len(cells))
        homes = ((cells >> _SHIFT) * np.uint64(self._size) >> _SHIFT).astype(np.intp)
        places = np.maximum.accumulate(homes - order) + order
        fit = places < self._size
        self._table[places[fit]] = cells[fit]
        at = 0
        for cell in cells[~fit].tolist():  # those that go on at the table's beginning
            while self._cells[at]:
                at += 1
            self._cells[at] = cell

    def _cell_of(self, key: Key) -> int:
        """Where the cell of *key* is, or the empty one where it would be."""
        cells, rows, size = self._cells, self._bytes, self._size
        word = _word(key)
        at = word * size >> 32
        while cell := cells[at]:
            if cell >> 32 == word:
                start = ((cell & _LOW) - 1) * KEY_BYTES
                if bytes(rows[start : start + KEY_BYTES]) == key:
                    break
            at = at + 1 if at + 1 < size else 0
        return at


def _rows(keys: Sequence[Key]) -> NDArray[np.uint64]:
    """Keys as rows of whole words."""
    return np.frombuffer(b"".join(keys), np.uint64).reshape(len(keys), KEY_BYTES // 8)


def _word(key: Key) -> int:
    return int.from_bytes(key[_WORD_AT : _WORD_AT + 4], "little")
