"""L1: entries in the node's memory, in one block of fixed slots.

Nothing here waits, so between finding a slot and copying from it nothing can change. One block
keeps the garbage collector out and a batch's copy to one call.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from embedkeep.keys import Key, tenant_tag_of
from embedkeep.node.eviction import NOTES_BYTES_A_SLOT, Notes, S3Fifo, tenant_to_evict
from embedkeep.node.keytable import BYTES_A_SLOT, MISSING, KeyTable, Slots
from embedkeep.records import FACTS, Entries, Entry

OVERHEAD_BYTES: Final = FACTS.itemsize + BYTES_A_SLOT + NOTES_BYTES_A_SLOT
"""Of an entry beside its vector: what its record's header says; its key; and what the policy
notes."""

_BATCH: Final = 8
"""From so many entries on, numpy's calls cost less than storing one by one."""


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
        self.slot_bytes = 4 * dimensions + OVERHEAD_BYTES
        """Memory of an entry."""
        self.capacity = nbytes // self.slot_bytes
        """Entries that fit."""
        self.evictions = 0
        """Entries dropped for room so far."""
        # Not touched before it is used, so that the kernel gives memory as entries come.
        self._vectors = np.empty((self.capacity, dimensions), np.float32)
        self._facts = np.empty(self.capacity + 1, FACTS)  # MISSING, too, is an index
        self._ttl_s = ttl_s
        self._keys = KeyTable(self.capacity)
        self._notes = Notes(self._keys)
        self._policies = {tag: S3Fifo(self._notes) for tag in tenants}
        self._shares = dict.fromkeys(self._policies, 1)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: Key) -> bool:
        """It is held; no hit is counted, and its life is not looked at."""
        return self._keys.get(key) != MISSING

    def find(self, keys: Sequence[Key], *, now_s: int = 0) -> Slots:
        """Slot of each key, or MISSING; counts as a hit. Good until anything is stored.

        Args:
            now_s: Unix time, seconds: entries whose life is over are dropped.
        """
        slots = self._keys.find(keys)
        if self._ttl_s is not None:
            self._expire(keys, slots, now_s - self._ttl_s)
        held = slots != MISSING
        if count := np.count_nonzero(held):
            self._notes.hit(slots if count == len(slots) else slots[held])
        return slots

    def read(self, slots: Slots) -> Entries:
        """A copy of what lies in *slots*."""
        # take() and not an index: half the time, for one as for many.
        return Entries(facts=self._facts.take(slots), vectors=self._vectors.take(slots, axis=0))

    def put(self, key: Key, entry: Entry, tenant: bytes) -> None:
        """Keep *entry*; an earlier one under *key* is overwritten. Drops others for room.

        Args:
            tenant: The tag in *key*.
        """
        if self.capacity == 0:
            return
        if (slot := self._keys.get(key)) == MISSING:
            if len(self) == self.capacity:
                self._evict(tenant)
            slot = self._keys.add(key)
            self._policies[tenant].insert(slot)
        self._vectors[slot] = entry.vector
        self._facts[slot] = (entry.tokens, entry.flags, entry.device_ns, entry.born_s)

    def put_all(self, keys: Sequence[Key], entries: Entries, tenant: bytes) -> None:
        """As `put`, of many in their order; several times as fast for a large batch.

        Room is made for all of them before the first is stored, so that none goes for another;
        only more than the tenant's share, or a batch with repeats, is stored as `put` would.
        """
        if self.capacity == 0:
            return
        # A key that stands there twice would get two slots, and keep one when it is forgotten.
        fits = len(set(keys)) == len(keys) and self._make_room(keys, tenant)
        if not fits or len(keys) < _BATCH:
            for key, entry in zip(keys, entries, strict=True):
                self.put(key, entry, tenant)
            return
        slots = self._keys.find(keys)
        if len(new := np.flatnonzero(slots == MISSING)):
            added = [keys[at] for at in new.tolist()]
            slots[new] = self._keys.add_all(added)
            self._policies[tenant].insert_all(slots[new], added)
        self._vectors[slots] = entries.vectors
        self._facts[slots] = entries.facts

    def _make_room(self, keys: Sequence[Key], tenant: bytes) -> bool:
        """Drop what must go before all of *keys* fit.

        False: they are more than the share of *tenant*, so that some of them would have to go for
        the others. Nothing was dropped then.
        """
        if len(keys) * len(self._shares) > self.capacity:
            return False
        # What goes may be one of *keys* itself: look again.
        while (short := self._missing(keys) + len(self) - self.capacity) > 0:
            for coming in range(short):
                self._evict(tenant, coming=coming)
        return True

    def _missing(self, keys: Sequence[Key]) -> int:
        """How many of *keys* are not held; all of them count where all fit anyway."""
        if len(self) + len(keys) <= self.capacity:
            return len(keys)
        return int(np.count_nonzero(self._keys.find(keys) == MISSING))

    def remove(self, key: Key) -> None:
        """Forget *key*, if it is held."""
        if (slot := self._keys.remove(key)) != MISSING:
            self._policies[tenant_tag_of(key)].remove(slot)

    def remove_tenant(self, tenant: bytes) -> None:
        """Forget all of one tenant."""
        self._notes.clear(tenant, self._keys.remove_tenant(tenant))
        self._policies[tenant] = S3Fifo(self._notes)

    def held(self, tenant: bytes) -> int:
        """Entries of one tenant."""
        return len(self._policies[tenant])

    def _expire(self, keys: Sequence[Key], slots: Slots, oldest_s: int) -> None:
        """Drop those of *slots* that were computed at *oldest_s* or before."""
        born_s = self._facts["born_s"][slots]
        for at in np.flatnonzero((slots != MISSING) & (born_s > 0) & (born_s <= oldest_s)).tolist():
            self.remove(keys[at])  # does nothing for a key that stands twice in a batch
            slots[at] = MISSING

    def _evict(self, newcomer: bytes, *, coming: int = 0) -> None:
        """Drop one for *newcomer*, who has *coming* empty slots already."""
        loser = newcomer
        if len(self._policies) > 1:
            used = {tag: len(policy) for tag, policy in self._policies.items()}
            used[newcomer] += coming
            loser = tenant_to_evict(used, self._shares, newcomer=newcomer)
        self._keys.remove(self._keys.key(self._policies[loser].victim()))
        self.evictions += 1
