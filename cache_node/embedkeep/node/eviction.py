"""Which entry has to go when the arena is full. Pure: slots are numbers, nothing is stored here.

Two decisions: whose entry (`tenant_to_evict`), then which of that tenant's (`Policy.victim`).
Each tenant has a policy of its own, so that what one asks for never ranks another's entries.

S3-FIFO was chosen by measurement over LRU and SIEVE, on real traces: `benchmarks/eviction.py`
and docs/benchmarks.md. None wins everywhere.
"""

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Final, Protocol, TypeVar

TenantT = TypeVar("TenantT", bound=Hashable)

TRIAL_PART: Final = 10
"""One entry in so many may be on trial; the paper's 10 %."""
HITS_TO_PASS: Final = 2
"""Hits that end a trial well; the paper's: one more is often the same burst."""
MAX_HITS: Final = 3
"""Hits remembered: how many rounds of the main queue an entry can be owed."""


class Policy(Protocol):
    """Ranks the entries of one tenant by what was asked for. Every call is O(1), amortised."""

    def insert(self, slot: int, key: Hashable) -> None:
        """*slot*, not held so far, now holds the entry of *key*."""

    def hit(self, slot: int) -> None:
        """The entry in *slot* was asked for."""

    def remove(self, slot: int) -> None:
        """*slot* was emptied for another reason than room; a KeyError if it was not held."""

    def victim(self) -> int:
        """Choose the slot to empty, and forget it; a KeyError if none is held."""

    def __len__(self) -> int:
        """How many slots are held."""


class S3Fifo:
    """S3-FIFO: a short queue on trial, a main queue, and the keys of what failed its trial.

    An entry starts on trial and moves on if it is hit twice there; what fails leaves its key
    behind, and is not tried again if it comes back soon. The main queue gives every hit another
    round. A hit only counts, nothing moves: one dict lookup.

    There is no capacity: the room of a tenant changes with what the others use, so the parts
    follow the number of entries held. Beside each entry lies at most one remembered key.

    Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.
    """

    __slots__ = ("_failed", "_hits", "_main", "_trial")

    def __init__(self) -> None:
        # OrderedDict and not dict: taking the first of a dict again and again is quadratic.
        self._trial: OrderedDict[int, Hashable] = OrderedDict()
        self._main: OrderedDict[int, None] = OrderedDict()
        self._failed: OrderedDict[Hashable, None] = OrderedDict()
        self._hits: dict[int, int] = {}

    def insert(self, slot: int, key: Hashable) -> None:
        """*slot* now holds *key*: on trial, unless *key* failed one lately.

        Raises:
            ValueError: *slot* is held already.
        """
        if slot in self._hits:
            raise ValueError(f"slot {slot} is held")
        self._hits[slot] = 0
        if key in self._failed:
            del self._failed[key]
            self._main[slot] = None
        else:
            self._trial[slot] = key

    def hit(self, slot: int) -> None:
        """Count a hit.

        Raises:
            KeyError: *slot* is not held.
        """
        if (hits := self._hits[slot]) < MAX_HITS:
            self._hits[slot] = hits + 1

    def remove(self, slot: int) -> None:
        """Forget *slot*; its key is not remembered as failed.

        Raises:
            KeyError: *slot* is not held.
        """
        del self._hits[slot]
        if slot in self._trial:
            del self._trial[slot]
        else:
            del self._main[slot]
        self._trim()

    def victim(self) -> int:
        """Choose a slot and forget it: from the trial where that is too long, else from main.

        Each entry that is passed over loses hits or leaves the trial, so this ends.

        Raises:
            KeyError: None is held.
        """
        trial_room = len(self._hits) // TRIAL_PART
        while True:
            if self._trial and (len(self._trial) > trial_room or not self._main):
                slot, key = self._trial.popitem(last=False)
                if self._hits[slot] >= HITS_TO_PASS:
                    self._hits[slot] = 0
                    self._main[slot] = None
                    continue
                self._failed[key] = None
            else:
                slot, _ = self._main.popitem(last=False)
                if self._hits[slot]:
                    self._hits[slot] -= 1
                    self._main[slot] = None
                    continue
            del self._hits[slot]
            self._trim()
            return slot

    def __len__(self) -> int:
        return len(self._hits)

    def _trim(self) -> None:
        """Remember no more keys than entries are held."""
        while len(self._failed) > len(self._hits):
            self._failed.popitem(last=False)


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
