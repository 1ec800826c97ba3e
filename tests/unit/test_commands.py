from collections.abc import Callable

import hiredis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep.keys import KEY_BYTES, Key
from embedkeep.node.commands import Found, merged, read_replies, reads
from embedkeep.node.connection import Reply
from embedkeep.records import Entry, encode

DIMENSIONS = 2

keys = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES).map(Key)


def a_key(number: int) -> Key:
    return Key(number.to_bytes(KEY_BYTES, "big"))


def an_entry(number: int, *, born_s: int = 0) -> Entry:
    return Entry(
        vector=np.full(DIMENSIONS, number, np.float32),
        tokens=number,
        truncated=False,
        device_ns=0,
        born_s=born_s,
    )


def a_record(number: int, *, born_s: int = 0) -> bytes:
    return encode(a_key(number), an_entry(number, born_s=born_s))


def packed(*words: bytes | str) -> bytes:
    data: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub knows 1-tuples only
    return data


def told(found: Found) -> dict[int, int]:
    """The number of the entry at each place."""
    return {place: entry.tokens for place, entry in found.items()}


@given(asked=st.lists(keys, min_size=1, max_size=20))
def test_reads_are_what_hiredis_would_pack(asked: list[Key]) -> None:
    together, one = reads(asked, together=True)
    alone, each = reads(asked, together=False)

    assert (together, one) == (packed("MGET", *asked), 1)
    assert alone == b"".join(packed("GET", key) for key in asked)
    assert each == len(asked)


@pytest.mark.parametrize("wrap", [lambda each: each, lambda each: [each]], ids=["GETs", "MGET"])
def test_replies_are_told_apart_by_key(wrap: Callable[[list[Reply]], list[Reply]]) -> None:
    asked = [a_key(number) for number in (3, 1, 2, 4)]

    read = read_replies(
        asked, wrap([a_record(3), None, a_record(2), a_record(5)]), dimensions=DIMENSIONS
    )

    assert told(read.found) == {0: 3, 2: 2}
    assert read.corrupt == [(a_key(4), "checksum")]
    assert read.errors == []


def test_an_error_for_one_key_leaves_the_others() -> None:
    error = hiredis.ReplyError("MOVED 1 127.0.0.1:1")

    read = read_replies([a_key(1), a_key(2)], [error, a_record(2)], dimensions=DIMENSIONS)

    assert (told(read.found), read.errors, read.corrupt) == ({1: 2}, [error], [])


def test_an_error_for_a_command_over_all_keys_is_told_once() -> None:
    error = hiredis.ReplyError("CROSSSLOT no")

    read = read_replies([a_key(1), a_key(2)], [error], dimensions=DIMENSIONS)

    assert (told(read.found), read.errors) == ({}, [error])


def test_entries_older_than_they_may_be_now_are_left_out() -> None:
    born_s = {1: 99, 2: 100, 3: 101, 4: 0}
    replies = [a_record(number, born_s=born) for number, born in born_s.items()]

    read = read_replies(list(map(a_key, born_s)), replies, dimensions=DIMENSIONS, oldest_s=100)

    assert told(read.found) == {2: 3, 3: 4}, "who does not say when it was made lives on"


def test_what_several_have_found_stands_at_the_places_that_each_was_asked_for() -> None:
    first = read_replies([a_key(1), a_key(3)], [a_record(1), None], dimensions=DIMENSIONS)
    second = read_replies([a_key(2)], [a_record(2)], dimensions=DIMENSIONS)

    found = merged([[0, 2], [1]], [first.found, second.found], dimensions=DIMENSIONS)

    assert told(found) == {0: 1, 1: 2}
    assert told(merged([], [], dimensions=DIMENSIONS)) == {}
