"""How long a peer may take to give a first sign, by how far away it has been. Pure.

A bound that fits one machine takes every peer in another zone for hung, again and again. So what is
waited for is the round trip as it usually is, and the time that a peer may take on top.
"""

from dataclasses import dataclass, replace
from typing import Final, Self

from embedkeep.smoothing import smoothed

_OF_DEVIATION: Final = 1 / 4
_DEVIATIONS: Final = 4
"""Weight of a new sample, and deviations that are waited for: TCP's (RFC 6298, 2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTrip:
    """What was seen of the way to one peer and back, when it had nothing to do but to answer."""

    mean_s: float
    """Smoothed."""
    deviation_s: float
    """Mean distance from it, smoothed."""

    @classmethod
    def first(cls, seconds: float) -> Self:
        """After one sample."""
        return cls(mean_s=seconds, deviation_s=seconds / 2)

    def seen(self, seconds: float) -> Self:
        """After another sample."""
        distance = abs(self.mean_s - seconds)
        return replace(
            self,
            mean_s=smoothed(self.mean_s, seconds),
            deviation_s=smoothed(self.deviation_s, distance, gain=_OF_DEVIATION),
        )

    def patience_s(self, *, least_s: float, most_s: float) -> float:
        """How long to wait for a sign.

        Args:
            least_s: What a peer may take beside the way, and at least.
            most_s: Never longer than this, unless *least_s* is.
        """
        wanted_s = self.mean_s + max(least_s, _DEVIATIONS * self.deviation_s)
        return max(least_s, min(wanted_s, most_s))
