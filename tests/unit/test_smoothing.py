"""Means of what was measured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep.smoothing import GAIN, smoothed

SAMPLES = st.floats(0, 1e6, allow_nan=False)


def test_the_first_sample_is_the_mean() -> None:
    assert smoothed(None, 4.0) == 4.0


def test_a_new_sample_counts_an_eighth_unless_told_otherwise() -> None:
    assert smoothed(8.0, 16.0) == 9.0
    assert smoothed(8.0, 16.0, gain=0.25) == 10.0


@given(st.lists(SAMPLES, min_size=1))
def test_the_mean_stays_between_the_least_and_the_most(samples: list[float]) -> None:
    mean = None
    for sample in samples:
        mean = smoothed(mean, sample)

    assert mean is not None
    assert mean == pytest.approx(min(max(mean, min(samples)), max(samples)), rel=1e-9)


@given(SAMPLES, SAMPLES)
def test_what_does_not_change_is_approached(before: float, sample: float) -> None:
    after = smoothed(before, sample)

    assert abs(after - sample) == pytest.approx(abs(before - sample) * (1 - GAIN), abs=1e-6)
