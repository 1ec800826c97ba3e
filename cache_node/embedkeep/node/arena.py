"""L1: entries in the node's memory, in one block of fixed slots.

Nothing here waits, so between finding a slot and copying from it nothing can change. One block
keeps the garbage collector out and a batch's copy to one call.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedkeep.keys import Key
from embedkeep.node.eviction import S3Fifo, tenant_to_evict
from embedkeep.records import FLAG_IMPORTED, FLAG_TRUNCATED, Entry

OVERHEAD_BYTES: Final = 768
"""Of an entry beside its vector: key, dictionaries, the policy's notes. Measured with tracemalloc
where it is largest, in an arena that has evicted and whose dictionaries have just doubled, and
rounded up: tests/unit/test_arena.py."""

MISSING: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """What was read from some slots, in their order."""

    vectors: NDArray[np.float32]
    """Shape (slots, dimensions)."""
    tokens: list[int]
    truncated: list[int]
    """Positions of entries whose text the model did not read to its end."""
    imported: list[int]
    """Positions of entries that a caller brought."""
    device_ns: int
    """What all of them had cost."""


class Arena:
    """Entries of one space.

    Args:
        nbytes: Memory, overhead included.
        dimensions: Of every vector.
        tenants: Tags of those who may store; they share the slots equally, and lend what is free.
        ttl_s: Life of an entry from when it was computed, seconds. None: until evicted.
    """

    def __init__(
        self,
        *,
        nbytes: int,
        dimensions: int,
        tenants: Iterable[bytes],
        ttl_s: int | None = None,
    ) -> None:
        self.capacity = nbytes // (4 * dimensions + OVERHEAD_BYTES)
        """Entries that fit."""
        self.slot_bytes = 4 * dimensions + OVERHEAD_BYTES
        self.evictions = 0
        """Entries dropped for room so far."""
        # Not touched before it is used, so that the kernel gives memory as entries come.
        self._vectors = np.empty((self.capacity, dimensions), np.float32)
        self._tokens = np.empty(self.capacity, np.uint32)
        self._flags = np.empty(self.capacity, np.uint8)
        self._device_ns = np.empty(self.capacity, np.uint64)
        self._born_s = np.empty(self.capacity, np.uint32)
        self._ttl_s = ttl_s
        self._slots: dict[Key, int] = {}
        self._keys: list[Key | None] = []
        self._free: list[int] = []
        self._policies = {tag: S3Fifo() for tag in tenants}
        self._owners: dict[int, bytes] = {}
        self._used = dict.fromkeys(self._policies, 0)
        self._shares = dict.fromkeys(self._policies, 1)

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, key: Key) -> bool:
        """It is held; no hit is counted, and its life is not looked at."""
        return key in self._slots

    def find(self, keys: Sequence[Key], tenant: bytes, *, now_s: int = 0) -> list[int]:
        """Slot of each key, or MISSING; counts as a hit. Good until anything is stored.

        Args:
            now_s: Unix time, seconds: entries whose life is over are dropped.
        """
        slots = [self._slots.get(key, MISSING) for key in keys]
        if self._ttl_s is not None:
            self._expire(keys, slots, now_s - self._ttl_s)
        hit = self._policies[tenant].hit
        for slot in slots:
            if slot != MISSING:
                hit(slot)
        return slots

    def read(self, slots: Sequence[int]) -> Hits:
        """A copy of what lies in *slots*."""
        at = np.asarray(slots, np.intp)
        flags = self._flags[at]
        return Hits(
            vectors=self._vectors[at],
            tokens=self._tokens[at].tolist(),
            truncated=np.flatnonzero(flags & FLAG_TRUNCATED).tolist(),
            imported=np.flatnonzero(flags & FLAG_IMPORTED).tolist(),
            device_ns=int(self._device_ns[at].sum()),
        )

    def put(self, key: Key, entry: Entry, tenant: bytes) -> None:
        """Keep *entry*; an earlier one under *key* is overwritten. Drops others for room."""
        if self.capacity == 0:
            return
        if (slot := self._slots.get(key)) is None:
            slot = self._room(tenant)
            self._slots[key] = slot
            self._keys[slot] = key
            self._owners[slot] = tenant
            self._used[tenant] += 1
            self._policies[tenant].insert(slot, key)
        self._vectors[slot] = entry.vector
        self._tokens[slot] = entry.tokens
        self._flags[slot] = entry.flags
        self._device_ns[slot] = entry.device_ns
        self._born_s[slot] = entry.born_s

    def remove(self, key: Key) -> None:
        """Forget *key*, if it is held."""
        if (slot := self._slots.get(key)) is not None:
            self._policies[self._owners[slot]].remove(slot)
            self._release(slot)

    def remove_tenant(self, tenant: bytes) -> None:
        """Forget all of one tenant."""
        for slot in [slot for slot, owner in self._owners.items() if owner == tenant]:
            self._release(slot)
        self._policies[tenant] = S3Fifo()

    def _expire(self, keys: Sequence[Key], slots: list[int], oldest_s: int) -> None:
        """Drop those of *slots* that were computed at *oldest_s* or before."""
        for at, (key, slot) in enumerate(zip(keys, slots, strict=True)):
            if slot != MISSING and 0 < self._born_s[slot] <= oldest_s:
                self.remove(key)  # does nothing for a key that stands twice in a batch
                slots[at] = MISSING

    def _room(self, tenant: bytes) -> int:
        if self._free:
            return self._free.pop()
        if len(self._keys) < self.capacity:
            self._keys.append(None)
            return len(self._keys) - 1
        loser = tenant_to_evict(self._used, self._shares, newcomer=tenant)
        slot = self._policies[loser].victim()
        self._release(slot)
        self.evictions += 1
        return self._free.pop()

    def _release(self, slot: int) -> None:
        key = self._keys[slot]
        assert key is not None  # noqa: S101 - a held slot has a key
        del self._slots[key]
        self._keys[slot] = None
        self._used[self._owners.pop(slot)] -= 1
        self._free.append(slot)
