"""How an entry lies in Valkey: 28 bytes about it, the raw vector, and a checksum.

::

    offset  size  field
    0       2     magic  b"EK"
    2       1     format version, 2
    3       1     dtype, 0: float32
    4       4     dimensions
    8       4     tokens, as the model counted them
    12      4     flags, bit 0: the text was longer than the model reads; bit 1: imported;
                  bit 2: computed before anybody asked for it
    16      8     device time that the vector has cost, ns
    24      4     when it was computed, Unix time in seconds; 0: not known
    28      4 x dimensions  vector, float32
    the end 4     CRC-32 over the key and all before it

All little-endian. The checksum covers the key too, so a record under a wrong key is found out.
Whatever does not fit exactly is a miss, never a guess.

A CRC that stands at the end is checked without being read: over bytes and their own CRC it is the
same number for all bytes. So one call goes over a key, one over its record as it came.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from isal.isal_zlib import crc32  # zlib's own takes six times as long
from numpy.typing import NDArray

from embedkeep.keys import Key

_FLOAT32: Final = 0
OVERHEAD_BYTES: Final = 32
"""Of a record beside its vector."""
FLAG_TRUNCATED: Final = 1
FLAG_IMPORTED: Final = 2
FLAG_WARMED: Final = 4

_MAGIC = b"EK"
_VERSION = 2
_fields = struct.Struct("<2sBBIIIQI")
_crc = struct.Struct("<I")
_WHOLE: Final = crc32(_crc.pack(crc32(b"")))
"""The CRC over anything and its own CRC."""

FACTS: Final = np.dtype(
    [("tokens", "<u4"), ("flags", "<u4"), ("device_ns", "<u8"), ("born_s", "<u4")]
)
"""What a header says of an entry, as it lies there."""

Vector = NDArray[np.float32]
"""Shape (dimensions,), float32, as the model returned it."""


class CorruptRecord(ValueError):
    """Stored bytes that are no record of that key. Counted, then treated as a miss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a cache holds for one key.

    Two entries are the same only if they are the same object; compare `vector` by its bytes.
    """

    vector: Vector
    tokens: int
    truncated: bool
    device_ns: int
    """What computing it has kept the device busy: what each hit saves."""
    born_s: int = 0
    """When it was computed, Unix time in seconds: what its life is counted from. 0: not known."""
    imported: bool = False
    """A caller brought it: the model has returned it elsewhere, as far as a sample could tell."""
    warmed: bool = False
    """It was computed because a plan names it, and not because somebody asked."""

    @property
    def nbytes(self) -> int:
        """Bytes of its record, without the key."""
        return OVERHEAD_BYTES + self.vector.nbytes

    @property
    def flags(self) -> int:
        """What is said of it in one bit each: FLAG_TRUNCATED, FLAG_IMPORTED, FLAG_WARMED."""
        return (
            FLAG_TRUNCATED * self.truncated
            | FLAG_IMPORTED * self.imported
            | FLAG_WARMED * self.warmed
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entries:
    """Entries of several keys, in their order, as columns: what a batch is handed on as."""

    facts: NDArray[np.void]
    """Shape (entries,) of `FACTS`."""
    vectors: NDArray[np.float32]
    """Shape (entries, dimensions)."""

    @classmethod
    def joined(cls, parts: Sequence["Entries"], *, dimensions: int) -> "Entries":
        """Those of all *parts*, one after the other."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls(facts=np.empty(0, FACTS), vectors=np.empty((0, dimensions), np.float32))
        return cls(
            facts=np.concatenate([part.facts for part in parts]),
            vectors=np.concatenate([part.vectors for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.facts)

    def __iter__(self) -> Iterator[Entry]:
        for vector, (tokens, flags, device_ns, born_s) in zip(
            self.vectors, self.facts.tolist(), strict=True
        ):
            yield Entry(
                vector=vector,
                tokens=tokens,
                truncated=bool(flags & FLAG_TRUNCATED),
                device_ns=device_ns,
                born_s=born_s,
                imported=bool(flags & FLAG_IMPORTED),
                warmed=bool(flags & FLAG_WARMED),
            )

    def take(self, at: Sequence[int]) -> "Entries":
        """A copy of those *at* these positions; one may be named several times."""
        return Entries(facts=self.facts.take(at), vectors=self.vectors.take(at, axis=0))

    @property
    def tokens(self) -> list[int]:
        """Of each."""
        tokens: list[int] = self.facts["tokens"].tolist()
        return tokens

    @property
    def device_ns(self) -> int:
        """What all of them have cost."""
        return sum(self.facts["device_ns"].tolist())

    def marked(self, flag: int) -> list[int]:
        """Positions of those with *flag*; most batches have none."""
        flags = self.facts["flags"]
        return np.flatnonzero(flags & flag).tolist() if np.count_nonzero(flags) else []


def encode(key: Key, entry: Entry) -> bytes:
    """The record of *entry* under *key*."""
    vector = np.ascontiguousarray(entry.vector, dtype="<f4").tobytes()
    head = _fields.pack(
        _MAGIC,
        _VERSION,
        _FLOAT32,
        len(vector) // 4,
        entry.tokens,
        entry.flags,
        entry.device_ns,
        entry.born_s,
    )
    return b"".join((head, vector, _crc.pack(crc32(vector, crc32(head, crc32(key))))))


def decode(key: Key, record: bytes, *, dimensions: int) -> Entry:
    """The entry in *record*; its vector is a read-only view of the record's bytes.

    Args:
        dimensions: What the model has; another length is corrupt.

    Raises:
        CorruptRecord: Anything does not fit.
    """
    if len(record) != OVERHEAD_BYTES + 4 * dimensions:
        raise CorruptRecord(f"{len(record)} bytes, {OVERHEAD_BYTES + 4 * dimensions} expected")
    magic, version, dtype, stored, tokens, flags, device_ns, born_s = _fields.unpack_from(record)
    if (magic, version, dtype, stored) != (_MAGIC, _VERSION, _FLOAT32, dimensions):
        raise CorruptRecord(f"unknown header {record[:8].hex()}")
    if crc32(record, crc32(key)) != _WHOLE:
        raise CorruptRecord("checksum")
    return Entry(
        vector=np.frombuffer(record, "<f4", dimensions, _fields.size),
        tokens=tokens,
        truncated=bool(flags & FLAG_TRUNCATED),
        device_ns=device_ns,
        born_s=born_s,
        imported=bool(flags & FLAG_IMPORTED),
        warmed=bool(flags & FLAG_WARMED),
    )


def decode_all(
    keys: Sequence[Key], records: Sequence[object], *, dimensions: int
) -> tuple[Sequence[int], Entries]:
    """As `decode`, of many at once: which of the records fit their keys, by position, as entries.

    Why another one does not fit, `decode` says. The vectors are read-only here, too.

    Args:
        records: One a key; anything but `bytes` is none.
    """
    whole = OVERHEAD_BYTES + 4 * dimensions
    places: Sequence[int] = range(len(keys))
    taken = [record for record in records if isinstance(record, bytes) and len(record) == whole]
    if len(taken) != len(keys):
        places = [at for at in places if isinstance(it := records[at], bytes) and len(it) == whole]
        keys = [keys[at] for at in places]
    rows = np.frombuffer(b"".join(taken), _layout(dimensions))
    entries = Entries(facts=rows["facts"], vectors=rows["vector"])
    fits = rows["form"] == _form(dimensions)
    fits &= np.fromiter(map(crc32, taken, map(crc32, keys)), np.uint32, len(keys)) == _WHOLE
    if fits.all():
        return places, entries
    good = np.flatnonzero(fits).tolist()
    return [places[at] for at in good], entries.take(good)


@cache
def _layout(dimensions: int) -> np.dtype[np.void]:
    """A record as numpy reads it."""
    return np.dtype(
        [("form", "<u8"), ("facts", FACTS), ("vector", "<f4", (dimensions,)), ("crc", "<u4")]
    )


@cache
def _form(dimensions: int) -> np.uint64:
    """A record's first 8 bytes: what is the same in all of a model."""
    head = _fields.pack(_MAGIC, _VERSION, _FLOAT32, dimensions, 0, 0, 0, 0)
    return np.uint64(int.from_bytes(head[:8], "little"))
