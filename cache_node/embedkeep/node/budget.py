"""How much of the device's time warming may take. Pure: the clock is passed in.

A token bucket lets through its burst beside its rate, so in the hour after a quiet one it spends
more than an hour's worth; and with a small burst a cache that was lost stays cold for long. So what
was spent is remembered by the minute: all of an hour's budget may go at once, and never more than
that in any hour.
"""

from collections import deque
from typing import Final

HOUR_S: Final = 3600.0
SLOT_S: Final = 60.0
"""What is remembered together, seconds; it counts for up to so much longer than an hour."""


class Budget:
    """What was spent in the last hour."""

    def __init__(self) -> None:
        self._slots: deque[tuple[float, float]] = deque()
        """When each slot is an hour old, and what was spent in it, oldest first."""

    def spend(self, seconds: float, *, now_s: float) -> None:
        """Device time was taken; it may be more than there was left.

        Args:
            now_s: On a clock that never goes back.
        """
        until_s = (now_s // SLOT_S + 1) * SLOT_S + HOUR_S
        if self._slots and self._slots[-1][0] == until_s:
            seconds += self._slots.pop()[1]
        self._slots.append((until_s, seconds))

    def left_s(self, budget_s: float, *, now_s: float) -> float:
        """What may still be spent now. Below 0: more was than *budget_s*, which may have sunk."""
        while self._slots and self._slots[0][0] <= now_s:
            self._slots.popleft()
        return budget_s - sum(seconds for _, seconds in self._slots)
