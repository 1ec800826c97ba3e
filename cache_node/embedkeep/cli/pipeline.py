"""Batches of a long input through a slow call: several under way at once, results in order.

Memory is bounded by the window, however long the input is. How large a batch is follows from how
long calls take: a node with much to do gets small ones, which it can answer in time, and a node
that has the answers gets large ones.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

TARGET_S: Final = 1.0
"""What a call should take: well below a node's own limit for one computation, far above what a call
costs by itself."""
MIN_ITEMS: Final = 8
MAX_ITEMS: Final = 1024
"""A call: about what fits one request at 1,024 dimensions."""
MAX_COST: Final = 2 << 20
"""Of a batch, unless one item alone has more."""


class Item(Protocol):
    """What is put into batches."""

    @property
    def cost(self) -> int:
        """Memory that it takes, in about bytes."""


ItemT = TypeVar("ItemT", bound=Item)
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How many items the next batch has."""

    items: int = 32

    def after(self, count: int, seconds: float) -> "Pace":
        """What a call of *count* items that took so long teaches: halve, double, or leave it."""
        if seconds > 2 * TARGET_S:
            return Pace(items=max(MIN_ITEMS, min(self.items, count // 2)))
        if seconds < TARGET_S / 2 and count >= self.items:
            return Pace(items=min(MAX_ITEMS, self.items * 2))
        return self


class Batches(Generic[ItemT]):
    """Cuts *items* into batches as they are asked for; reads one item ahead."""

    def __init__(self, items: Iterator[ItemT]) -> None:
        self._items = items
        self._ahead: ItemT | None = None

    def take(self, most: int) -> list[ItemT]:
        """Up to *most* items; none: there are no more."""
        batch: list[ItemT] = []
        cost = 0
        while len(batch) < most:
            item = self._ahead if self._ahead is not None else next(self._items, None)
            self._ahead = None
            if item is None:
                break
            if batch and cost + item.cost > MAX_COST:
                self._ahead = item
                break
            batch.append(item)
            cost += item.cost
        return batch


def in_order(
    items: Iterator[ItemT],
    call: Callable[[list[ItemT]], ResultT],
    *,
    window: int,
    abandon: Callable[[], None],
) -> Generator[tuple[list[ItemT], ResultT], None, None]:
    """Batches of *items*, each with what *call* made of it, in order.

    Args:
        call: Called in threads, on several batches at once.
        window: Batches under way at once.
        abandon: Makes calls under way end soon; called where not all results are wanted any more.

    Raises:
        Exception: What *call* or the items raise; results before it have been yielded.
    """
    batches, pace = Batches(items), Pace()
    waiting: deque[tuple[list[ItemT], Future[tuple[ResultT, float]]]] = deque()
    with ThreadPoolExecutor(window, "embedkeep-bulk") as pool:
        try:
            while True:
                while len(waiting) < window and (batch := batches.take(pace.items)):
                    waiting.append((batch, pool.submit(_timed, call, batch)))
                if not waiting:
                    return
                batch, future = waiting[0]
                result, seconds = future.result()
                waiting.popleft()
                pace = pace.after(len(batch), seconds)
                yield batch, result
        finally:
            if waiting:
                pool.shutdown(wait=False, cancel_futures=True)
                abandon()


def _timed(call: Callable[[list[ItemT]], ResultT], batch: list[ItemT]) -> tuple[ResultT, float]:
    start = time.monotonic()
    return call(batch), time.monotonic() - start
