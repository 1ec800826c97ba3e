import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep.cli.pipeline import MAX_COST, MAX_ITEMS, MIN_ITEMS, TARGET_S, Batches, Pace, in_order

WAIT_S = 30.0


@dataclass(frozen=True)
class Thing:
    """An item."""

    number: int
    cost: int = 1


def things(count: int) -> Iterator[Thing]:
    return (Thing(number) for number in range(count))


def test_quick_calls_grow_slow_ones_shrink_and_others_are_left() -> None:
    assert Pace(items=32).after(32, TARGET_S / 10) == Pace(items=64)
    assert Pace(items=32).after(32, TARGET_S) == Pace(items=32)
    assert Pace(items=32).after(32, TARGET_S * 3) == Pace(items=16)


def test_a_short_batch_says_nothing_of_larger_ones() -> None:
    """The last one, or one of long texts."""
    assert Pace(items=512).after(5, 0.001) == Pace(items=512)


def test_calls_that_began_before_a_batch_shrank_do_not_make_it_grow_again() -> None:
    assert Pace(items=64).after(512, TARGET_S * 3) == Pace(items=64)


@given(st.lists(st.tuples(st.integers(1, 4096), st.floats(0, 1e4)), max_size=50))
def test_a_pace_stays_within_its_bounds(calls: list[tuple[int, float]]) -> None:
    pace = Pace()
    for count, seconds in calls:
        pace = pace.after(count, seconds)
        assert MIN_ITEMS <= pace.items <= MAX_ITEMS


@given(
    st.lists(st.sampled_from([0, 1, MAX_COST // 3, MAX_COST, 2 * MAX_COST]), max_size=30),
    st.integers(1, 8),
)
def test_batches_hold_all_items_in_order_and_no_more_than_they_may(
    costs: list[int], most: int
) -> None:
    items = [Thing(number, cost) for number, cost in enumerate(costs)]
    batches = Batches(iter(items))

    cut = list(itertools.takewhile(bool, (batches.take(most) for _ in itertools.count())))

    assert list(itertools.chain(*cut)) == items
    for batch in cut:
        assert len(batch) <= most
        assert len(batch) == 1 or sum(item.cost for item in batch) <= MAX_COST


def test_results_come_in_order_though_calls_end_in_another() -> None:
    second_done = threading.Event()

    def call(batch: list[Thing]) -> int:
        if batch[0].number == 0:
            assert second_done.wait(WAIT_S)
        else:
            second_done.set()
        return batch[0].number

    results = list(in_order(things(200), call, window=2, abandon=lambda: None))

    firsts = [batch[0].number for batch, _ in results]
    assert firsts == sorted(firsts) == [number for _, number in results]
    assert sum(len(batch) for batch, _ in results) == 200


def test_no_more_than_the_window_is_read_ahead() -> None:
    """Ten million lines cost the memory of a few batches."""
    seen = 0

    def read() -> Iterator[Thing]:
        nonlocal seen
        for thing in things(10_000_000):
            seen += 1
            yield thing

    results = in_order(read(), len, window=3, abandon=lambda: None)
    next(results)
    read_ahead = seen
    results.close()

    assert read_ahead <= 3 * MAX_ITEMS


def test_an_error_comes_after_the_results_before_it_and_ends_what_is_under_way() -> None:
    abandoned = threading.Event()

    def call(batch: list[Thing]) -> int:
        if batch[0].number == 32:
            raise ValueError("planted")
        if batch[0].number > 32:
            assert abandoned.wait(WAIT_S)
        return batch[0].number

    results = in_order(things(1000), call, window=4, abandon=abandoned.set)

    assert next(results)[1] == 0
    with pytest.raises(ValueError, match="planted"):
        next(results)
    assert abandoned.is_set()


def test_who_wants_no_more_ends_what_is_under_way() -> None:
    abandoned = threading.Event()

    def call(batch: list[Thing]) -> int:
        assert batch[0].number == 0 or abandoned.wait(WAIT_S)
        return 0

    results = in_order(things(1000), call, window=4, abandon=abandoned.set)
    next(results)
    results.close()

    assert abandoned.is_set()
