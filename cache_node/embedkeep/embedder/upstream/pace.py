"""When requests may be made to an upstream. Pure: the clock and the dice are parameters.

An upstream that is overloaded gets a pause of all requests, as long as it asks for. Where it does
not say, or is broken, the pause is drawn between nothing and a bound that doubles ("full jitter":
M. Brooker, Exponential Backoff and Jitter, 2015), so that many callers do not come back at once.
After a pause one request goes alone; only when it succeeds do others follow.
"""

from collections.abc import Callable
from typing import Final

from embedkeep.embedder.upstream.failures import Failure, Kind

FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 30.0
"""Bounds of a pause that the upstream does not name."""

LOOK_AGAIN_S: Final = 60.0
"""Until a look whether an account has quota again, a key is taken or a model is there: somebody
must have done something first."""

BROKEN_AFTER: Final = 3
"""Failures in a row without a success, from which on all requests pause. Fewer may be of single
requests."""

NEEDS_SOMEBODY: Final = frozenset({Kind.EXHAUSTED, Kind.KEY, Kind.MODEL})


def backoff_s(failures: int, dice: Callable[[], float]) -> float:
    """A pause after so many failures in a row, at least 1."""
    return dice() * min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 30))


class Pace:
    """Pauses of one upstream.

    Args:
        dice: Numbers from 0 to 1.
    """

    def __init__(self, dice: Callable[[], float]) -> None:
        self._dice = dice
        self._in_a_row = 0
        self._alone = False
        self.open_at_s = 0.0
        """When requests may be made again."""
        self.reason: Failure | None = None
        """Of the pause, also once it is over and before a request succeeded. None: all is well."""

    def left_s(self, now_s: float) -> float:
        """Of the pause; 0: there is none."""
        return max(0.0, self.open_at_s - now_s)

    def may_send(self, *, in_flight: int, now_s: float) -> bool:
        """Whether another request may be made now."""
        return now_s >= self.open_at_s and not (self._alone and in_flight)

    def succeeded(self) -> None:
        """A request was answered: the upstream works."""
        self._in_a_row, self._alone, self.reason = 0, False, None

    def failed(self, failure: Failure, now_s: float) -> None:
        """A request failed. What is wrong with the request alone is no reason to pause."""
        kind = failure.kind
        if kind in {Kind.TOO_MANY, Kind.TOO_LONG, Kind.REJECTED}:
            self.succeeded()
            return
        if kind in {Kind.NONSENSE, Kind.LATE}:
            return
        paused = now_s < self.open_at_s
        if not paused:  # else one outage would count once for each request that was in flight
            self._in_a_row += 1
        if kind in NEEDS_SOMEBODY:
            pause_s = failure.retry_after_s or LOOK_AGAIN_S
        elif kind is Kind.THROTTLED or failure.retry_after_s is not None:
            pause_s = failure.retry_after_s or backoff_s(self._in_a_row, self._dice)
        elif self._in_a_row >= BROKEN_AFTER:
            pause_s = backoff_s(self._in_a_row - BROKEN_AFTER + 1, self._dice)
        else:
            return
        if paused and failure.retry_after_s is None and kind not in NEEDS_SOMEBODY:
            return
        self._alone = True
        if now_s + pause_s >= self.open_at_s:
            self.open_at_s, self.reason = now_s + pause_s, failure

    def renewed(self) -> None:
        """Whatever was needed was done, such as another key: look at once."""
        if self.reason is not None and self.reason.kind in NEEDS_SOMEBODY:
            self.open_at_s = 0.0
