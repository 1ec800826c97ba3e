import hashlib
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from embedkeep.keys import KEY_BYTES, Key
from embedkeep.node.eviction import (
    HITS_TO_PASS,
    MAX_HITS,
    TRIAL_PART,
    Notes,
    S3Fifo,
    tenant_to_evict,
)
from embedkeep.node.keytable import KeyTable

CAPACITY = 100
TAG = b"ann."


def a_key(name: object) -> Key:
    digest = hashlib.blake2b(str(name).encode(), digest_size=KEY_BYTES - 8).digest()
    return Key(b"spac" + TAG + digest)


class Held:
    """A policy and the keys that it ranks, as an arena keeps them."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.keys = KeyTable(capacity)
        self.notes = Notes(self.keys)
        self.policy = S3Fifo(self.notes)

    def insert(self, name: object) -> int:
        slot = self.keys.add(a_key(name))
        self.policy.insert(slot)
        return slot

    def remove(self, slot: int) -> None:
        self.policy.remove(slot)
        self.keys.remove(self.keys.key(slot))

    def victim(self) -> int:
        slot = self.policy.victim()
        self.keys.remove(self.keys.key(slot))
        return slot


def filled(*names: str) -> Held:
    """A policy that holds *names* in slots 0, 1, 2 ..., none of them hit."""
    held = Held()
    assert [held.insert(name) for name in names] == list(range(len(names)))
    return held


class Described:
    """S3-FIFO as its paper describes it: lists, no cleverness."""

    def __init__(self) -> None:
        self.trial: list[int] = []
        self.main: list[int] = []
        self.failed: list[int] = []
        self.keys: dict[int, int] = {}
        self.hits: dict[int, int] = {}

    def insert(self, slot: int, key: int) -> None:
        self.keys[slot] = key
        self.hits[slot] = 0
        known = key in self.failed
        if known:
            self.failed.remove(key)
        (self.main if known else self.trial).append(slot)

    def remove(self, slot: int) -> None:
        (self.trial if slot in self.trial else self.main).remove(slot)
        del self.keys[slot], self.hits[slot]
        self.failed = self.failed[max(0, len(self.failed) - len(self.keys)) :]

    def victim(self) -> int:
        held = len(self.keys)
        while True:
            if self.trial and (len(self.trial) > held // TRIAL_PART or not self.main):
                slot = self.trial.pop(0)
                if self.hits[slot] < HITS_TO_PASS:
                    if (key := self.keys[slot]) in self.failed:
                        self.failed.remove(key)
                    self.failed.append(key)
                    break
                self.hits[slot] = 0
                self.main.append(slot)
            else:
                slot = self.main.pop(0)
                if not self.hits[slot]:
                    break
                self.hits[slot] -= 1
                self.main.append(slot)
        del self.keys[slot], self.hits[slot]
        self.failed = self.failed[max(0, len(self.failed) - len(self.keys)) :]
        return slot


class PolicyBesideItsDescription(RuleBasedStateMachine):
    """Any order of calls: the same victims as the description, and never one that is not held."""

    def __init__(self) -> None:
        super().__init__()
        self.held = Held(31)
        self.model = Described()

    @rule(key=st.integers(0, 60))
    def insert(self, key: int) -> None:
        if key not in self.model.keys.values() and len(self.model.keys) < self.held.keys.capacity:
            slot = self.held.insert(key)
            self.model.insert(slot, key)
            with pytest.raises(ValueError, match="is held"):
                self.held.policy.insert(slot)

    @rule(slot=st.integers(0, 30), times=st.integers(1, 5))
    def hit(self, slot: int, times: int) -> None:
        for _ in range(times):
            if slot in self.model.keys:
                self.held.policy.hit(slot)
                self.model.hits[slot] = min(MAX_HITS, self.model.hits[slot] + 1)
            else:
                with pytest.raises(KeyError):
                    self.held.policy.hit(slot)

    @rule(batch=st.lists(st.integers(0, 30), max_size=40))
    def hit_many(self, batch: list[int]) -> None:
        slots = [slot for slot in batch if slot in self.model.keys]
        self.held.notes.hit(np.array(slots, np.int32))
        for slot in set(slots):
            self.model.hits[slot] = min(MAX_HITS, self.model.hits[slot] + 1)

    @rule(slot=st.integers(0, 30))
    def remove(self, slot: int) -> None:
        if slot in self.model.keys:
            self.held.remove(slot)
            self.model.remove(slot)
        else:
            with pytest.raises(KeyError):
                self.held.policy.remove(slot)

    @precondition(lambda self: self.model.keys)
    @rule()
    def evict(self) -> None:
        assert self.held.victim() == self.model.victim()

    @invariant()
    def holds_as_many(self) -> None:
        assert len(self.held.policy) == len(self.held.keys) == len(self.model.keys)
        assert len(self.held.notes.failed) == len(self.model.failed)


TestPolicyBesideItsDescription = PolicyBesideItsDescription.TestCase
TestPolicyBesideItsDescription.settings = settings(
    max_examples=150, stateful_step_count=80, deadline=None
)


def test_what_was_never_hit_goes_first_and_in_order() -> None:
    held = filled("a", "b", "c")
    for _ in range(HITS_TO_PASS):
        held.policy.hit(0)

    assert [held.victim() for _ in range(3)] == [1, 2, 0]


def test_a_scan_of_new_keys_does_not_push_out_what_is_used() -> None:
    """The reason for a trial: a job that embeds a corpus once must not empty the cache."""
    held = filled(*(f"used {n}" for n in range(CAPACITY)))
    for slot in range(CAPACITY):
        for _ in range(HITS_TO_PASS):
            held.policy.hit(slot)
    used = set(range(CAPACITY))

    for n in range(CAPACITY // 2):
        used.discard(held.victim())
        held.insert(f"scanned {n}")

    # A tenth is on trial, and at first one more: the first victim was chosen before any new key.
    assert len(used) == CAPACITY - CAPACITY // TRIAL_PART - 1


def test_every_hit_in_the_main_queue_is_worth_another_round() -> None:
    held = filled("a", "b", "c")
    for slot in (0, 1):
        for _ in range(HITS_TO_PASS):
            held.policy.hit(slot)
    assert held.victim() == 2  # a and b pass their trial
    for slot in (0, 0, 0, 1):
        held.policy.hit(slot)

    assert [held.victim(), held.victim()] == [1, 0]


def test_a_key_that_comes_back_soon_after_its_trial_is_not_tried_again() -> None:
    held = filled("a", "b", "c", "d")
    lost = held.victim()

    assert held.insert("a") == lost

    assert [held.victim() for _ in range(4)] == [1, 2, 3, lost]


def test_an_invalidated_entry_is_not_remembered_as_a_failure() -> None:
    held = filled("a", "b", "c", "d")
    held.remove(0)

    held.insert("a")

    assert [held.victim() for _ in range(4)] == [1, 2, 3, 0]


def test_an_empty_policy_has_no_victim() -> None:
    with pytest.raises(KeyError):
        Held().victim()


def test_remembered_keys_never_outnumber_entries() -> None:
    """Their room is the arena's own: one more would overwrite what is not theirs."""
    held = Held(50)

    for n in range(10_000):
        if len(held.policy) == 50:
            held.victim()
        held.insert(n)

    assert len(held.notes.failed) <= len(held.policy)


TENANTS = ("ann", "bob", "cid", "dee")
weights = st.fixed_dictionaries({tenant: st.integers(0, 5) for tenant in TENANTS}).filter(
    lambda shares: any(shares.values())
)


class TenantsInOneArena(RuleBasedStateMachine):
    """Tenants of any weights ask for slots in any order, and let go of some."""

    def __init__(self) -> None:
        super().__init__()
        self.used = dict.fromkeys(TENANTS, 0)
        self.shares = dict.fromkeys(TENANTS, 1)
        self.slots = 10

    @precondition(lambda self: not any(self.used.values()))
    @rule(shares=weights, slots=st.integers(1, 40))
    def configure(self, shares: dict[str, int], slots: int) -> None:
        self.shares, self.slots = shares, slots

    def fair(self, tenant: str) -> float:
        return self.slots * self.shares[tenant] / sum(self.shares.values())

    @rule(tenant=st.sampled_from(TENANTS), times=st.integers(1, 50))
    def ask(self, tenant: str, times: int) -> None:
        if not self.shares[tenant]:
            return
        for _ in range(times):
            if sum(self.used.values()) == self.slots:
                loser = tenant_to_evict(self.used, self.shares, newcomer=tenant)
                assert self.used[loser] > 0
                assert loser == tenant or self.used[loser] > self.fair(loser)
                self.used[loser] -= 1
            self.used[tenant] += 1

    @rule(tenant=st.sampled_from(TENANTS))
    def insist(self, tenant: str) -> None:
        """Who goes on asking reaches its fair share, whatever the others hold."""
        self.ask(tenant, 3 * self.slots)
        if self.shares[tenant]:
            assert self.used[tenant] >= int(self.fair(tenant))

    @rule(tenant=st.sampled_from(TENANTS))
    def let_go(self, tenant: str) -> None:
        self.used[tenant] = 0


TestTenantsInOneArena = TenantsInOneArena.TestCase
TestTenantsInOneArena.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


@given(asleep=st.integers(0, 3), slots=st.integers(1, 50))
def test_room_that_nobody_claims_is_lent_without_limit(asleep: int, slots: int) -> None:
    """A tenant alone may fill the arena: only then does it evict, and only itself."""
    shares = dict.fromkeys(("ann", *(f"asleep {n}" for n in range(asleep))), 1)

    loser = tenant_to_evict({"ann": slots}, shares, newcomer="ann")

    assert loser == "ann"


def test_a_tenant_that_wakes_takes_back_what_was_lent_and_no_more() -> None:
    used = {"ann": 100, "bob": 0}
    losers = OrderedDict.fromkeys(("ann", "bob"), 0)

    for _ in range(80):
        loser = tenant_to_evict(used, {"ann": 1, "bob": 1}, newcomer="bob")
        losers[loser] += 1
        used[loser] -= 1
        used["bob"] += 1

    assert (used, dict(losers)) == ({"ann": 50, "bob": 50}, {"ann": 50, "bob": 30})


def test_two_tenants_at_their_shares_do_not_push_each_other_out() -> None:
    """101 slots for two: whoever holds the odd one, each then pays for its own entries."""
    shares = {"ann": 1, "bob": 1}

    assert tenant_to_evict({"ann": 51, "bob": 50}, shares, newcomer="bob") == "bob"
    assert tenant_to_evict({"ann": 51, "bob": 50}, shares, newcomer="ann") == "ann"


def test_a_tenant_whose_share_was_taken_away_holds_lent_room_only() -> None:
    used = {"ann": 49, "gone": 5, "bob": 46}

    assert tenant_to_evict(used, {"ann": 1, "bob": 1}, newcomer="bob") == "gone"


def test_asking_without_a_share_or_for_an_empty_arena_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="'gone' has no share"):
        tenant_to_evict({"ann": 1}, {"ann": 1}, newcomer="gone")
    with pytest.raises(ValueError, match="nothing is held"):
        tenant_to_evict({}, {"ann": 1}, newcomer="ann")
