"""Sets of a Valkey Cluster's 16,384 slots, as the bits of an integer: slot n is bit n. Pure.

Union, intersection and difference are |, & and & ~; how many there are is `int.bit_count()`.
"""

from collections.abc import Iterable
from typing import Final

COUNT: Final = 16_384
ALL: Final = (1 << COUNT) - 1

Range = tuple[int, int]
"""First and last slot, both in it."""


def from_ranges(ranges: Iterable[Range]) -> int:
    """The slots in any of *ranges*."""
    held = 0
    for first, last in ranges:
        held |= ((1 << (last - first + 1)) - 1) << first
    return held


def union(parts: Iterable[int]) -> int:
    """The slots in any of *parts*."""
    held = 0
    for part in parts:
        held |= part
    return held


def ranges_of(slots: int) -> tuple[Range, ...]:
    """*slots* as the fewest ranges, ascending."""
    found: list[Range] = []
    first = 0
    while rest := slots >> first:
        first += (rest & -rest).bit_length() - 1
        run = slots >> first
        length = (~run & (run + 1)).bit_length() - 1  # how many ones the lowest bits are
        found.append((first, first + length - 1))
        first += length
    return tuple(found)


def lowest(slots: int, count: int) -> int:
    """The *count* lowest of *slots*, or all where there are fewer."""
    taken = 0
    for first, last in ranges_of(slots):
        if count <= 0:
            break
        taken |= from_ranges([(first, min(last, first + count - 1))])
        count -= last - first + 1
    return taken
