"""Sets of slots."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from embedkeep_operator import slots

SETS = st.sets(st.integers(0, slots.COUNT - 1), max_size=200) | st.builds(
    lambda first, length: set(range(first, min(first + length, slots.COUNT))),
    st.integers(0, slots.COUNT - 1),
    st.integers(1, slots.COUNT),
)


def bits(members: set[int]) -> int:
    return sum(1 << each for each in members)


@given(SETS)
def test_ranges_are_the_fewest_that_hold_the_set(members: set[int]) -> None:
    ranges = slots.ranges_of(bits(members))

    assert slots.from_ranges(ranges) == bits(members)
    assert all(last + 1 < first for (_, last), (first, _) in itertools.pairwise(ranges))


@given(SETS, st.integers(0, slots.COUNT))
def test_the_lowest_are_taken(members: set[int], count: int) -> None:
    assert slots.lowest(bits(members), count) == bits(set(sorted(members)[:count]))


def test_all_are_all() -> None:
    assert slots.ranges_of(slots.ALL) == ((0, slots.COUNT - 1),)
    assert slots.ranges_of(0) == ()
