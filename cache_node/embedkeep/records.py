"""How an entry lies in Valkey: a 32-byte header and the raw vector.

::

    offset  size  field
    0       2     magic  b"EK"
    2       1     format version, 1
    3       1     dtype, 0: float32
    4       4     dimensions
    8       4     tokens, as the model counted them
    12      4     flags, bit 0: the text was longer than the model reads; bit 1: imported
    16      8     device time that the vector has cost, ns
    24      4     when it was computed, Unix time in seconds; 0: not known
    28      4     CRC32 over key, header up to here, vector
    32      4 x dimensions  vector, float32

All little-endian. The checksum covers the key too, so a record under a wrong key is found out.
Whatever does not fit exactly is a miss, never a guess.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedkeep.keys import Key

_FLOAT32: Final = 0
HEADER_BYTES: Final = 32
FLAG_TRUNCATED: Final = 1
FLAG_IMPORTED: Final = 2

_MAGIC = b"EK"
_VERSION = 1
_fields = struct.Struct("<2sBBIIIQI")
_crc = struct.Struct("<I")

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

    @property
    def nbytes(self) -> int:
        """Bytes of its record, without the key."""
        return HEADER_BYTES + self.vector.nbytes

    @property
    def flags(self) -> int:
        """What is said of it in one bit each: FLAG_TRUNCATED, FLAG_IMPORTED."""
        return FLAG_TRUNCATED * self.truncated | FLAG_IMPORTED * self.imported


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
    return b"".join((head, _crc.pack(_checksum(key, head, vector)), vector))


def decode(key: Key, record: bytes, *, dimensions: int) -> Entry:
    """The entry in *record*; its vector is a read-only view of the record's bytes.

    Args:
        dimensions: What the model has; another length is corrupt.

    Raises:
        CorruptRecord: Anything does not fit.
    """
    if len(record) != HEADER_BYTES + 4 * dimensions:
        raise CorruptRecord(f"{len(record)} bytes, {HEADER_BYTES + 4 * dimensions} expected")
    head, vector = record[: _fields.size], record[HEADER_BYTES:]
    magic, version, dtype, stored, tokens, flags, device_ns, born_s = _fields.unpack(head)
    if (magic, version, dtype, stored) != (_MAGIC, _VERSION, _FLOAT32, dimensions):
        raise CorruptRecord(f"unknown header {head[:8].hex()}")
    if _crc.unpack_from(record, _fields.size)[0] != _checksum(key, head, vector):
        raise CorruptRecord("checksum")
    return Entry(
        vector=np.frombuffer(vector, dtype="<f4"),
        tokens=tokens,
        truncated=bool(flags & FLAG_TRUNCATED),
        device_ns=device_ns,
        born_s=born_s,
        imported=bool(flags & FLAG_IMPORTED),
    )


def _checksum(key: Key, head: bytes, vector: bytes) -> int:
    return zlib.crc32(vector, zlib.crc32(head, zlib.crc32(key)))
