import contextlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from embedkeep.keys import KEY_BYTES, Key
from embedkeep.records import (
    FLAG_IMPORTED,
    FLAG_TRUNCATED,
    OVERHEAD_BYTES,
    CorruptRecord,
    Entries,
    Entry,
    Vector,
    decode,
    decode_all,
    encode,
)

KEY = Key(bytes(range(KEY_BYTES)))

keys = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES).map(Key)
# Every bit pattern, NaNs with payloads and denormals among them.
vectors = arrays.arrays(np.uint32, st.integers(1, 64)).map(lambda bits: bits.view(np.float32))
pairs = arrays.arrays(np.uint32, 2).map(lambda bits: bits.view(np.float32))
entries = st.builds(
    Entry,
    vector=vectors,
    tokens=st.integers(0, 2**32 - 1),
    truncated=st.booleans(),
    device_ns=st.integers(0, 2**64 - 1),
    born_s=st.integers(0, 2**32 - 1),
    imported=st.booleans(),
)


def entry(*components: float) -> Entry:
    vector: Vector = np.array(components, np.float32)
    return Entry(vector=vector, tokens=7, truncated=True, device_ns=123_456_789)


@given(key=keys, kept=entries)
def test_an_entry_comes_back_bit_for_bit(key: Key, kept: Entry) -> None:
    record = encode(key, kept)

    back = decode(key, record, dimensions=len(kept.vector))

    assert back.vector.tobytes() == kept.vector.tobytes()
    assert back.vector.dtype == np.float32
    assert (back.tokens, back.truncated, back.device_ns) == (
        kept.tokens,
        kept.truncated,
        kept.device_ns,
    )
    assert kept.nbytes == len(record) == OVERHEAD_BYTES + 4 * len(kept.vector)


@given(key=keys, kept=entries, flip=st.integers(1, 255), data=st.data())
def test_a_record_with_any_byte_changed_is_corrupt(
    key: Key, kept: Entry, flip: int, data: st.DataObject
) -> None:
    record = bytearray(encode(key, kept))
    record[data.draw(st.integers(0, len(record) - 1))] ^= flip

    with pytest.raises(CorruptRecord):
        decode(key, bytes(record), dimensions=len(kept.vector))


@given(key=keys, kept=entries, at=st.integers(0, KEY_BYTES - 1), flip=st.integers(1, 255))
def test_a_record_under_another_key_is_corrupt(key: Key, kept: Entry, at: int, flip: int) -> None:
    other = bytearray(key)
    other[at] ^= flip

    with pytest.raises(CorruptRecord, match="checksum"):
        decode(Key(bytes(other)), encode(key, kept), dimensions=len(kept.vector))


@given(foreign=st.binary(max_size=OVERHEAD_BYTES + 64), dimensions=st.integers(1, 16))
def test_what_something_else_has_stored_is_corrupt(foreign: bytes, dimensions: int) -> None:
    with pytest.raises(CorruptRecord):
        decode(KEY, foreign, dimensions=dimensions)


@pytest.mark.parametrize(
    "cut", [slice(0, -1), slice(0, OVERHEAD_BYTES), slice(0, 0), slice(1, None)]
)
def test_a_record_cut_short_is_corrupt(cut: slice) -> None:
    with pytest.raises(CorruptRecord, match="expected"):
        decode(KEY, encode(KEY, entry(1, 2))[cut], dimensions=2)


@pytest.mark.parametrize("dimensions", [1, 3])
def test_a_record_of_another_length_of_vector_is_corrupt(dimensions: int) -> None:
    with pytest.raises(CorruptRecord):
        decode(KEY, encode(KEY, entry(1, 2)), dimensions=dimensions)


def test_a_decoded_vector_cannot_be_written_to() -> None:
    """It is handed to several callers."""
    back = decode(KEY, encode(KEY, entry(1, 2)), dimensions=2)

    with pytest.raises(ValueError, match="read-only"):
        back.vector[0] = 3


def test_a_vector_with_gaps_in_memory_is_stored_whole() -> None:
    wide = np.arange(6, dtype=np.float32)
    kept = Entry(vector=wide[::2], tokens=1, truncated=False, device_ns=0)

    back = decode(KEY, encode(KEY, kept), dimensions=3)

    assert back.vector.tolist() == [0, 2, 4]


def test_records_are_those_of_earlier_versions() -> None:
    """Byte for byte as the module's text describes them: a cache outlives the node's version."""
    expected = bytes.fromhex(
        "454b 02 00 02000000 07000000 0100000015cd5b0700000000 00000000 0000803f 000020c0 f98b7e8a"
    )

    assert encode(KEY, entry(1.0, -2.5)) == expected


def told(entry: Entry) -> tuple[bytes, int, bool, int, int, bool]:
    """All that an entry says."""
    return (
        entry.vector.tobytes(),
        entry.tokens,
        entry.truncated,
        entry.device_ns,
        entry.born_s,
        entry.imported,
    )


@given(data=st.data(), dimensions=st.integers(1, 8))
def test_a_batch_is_decoded_as_its_records_one_by_one(data: st.DataObject, dimensions: int) -> None:
    """Among them what is not there, another program's, another key's, and damaged ones."""
    asked, records = list[Key](), list[object]()
    for kept in data.draw(st.lists(entries, max_size=6)):
        key = data.draw(keys)
        whole = encode(key, kept)
        damaged = bytearray(whole)
        damaged[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(0, 255))
        asked.append(key)
        records.append(data.draw(st.sampled_from([whole, whole, bytes(damaged), None, 7, b""])))
        dimensions = data.draw(st.sampled_from([dimensions, len(kept.vector)]))

    places, found = decode_all(asked, records, dimensions=dimensions)

    one_by_one: dict[int, object] = {}
    for place, (key, record) in enumerate(zip(asked, records, strict=True)):
        if isinstance(record, bytes):
            with contextlib.suppress(CorruptRecord):
                one_by_one[place] = told(decode(key, record, dimensions=dimensions))
    assert dict(zip(places, map(told, found), strict=True)) == one_by_one
    assert found.vectors.shape == (len(places), dimensions)


@given(kept=st.lists(st.builds(replace, entries, vector=pairs), max_size=5))
def test_columns_say_what_their_entries_do(kept: list[Entry]) -> None:
    _, found = decode_all([KEY] * len(kept), [encode(KEY, each) for each in kept], dimensions=2)

    assert found.tokens == [each.tokens for each in kept]
    assert found.device_ns == sum(each.device_ns for each in kept)
    for flag, marked in (
        (FLAG_TRUNCATED, [each.truncated for each in kept]),
        (FLAG_IMPORTED, [each.imported for each in kept]),
    ):
        assert found.marked(flag) == [at for at, mark in enumerate(marked) if mark]
    twice = Entries.joined([found, found.take(range(len(kept)))], dimensions=2)
    assert list(map(told, twice)) == [told(each) for each in kept] * 2
