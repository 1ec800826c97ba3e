"""The policies that S3-FIFO was measured against. Each is an `embedkeep.node.eviction.Policy`."""

from collections import OrderedDict


class Lru:
    """Least recently used."""

    def __init__(self) -> None:
        self._slots: OrderedDict[int, None] = OrderedDict()

    def insert(self, slot: int) -> None:
        """The newest."""
        self._slots[slot] = None

    def hit(self, slot: int) -> None:
        """Becomes the newest."""
        self._slots.move_to_end(slot)

    def remove(self, slot: int) -> None:
        """Forget it."""
        del self._slots[slot]

    def victim(self) -> int:
        """The oldest."""
        return self._slots.popitem(last=False)[0]

    def __len__(self) -> int:
        return len(self._slots)


class Sieve:
    """SIEVE: a queue that a hand sweeps; what was hit since the last sweep stays in place.

    The queue is kept as the part behind the hand and the part ahead of it, both oldest first.
    Source: Zhang et al., "SIEVE is simpler than LRU", NSDI 2024.
    """

    def __init__(self) -> None:
        self._behind: OrderedDict[int, None] = OrderedDict()
        self._ahead: OrderedDict[int, None] = OrderedDict()
        self._visited: set[int] = set()

    def insert(self, slot: int) -> None:
        """The newest, not visited."""
        self._ahead[slot] = None

    def hit(self, slot: int) -> None:
        """Survives the next sweep."""
        self._visited.add(slot)

    def remove(self, slot: int) -> None:
        """Forget it."""
        part = self._ahead if slot in self._ahead else self._behind
        del part[slot]
        self._visited.discard(slot)
        self._wrap()

    def victim(self) -> int:
        """The next under the hand that was not visited."""
        while True:
            slot, _ = self._ahead.popitem(last=False)
            if slot in self._visited:
                self._visited.discard(slot)
                self._behind[slot] = None
                self._wrap()
            else:
                self._wrap()
                return slot

    def _wrap(self) -> None:
        """The hand that has passed the newest goes back to the oldest, before anything is added."""
        if not self._ahead:
            self._ahead, self._behind = self._behind, self._ahead

    def __len__(self) -> int:
        return len(self._ahead) + len(self._behind)
