"""How long a first sign is waited for, whatever the way to a peer is like."""

from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from embedkeep.node.roundtrip import RoundTrip

LEAST_S, MOST_S = 0.02, 0.25

seconds = st.floats(1e-5, 10.0)
"""A round trip on one machine, up to one that nobody would use."""


def after(samples: list[float]) -> RoundTrip:
    first, *others = samples
    return reduce(RoundTrip.seen, others, RoundTrip.first(first))


def patience_s(samples: list[float]) -> float:
    return after(samples).patience_s(least_s=LEAST_S, most_s=MOST_S)


@given(samples=st.lists(seconds, min_size=1), least_s=seconds, most_s=seconds)
def test_patience_lies_between_its_bounds(
    samples: list[float], least_s: float, most_s: float
) -> None:
    found = after(samples).patience_s(least_s=least_s, most_s=most_s)

    assert least_s <= found <= max(least_s, most_s)


@given(samples=st.lists(seconds, min_size=1))
def test_the_mean_lies_within_what_was_seen(samples: list[float]) -> None:
    found = after(samples)

    assert min(samples) * 0.999 <= found.mean_s <= max(samples) * 1.001
    assert 0 <= found.deviation_s <= max(samples)


@given(trip_s=st.floats(1e-5, 0.2), count=st.integers(1, 200))
def test_a_steady_way_leaves_a_peer_its_time_on_top_however_far_it_is(
    trip_s: float, count: int
) -> None:
    found = patience_s([trip_s] * count)

    assert found >= min(trip_s + LEAST_S, MOST_S)


@given(trip_s=st.floats(1e-5, 0.2))
def test_a_steady_way_costs_no_more_than_that_after_a_while(trip_s: float) -> None:
    assert patience_s([trip_s] * 30) <= trip_s + LEAST_S + 1e-4


@given(near_s=st.floats(1e-5, 0.01), far_s=st.floats(0.03, 0.2))
def test_a_way_that_becomes_longer_is_waited_for_at_once(near_s: float, far_s: float) -> None:
    """One greeting of the new length, and its calls are in time again."""
    assert patience_s([*[near_s] * 50, far_s]) >= min(far_s, MOST_S)


def test_a_way_that_becomes_shorter_is_forgotten_within_half_a_minute() -> None:
    """At a greeting a second."""
    assert patience_s([*[0.2] * 50, *[0.001] * 30]) < 2 * LEAST_S


def test_one_slow_answer_among_many_is_no_reason_to_wait_long() -> None:
    assert patience_s([*[0.001] * 50, 0.1, *[0.001] * 10]) < 2 * LEAST_S
