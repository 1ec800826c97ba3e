"""Means of what was measured, the newest counting most. Pure."""

from typing import Final

GAIN: Final = 1 / 8
"""Of the newest sample; as TCP smooths round trips (RFC 6298, 2)."""


def smoothed(before: float | None, sample: float, *, gain: float = GAIN) -> float:
    """The mean after one more *sample*. None: it is the first."""
    return sample if before is None else before + gain * (sample - before)
