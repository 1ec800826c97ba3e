"""When a process that ended is started again."""

from hypothesis import given
from hypothesis import strategies as st

from embedkeep_operator.local.backoff import Backoff, Record

POLICY = Backoff(first_s=1, most_s=10, jitter=0.2, calm_s=60, first_tries=3)
EVEN = 0.5
"""Chance that adds and takes nothing."""


def test_pauses_double_up_to_the_longest() -> None:
    assert [POLICY.pause_s(ends, EVEN) for ends in range(1, 7)] == [1, 2, 4, 8, 10, 10]


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_chance_moves_a_pause_by_its_share_at_most(ends: int, chance: float) -> None:
    even = POLICY.pause_s(ends, EVEN)

    assert 0.8 * even <= POLICY.pause_s(ends, chance) <= 1.2 * even


def test_two_chances_give_two_pauses() -> None:
    assert POLICY.pause_s(1, 0.1) < POLICY.pause_s(1, 0.9)


def test_a_process_that_never_was_ready_is_given_up() -> None:
    record = Record()
    hopeless = []
    for _ in range(3):
        record = record.after_end(ready=False, ran_s=1000, policy=POLICY)
        hopeless.append(record.hopeless(POLICY))

    assert hopeless == [False, False, True]


def test_a_process_that_was_ready_once_is_never_given_up() -> None:
    record = Record().after_end(ready=True, ran_s=1, policy=POLICY)
    for _ in range(50):
        record = record.after_end(ready=False, ran_s=0, policy=POLICY)

    assert not record.hopeless(POLICY)


def test_a_calm_run_lets_the_pauses_start_over() -> None:
    record = Record(ends=9, was_ready=True)

    assert record.after_end(ready=True, ran_s=60, policy=POLICY).ends == 1
    assert record.after_end(ready=True, ran_s=59, policy=POLICY).ends == 10
    assert record.after_end(ready=False, ran_s=600, policy=POLICY).ends == 10
