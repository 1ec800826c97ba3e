"""When requests may be made."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep.embedder.upstream.failures import Failure, Kind
from embedkeep.embedder.upstream.pace import (
    BROKEN_AFTER,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    LOOK_AGAIN_S,
    Pace,
    backoff_s,
)


def a(kind: Kind, retry_after_s: float | None = None) -> Failure:
    return Failure(kind=kind, said=kind, retry_after_s=retry_after_s)


def highest() -> float:
    return 1.0


def paused(*failures: Failure, dice: Callable[[], float] = highest) -> float:
    """How long after these, each after the pause of the one before it."""
    pace, now_s = Pace(dice), 0.0
    for failure in failures:
        now_s = max(now_s, pace.open_at_s)
        pace.failed(failure, now_s)
    return pace.open_at_s - now_s


@given(failures=st.integers(1, 900), dice=st.floats(0, 1))
def test_a_pause_is_drawn_below_a_bound_that_doubles_up_to_a_limit(
    failures: int, dice: float
) -> None:
    bound_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (failures - 1))

    assert backoff_s(failures, lambda: dice) == pytest.approx(dice * bound_s)


def test_throttling_without_a_word_pauses_longer_each_time() -> None:
    pauses = [paused(*[a(Kind.THROTTLED)] * n) for n in (1, 2, 3, 20)]

    assert pauses == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S, LONGEST_PAUSE_S]


def test_one_outage_counts_once_however_many_requests_were_in_flight() -> None:
    pace = Pace(highest)
    for _ in range(8):
        pace.failed(a(Kind.THROTTLED), 0.0)

    assert pace.open_at_s == FIRST_PAUSE_S


def test_the_longest_pause_that_is_asked_for_counts() -> None:
    pace = Pace(highest)
    for wait_s in (3.0, 9.0, 5.0):
        pace.failed(a(Kind.THROTTLED, wait_s), 1.0)

    assert pace.open_at_s == 10.0


def test_a_single_broken_request_is_no_reason_to_pause_and_several_in_a_row_are() -> None:
    assert [paused(*[a(Kind.FAILED)] * n) for n in range(1, BROKEN_AFTER + 1)] == [
        *[0.0] * (BROKEN_AFTER - 1), FIRST_PAUSE_S
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [Kind.EXHAUSTED, Kind.KEY, Kind.MODEL])
def test_what_somebody_must_mend_is_looked_at_again_after_a_longer_pause(kind: Kind) -> None:
    assert paused(a(kind)) == LOOK_AGAIN_S
    assert paused(a(kind, 5.0)) == 5.0


@pytest.mark.parametrize("kind", [Kind.REJECTED, Kind.TOO_MANY, Kind.TOO_LONG, Kind.NONSENSE])
def test_a_bad_request_is_no_reason_to_pause(kind: Kind) -> None:
    assert paused(*[a(kind)] * 9) == 0.0


def test_after_a_pause_one_request_goes_alone_until_one_succeeds() -> None:
    pace = Pace(highest)
    pace.failed(a(Kind.THROTTLED, 2.0), 0.0)

    assert not pace.may_send(in_flight=0, now_s=1.9)
    assert pace.may_send(in_flight=0, now_s=2.0)
    assert not pace.may_send(in_flight=1, now_s=2.0)
    pace.succeeded()
    assert pace.may_send(in_flight=1, now_s=2.0)


def test_another_key_ends_the_wait_for_one() -> None:
    pace = Pace(highest)
    pace.failed(a(Kind.KEY), 0.0)

    pace.renewed()

    assert pace.may_send(in_flight=0, now_s=0.0)
