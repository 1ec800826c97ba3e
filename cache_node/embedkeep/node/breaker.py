"""When to leave a failing dependency alone, and when to look again. Pure; the clock comes in."""

from dataclasses import dataclass, replace

TIMEOUTS_TO_OPEN = 3
"""Timeouts in a row. One alone may be a slow command; a lost connection opens at once."""

MAX_BACKOFF = 16
"""Longest pause, as a multiple of the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """State after the failures and successes so far. Starts open: prove it works, then use it."""

    pause_s: float
    """First pause after opening, seconds."""
    closed: bool = False
    timeouts: int = 0
    """In a row, while closed."""
    counted_at: float = 0.0
    """Clock of the last of them."""
    openings: int = 0
    """In a row, without a success between."""
    retry_at: float = 0.0
    """Clock at which a probe may be sent, while open."""

    def success(self) -> "Breaker":
        """A reply came while closed."""
        return self if self.timeouts == 0 else replace(self, timeouts=0)

    def close(self) -> "Breaker":
        """A probe succeeded."""
        return Breaker(pause_s=self.pause_s, closed=True)

    def timeout(self, now: float, *, began: float) -> "Breaker":
        """A reply did not come in time.

        Args:
            began: Clock at which it was asked for. Of all that hang at once one counts: a single
                hiccup must not look like three in a row.
        """
        if self.closed and began < self.counted_at:
            return self
        if self.closed and self.timeouts + 1 < TIMEOUTS_TO_OPEN:
            return replace(self, timeouts=self.timeouts + 1, counted_at=now)
        return self.open(now)

    def open(self, now: float) -> "Breaker":
        """The dependency failed: leave it alone for a while, longer each time in a row."""
        pause = self.pause_s * min(2**self.openings, MAX_BACKOFF)
        return Breaker(
            pause_s=self.pause_s, openings=min(self.openings + 1, 16), retry_at=now + pause
        )
