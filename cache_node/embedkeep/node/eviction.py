"""Which entry has to go when the arena is full. Pure: slots are numbers, no vector is touched.

Two decisions: whose entry (`tenant_to_evict`), then which of that tenant's (`Policy.victim`).
Each tenant has a policy of its own, so that what one asks for never ranks another's entries; what
they note about a slot lies in arrays that all share, `Notes`.

S3-FIFO was chosen by measurement over LRU and SIEVE, on real traces: `benchmarks/eviction.py`
and docs/benchmarks.md. None wins everywhere.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

import numpy as np

from embedkeep.keys import Key
from embedkeep.node.keytable import BYTES_A_SLOT, MISSING, KeyTable, Slots

TenantT = TypeVar("TenantT", bound=Hashable)

TRIAL_PART: Final = 10
"""One entry in so many may be on trial; the paper's 10 %."""
HITS_TO_PASS: Final = 2
"""Hits that end a trial well; the paper's: one more is often the same burst."""
MAX_HITS: Final = 3
"""Hits remembered: how many rounds of the main queue an entry can be owed."""

NOTES_BYTES_A_SLOT: Final = 2 + 2 * 8 + BYTES_A_SLOT
"""Hits, queue, neighbours in it; and as much room for a key that failed, with its neighbours."""

_NOBODY: Final = -1
_FREE, _TRIAL, _MAIN = range(3)


class Policy(Protocol):
    """Ranks the entries of one tenant by what was asked for. Every call is O(1), amortised."""

    def insert(self, slot: int) -> None:
        """*slot*, not held so far, now holds an entry."""

    def hit(self, slot: int) -> None:
        """The entry in *slot* was asked for."""

    def remove(self, slot: int) -> None:
        """*slot* was emptied for another reason than room; a KeyError if it was not held."""

    def victim(self) -> int:
        """Choose the slot to empty, and forget it; a KeyError if none is held."""

    def __len__(self) -> int:
        """How many slots are held."""


class Chains:
    """The neighbours of each slot in the one queue that it stands in."""

    def __init__(self, capacity: int) -> None:
        self.before = np.zeros(capacity + 1, np.int32).data
        self.after = np.zeros(capacity + 1, np.int32).data


class Queue:
    """Slots, first in first out, and out of turn too. Takes no memory beside its `Chains`."""

    __slots__ = ("_chains", "_count", "_first", "_last")

    def __init__(self, chains: Chains) -> None:
        self._chains = chains
        self._first = self._last = _NOBODY
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, slot: int) -> None:
        """Add *slot*, which stands in no queue of these chains, as the last."""
        chains, last = self._chains, self._last
        chains.before[slot], chains.after[slot] = last, _NOBODY
        if last == _NOBODY:
            self._first = slot
        else:
            chains.after[last] = slot
        self._last = slot
        self._count += 1

    def push_all(self, slots: Slots) -> None:
        """As `push`, of many in their order."""
        if len(slots) == 0:
            return
        before, after = np.asarray(self._chains.before), np.asarray(self._chains.after)
        before[slots[1:]], after[slots[:-1]] = slots[:-1], slots[1:]
        first, last = int(slots[0]), int(slots[-1])
        before[first], after[last] = self._last, _NOBODY
        if self._last == _NOBODY:
            self._first = first
        else:
            after[self._last] = first
        self._last = last
        self._count += len(slots)

    def pop(self) -> int:
        """Take the first.

        Raises:
            KeyError: There is none.
        """
        if (slot := self._first) == _NOBODY:
            raise KeyError("the queue is empty")
        self.remove(slot)
        return slot

    def remove(self, slot: int) -> None:
        """Take *slot*, which stands in this queue, out of it."""
        chains = self._chains
        before, after = chains.before[slot], chains.after[slot]
        if before == _NOBODY:
            self._first = after
        else:
            chains.after[before] = after
        if after == _NOBODY:
            self._last = before
        else:
            chains.before[after] = before
        self._count -= 1


class Notes:
    """What the policies of all tenants note about the slots of one arena.

    Args:
        keys: Which key lies in which slot; a slot's key is read when it fails its trial.
    """

    def __init__(self, keys: KeyTable) -> None:
        self.keys: Final = keys
        self.hits: Final = np.zeros(keys.capacity + 1, np.uint8)
        self.places: Final = np.zeros(keys.capacity + 1, np.uint8)
        """Which queue each slot stands in."""
        self.hits_at: Final = self.hits.data
        self.places_at: Final = self.places.data
        """The same, for one at a time: several times as fast."""
        self.chains: Final = Chains(keys.capacity)
        self.failed: Final = KeyTable(keys.capacity)
        """Keys that failed their trial. No tenant has more of them than entries, so they fit."""
        self.failed_chains: Final = Chains(keys.capacity)

    def hit(self, slots: Slots) -> None:
        """Count a hit of each of *slots*, all of them held.

        A slot that stands there twice has one: a batch is one burst.
        """
        if len(slots) == 1:  # numpy takes several times as long for one
            slot, hits = int(slots[0]), self.hits_at
            hits[slot] = min(hits[slot] + 1, MAX_HITS)
        else:
            self.hits[slots] = np.minimum(self.hits[slots] + 1, MAX_HITS)

    def clear(self, tag: bytes, slots: Slots) -> None:
        """The tenant with *tag*, who held *slots*, begins anew, with a new policy."""
        self.places[slots] = _FREE
        self.failed.remove_tenant(tag)


class S3Fifo:
    """S3-FIFO: a short queue on trial, a main queue, and the keys of what failed its trial.

    An entry starts on trial and moves on if it is hit twice there; what fails leaves its key
    behind, and is not tried again if it comes back soon. The main queue gives every hit another
    round. A hit only counts, nothing moves.

    There is no capacity: the room of a tenant changes with what the others use, so the parts
    follow the number of entries held. Beside each entry lies at most one remembered key.

    Args:
        notes: Of the arena.

    Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.
    """

    __slots__ = ("_failed", "_main", "_notes", "_trial")

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._trial = Queue(notes.chains)
        self._main = Queue(notes.chains)
        self._failed = Queue(notes.failed_chains)

    def insert(self, slot: int) -> None:
        """*slot* now holds a key: on trial, unless that key failed one lately.

        Raises:
            ValueError: *slot* is held already.
        """
        notes = self._notes
        if notes.places_at[slot] != _FREE:
            raise ValueError(f"slot {slot} is held")
        notes.hits_at[slot] = 0
        failed = notes.failed.remove(notes.keys.key(slot))
        if failed == MISSING:
            notes.places_at[slot] = _TRIAL
            self._trial.push(slot)
        else:
            self._failed.remove(failed)
            notes.places_at[slot] = _MAIN
            self._main.push(slot)

    def insert_all(self, slots: Slots, keys: Sequence[Key]) -> None:
        """As `insert`, of many at once, which now hold *keys*."""
        notes = self._notes
        known = notes.failed.find(keys) == MISSING if self._failed else np.ones(len(keys), bool)
        fresh = slots[known]
        if notes.places[fresh].any():
            raise ValueError("a slot is held")
        notes.hits[fresh], notes.places[fresh] = 0, _TRIAL
        self._trial.push_all(fresh)
        for slot in slots[~known].tolist():
            self.insert(slot)

    def hit(self, slot: int) -> None:
        """Count a hit.

        Raises:
            KeyError: *slot* is not held.
        """
        if self._notes.places_at[slot] == _FREE:
            raise KeyError(slot)
        if (hits := self._notes.hits_at[slot]) < MAX_HITS:
            self._notes.hits_at[slot] = hits + 1

    def remove(self, slot: int) -> None:
        """Forget *slot*; its key is not remembered as failed.

        Raises:
            KeyError: *slot* is not held.
        """
        place = self._notes.places_at[slot]
        if place == _FREE:
            raise KeyError(slot)
        (self._trial if place == _TRIAL else self._main).remove(slot)
        self._notes.places_at[slot] = _FREE
        self._trim(len(self))

    def victim(self) -> int:
        """Choose a slot and forget it: from the trial where that is too long, else from main.

        Each entry that is passed over loses hits or leaves the trial, so this ends.

        Raises:
            KeyError: None is held.
        """
        hits, places = self._notes.hits_at, self._notes.places_at
        trial_room = len(self) // TRIAL_PART
        while True:
            if self._trial and (len(self._trial) > trial_room or not self._main):
                slot = self._trial.pop()
                if hits[slot] >= HITS_TO_PASS:
                    hits[slot], places[slot] = 0, _MAIN
                    self._main.push(slot)
                    continue
                self._fail(slot)
            else:
                slot = self._main.pop()
                if hits[slot]:
                    hits[slot] -= 1
                    self._main.push(slot)
                    continue
                self._trim(len(self))
            places[slot] = _FREE
            return slot

    def __len__(self) -> int:
        return len(self._trial) + len(self._main)

    def _fail(self, slot: int) -> None:
        """Remember the key of *slot*, which is held no more."""
        if held := len(self):
            self._trim(held - 1)
            self._failed.push(self._notes.failed.add(self._notes.keys.key(slot)))
        else:
            self._trim(0)

    def _trim(self, most: int) -> None:
        """Remember no more than *most* keys."""
        failed = self._notes.failed
        while len(self._failed) > most:
            failed.remove(failed.key(self._failed.pop()))


def tenant_to_evict(
    used: Mapping[TenantT, int], shares: Mapping[TenantT, int], *, newcomer: TenantT
) -> TenantT:
    """Whose entry makes room for one of *newcomer*, in an arena that is full.

    A tenant's fair share is the arena, divided as *shares* are. Nobody who is at or under it
    loses an entry to another tenant; who is under it gets room from whoever is most over it.
    Room that nobody claims is lent to whoever asks, until it is claimed: with 100 slots, two equal
    tenants and one asleep, the other may fill all 100, and falls back to 50 as the first wakes.

    Args:
        used: Slots that each tenant holds; they add up to the arena.
        shares: Weights, at least 0. A tenant without one has 0: it may hold only lent room.
        newcomer: Who wants one more slot; has a weight above 0.

    Raises:
        ValueError: Nobody holds a slot, or *newcomer* has no weight.
    """
    weights, slots = sum(shares.values()), sum(used.values())
    if shares.get(newcomer, 0) <= 0:
        raise ValueError(f"{newcomer!r} has no share")
    if slots == 0:
        raise ValueError("nothing is held")

    def rank(tenant: TenantT) -> tuple[int, bool]:
        # Slots over the fair share, times all weights to stay with whole numbers.
        over = (used[tenant] + (tenant == newcomer)) * weights - slots * shares.get(tenant, 0)
        return over, tenant == newcomer  # in a tie the newcomer pays itself: churn stays its own

    return max((tenant for tenant, held in used.items() if held), key=rank)
