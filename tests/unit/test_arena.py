import gc
import hashlib
import tracemalloc
from collections.abc import Sequence
from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from embedkeep.keys import KEY_BYTES, Key
from embedkeep.node.arena import OVERHEAD_BYTES, Arena
from embedkeep.node.keytable import MISSING
from embedkeep.records import FACTS, FLAG_TRUNCATED, Entries, Entry

DIMENSIONS = 4
SLOT_BYTES = 4 * DIMENSIONS + OVERHEAD_BYTES
ANN, BOB, CID = b"ann.", b"bob.", b"cid."


def a_key(tenant: bytes, number: int) -> Key:
    return Key(tenant * 2 + number.to_bytes(KEY_BYTES - 8, "little"))


def a_digested_key(number: int) -> Key:
    """As keys are: with a digest, so that they spread over the table."""
    digest = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=KEY_BYTES - 8).digest()
    return Key(ANN * 2 + digest)


def an_entry(number: int, dimensions: int = DIMENSIONS) -> Entry:
    """An entry that can be told from those of other numbers by each of its fields."""
    return Entry(
        vector=np.full(dimensions, number, np.float32),
        tokens=number,
        truncated=number % 2 == 1,
        device_ns=number << 32,
    )


def some_entries(numbers: Sequence[int]) -> Entries:
    """As `an_entry`, of each."""
    made = [an_entry(number) for number in numbers]
    return Entries(
        facts=np.array([(e.tokens, e.flags, e.device_ns, e.born_s) for e in made], FACTS),
        vectors=np.array([e.vector for e in made], np.float32).reshape(-1, DIMENSIONS),
    )


def an_arena(capacity: int, *tenants: bytes) -> Arena:
    return Arena(nbytes=capacity * SLOT_BYTES, dimensions=DIMENSIONS, tenants=tenants or (ANN,))


def held(arena: Arena, tenant: bytes, number: int) -> int | None:
    """The number of the entry under a key, if all its fields agree on one."""
    (slot,) = arena.find([a_key(tenant, number)])
    if slot == MISSING:
        return None
    hits = arena.read(np.array([slot]))
    (tokens,) = hits.tokens
    expected = an_entry(tokens)
    assert hits.vectors[0].tobytes() == expected.vector.tobytes()
    assert bool(hits.marked(FLAG_TRUNCATED)) is expected.truncated
    assert hits.device_ns == expected.device_ns
    return tokens


tenants = st.sampled_from([ANN, BOB, CID])
NUMBERS = 24
numbers = st.integers(0, NUMBERS - 1)


class ArenaBesideADict(RuleBasedStateMachine):
    """Any order of calls: a key holds what was put last under it, or nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = an_arena(0)
        self.put: dict[Key, int] = {}
        self.count = 0

    @initialize(capacity=st.integers(0, 48))
    def start(self, capacity: int) -> None:
        self.arena = an_arena(capacity, ANN, BOB, CID)

    @rule(tenant=tenants, number=numbers)
    def store(self, tenant: bytes, number: int) -> None:
        self.count += 1
        key = a_key(tenant, number)
        self.put[key] = self.count
        self.arena.put(key, an_entry(self.count), tenant)
        if self.arena.capacity:
            assert held(self.arena, tenant, number) == self.count

    @rule(tenant=tenants, wanted=st.lists(numbers, max_size=14, unique=True))
    def store_all(self, tenant: bytes, wanted: list[int]) -> None:
        keys = [a_key(tenant, number) for number in wanted]
        counts = range(self.count + 1, self.count + 1 + len(keys))
        self.count += len(keys)
        self.put.update(zip(keys, counts, strict=True))
        self.arena.put_all(keys, some_entries(counts), tenant)
        there = [held(self.arena, tenant, number) for number in wanted]
        assert all(have in (None, put) for have, put in zip(there, counts, strict=True))
        if 3 * len(keys) <= self.arena.capacity:
            assert there == list(counts)

    @rule(tenant=tenants, wanted=st.lists(numbers, max_size=8))
    def find(self, tenant: bytes, wanted: list[int]) -> None:
        keys = [a_key(tenant, number) for number in wanted]
        slots = self.arena.find(keys).tolist()
        hits = [(key, slot) for key, slot in zip(keys, slots, strict=True) if slot != MISSING]
        found = [slot for _, slot in hits]
        expected = [self.put[key] for key, _ in hits]
        read = self.arena.read(np.array(found, np.int32))
        assert read.vectors[:, 0].tolist() == read.tokens == expected
        assert read.marked(FLAG_TRUNCATED) == [
            at for at, number in enumerate(expected) if number % 2
        ]
        assert read.device_ns == sum(number << 32 for number in expected)

    @rule(tenant=tenants, number=numbers)
    def remove(self, tenant: bytes, number: int) -> None:
        self.put.pop(key := a_key(tenant, number), None)
        self.arena.remove(key)
        assert held(self.arena, tenant, number) is None

    @rule(tenant=tenants)
    def remove_tenant(self, tenant: bytes) -> None:
        others = len(self.arena) - self.arena.held(tenant)
        self.put = {key: put for key, put in self.put.items() if not key.startswith(tenant)}
        self.arena.remove_tenant(tenant)
        assert len(self.arena) == others
        assert all(held(self.arena, tenant, number) is None for number in range(NUMBERS))

    @invariant()
    def holds_at_most_its_capacity_and_loses_nothing_without_need(self) -> None:
        assert len(self.arena) <= self.arena.capacity
        assert len(self.arena) == sum(self.arena.held(tenant) for tenant in (ANN, BOB, CID))
        if len(self.put) <= self.arena.capacity and self.arena.evictions == 0:
            assert len(self.arena) == len(self.put)


TestArenaBesideADict = ArenaBesideADict.TestCase
# Seconds: a test's time limit that ends an example half-way is told as a flaky strategy.
TestArenaBesideADict.settings = settings(max_examples=60, stateful_step_count=50)


def test_capacity_counts_vectors_and_overhead() -> None:
    assert Arena(nbytes=10 * SLOT_BYTES, dimensions=DIMENSIONS, tenants=[ANN]).capacity == 10
    assert Arena(nbytes=10 * SLOT_BYTES - 1, dimensions=DIMENSIONS, tenants=[ANN]).capacity == 9


def test_an_arena_without_memory_keeps_nothing() -> None:
    arena = Arena(nbytes=0, dimensions=DIMENSIONS, tenants=[ANN])

    arena.put(a_key(ANN, 1), an_entry(1), ANN)

    assert (len(arena), *arena.find([a_key(ANN, 1)])) == (0, MISSING)


def test_what_is_handed_out_is_a_copy() -> None:
    """A slot is overwritten while an answer made from it is still being sent."""
    arena = an_arena(1)
    arena.put(a_key(ANN, 1), an_entry(1), ANN)
    vectors = arena.read(arena.find([a_key(ANN, 1)])).vectors

    arena.put(a_key(ANN, 2), an_entry(2), ANN)

    assert vectors.tolist() == [[1.0] * DIMENSIONS]


def test_a_tenant_asking_for_much_does_not_push_out_one_that_is_under_its_share() -> None:
    arena = an_arena(100, ANN, BOB)
    for number in range(40):
        arena.put(a_key(BOB, number), an_entry(number), BOB)

    for number in range(1000):
        arena.put(a_key(ANN, number), an_entry(number), ANN)

    assert [held(arena, BOB, number) for number in range(40)] == list(range(40))
    assert len(arena) == 100
    assert arena.evictions == 1000 - 60


def test_a_tenant_that_wakes_gets_its_share_back() -> None:
    arena = an_arena(100, ANN, BOB)
    for number in range(100):
        arena.put(a_key(ANN, number), an_entry(number), ANN)

    for number in range(50):
        arena.put(a_key(BOB, number), an_entry(number), BOB)

    assert [held(arena, BOB, number) for number in range(50)] == list(range(50))
    assert sum(held(arena, ANN, number) is not None for number in range(100)) == 50


@given(
    ann=st.integers(0, 100),
    batches=st.lists(st.tuples(tenants, st.integers(1, 50)), max_size=6),
)
def test_batches_move_room_between_tenants_as_single_entries_do(
    ann: int, batches: list[tuple[bytes, int]]
) -> None:
    arenas = [an_arena(100, ANN, BOB, CID) for _ in range(2)]
    for arena in arenas:
        for number in range(100):
            owner = ANN if number < ann else BOB
            arena.put(a_key(owner, number), an_entry(number), owner)

    number = 1000
    for tenant, count in batches:
        keys = [a_key(tenant, number + more) for more in range(count)]
        number += count
        arenas[0].put_all(keys, some_entries(range(count)), tenant)
        for more, key in enumerate(keys):
            arenas[1].put(key, an_entry(more), tenant)

    together, alone = ([each.held(tag) for tag in (ANN, BOB, CID)] for each in arenas)
    assert together == alone
    assert arenas[0].evictions == arenas[1].evictions


def test_a_batch_is_kept_alike_one_by_one_and_together() -> None:
    """Which way is taken is a matter of speed only. Small arenas, so that most make room."""
    random = np.random.default_rng(5)
    for capacity in range(1, 49):
        arenas = [an_arena(capacity, ANN, BOB, CID) for _ in range(2)]
        last: dict[Key, int] = {}
        for count in range(0, 800, 40):
            tenant = (ANN, BOB, CID)[random.integers(3)]
            drawn = random.integers(0, 40, random.integers(1, 18)).tolist()
            keys = [a_key(tenant, number) for number in drawn]
            last.update(zip(keys, range(count, count + len(keys)), strict=True))
            asked = [a_key(tenant, number) for number in random.integers(0, 40, 9).tolist()]
            for arena, least in zip(arenas, (1, 100), strict=True):
                with patch("embedkeep.node.arena._BATCH", least):
                    arena.put_all(keys, some_entries(range(count, count + len(keys))), tenant)
                arena.find(asked)
                arena.remove(asked[0])

            together, alone = (arena.find([*last]) for arena in arenas)
            assert together.tolist() == alone.tolist()
            held = together != MISSING
            assert np.count_nonzero(held) == len(arenas[0]) == len(arenas[1])
            expected = [put for put, there in zip(last.values(), held, strict=True) if there]
            for arena in arenas:
                assert arena.read(together[held]).vectors[:, 0].tolist() == expected
        assert arenas[0].evictions == arenas[1].evictions


def test_a_key_that_stands_twice_in_a_batch_has_one_slot_and_is_forgotten_at_once() -> None:
    arena = an_arena(20)
    keys = [a_key(ANN, number) for number in (*range(9), 3)]

    arena.put_all(keys, some_entries(range(10)), ANN)

    assert (held(arena, ANN, 3), len(arena)) == (9, 9)
    arena.remove(a_key(ANN, 3))
    assert held(arena, ANN, 3) is None


def test_an_entry_that_is_asked_for_outlives_a_scan() -> None:
    arena = an_arena(20)
    arena.put(a_key(ANN, 0), an_entry(0), ANN)
    for _ in range(3):
        arena.find([a_key(ANN, 0)])

    for number in range(1, 100):
        arena.put(a_key(ANN, number), an_entry(number), ANN)

    assert held(arena, ANN, 0) == 0


def test_an_entrys_overhead_is_what_the_constant_says() -> None:
    """A node's memory limit is made from it: a larger overhead ends in an OOM kill.

    The arrays are all there is: whatever is stored, evicted and asked for, nothing is added.
    """
    entries = 5_000
    gc.collect()
    tracemalloc.start()
    try:
        arena = Arena(nbytes=entries * (4 + OVERHEAD_BYTES), dimensions=1, tenants=[ANN])
        for number in range(3 * entries):
            key = a_digested_key(number)
            arena.put(key, an_entry(number, dimensions=1), ANN)
            if number < entries:
                arena.find([key])
                arena.find([key])
        arena.remove_tenant(ANN)
        for number in range(2 * entries):
            arena.put(a_digested_key(number), an_entry(number, dimensions=1), ANN)
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(arena) == entries
    # A few objects beside the arrays, whatever their length.
    assert entries * (4 + OVERHEAD_BYTES) <= used <= entries * (4 + OVERHEAD_BYTES) + 16_384


def test_an_entry_takes_a_seventh_more_than_its_vector_at_most() -> None:
    """At 256 dimensions and more; what is promised leaves 200 bytes for smaller ones."""
    assert OVERHEAD_BYTES <= 0.15 * 4 * 256
    assert OVERHEAD_BYTES <= 200
