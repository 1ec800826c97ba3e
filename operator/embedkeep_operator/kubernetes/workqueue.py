"""What is to be reconciled, each once at a time, and what failed after a while. One loop's.

A key that is added while it is worked on is worked on once more afterwards; added ten times while
it waits, once. Adding again never postpones. The order is that of when each became due.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_S: Final = 0.5
"""Wait after a first failure in a row, seconds; each further one waits twice as long."""
LONGEST_S: Final = 300.0


def backoff_s(failures: int) -> float:
    """Seconds to wait after so many failures in a row; at least 1."""
    return min(LONGEST_S, FIRST_S * 2.0 ** min(failures - 1, 32))


class WorkQueue(Generic[K]):
    """Keys with the time from which each is due. At most one entry a key; thousands at the most.

    Args:
        clock: Monotonic seconds, the loop's.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due_s: dict[K, float] = {}
        self._busy: set[K] = set()
        self._changed = asyncio.Event()

    def add(self, key: K, *, after_s: float = 0.0) -> None:
        """Have *key* worked on, at the latest in so many seconds."""
        at_s = self._clock() + after_s
        if at_s < self._due_s.get(key, math.inf):
            self._due_s[key] = at_s
            self._changed.set()

    def discard(self, key: K) -> None:
        """Forget *key*: there is no such thing any more."""
        self._due_s.pop(key, None)

    async def take(self) -> K:
        """The one that has been due for the longest and that nobody works on; call `done` after."""
        while True:
            self._changed.clear()
            idle = (key for key in self._due_s if key not in self._busy)
            first = min(idle, key=self._due_s.__getitem__, default=None)
            wait_s = None if first is None else self._due_s[first] - self._clock()
            if first is not None and wait_s is not None and wait_s <= 0:
                del self._due_s[first]
                self._busy.add(first)
                return first
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()

    def done(self, key: K) -> None:
        """It is no longer worked on."""
        self._busy.discard(key)
        self._changed.set()

    def __len__(self) -> int:
        """How many wait, due or not."""
        return len(self._due_s)

    @property
    def oldest_s(self) -> float:
        """How long the one has been due that has been for the longest; 0: none is."""
        return max(0.0, self._clock() - min(self._due_s.values(), default=math.inf))
