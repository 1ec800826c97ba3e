import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from embedkeep.keys import KEY_BYTES, Key, tenant_tag_of
from embedkeep.node.keytable import MISSING, KeyTable

ANN, BOB = b"ann.", b"bob."

WORDS = (0, 1, 2, 1 << 31, (1 << 32) - 2, (1 << 32) - 1)
"""Few, so that keys meet in the table; the last ones begin at its end, and go on at its start."""


def a_key(tenant: bytes, word: int, rest: int) -> Key:
    """A key with that first word of its digest."""
    digest = word.to_bytes(4, "little") + rest.to_bytes(KEY_BYTES - 12, "little")
    return Key(b"spac" + tenant + digest)


keys = st.builds(a_key, st.sampled_from([ANN, BOB]), st.sampled_from(WORDS), st.integers(0, 9))


class TableBesideADict(RuleBasedStateMachine):
    """Any order of calls: the same keys in the same slots as a dictionary says."""

    def __init__(self) -> None:
        super().__init__()
        self.table = KeyTable(0)
        self.model: dict[Key, int] = {}

    @initialize(capacity=st.sampled_from([0, 1, 3, 20, 60]))
    def start(self, capacity: int) -> None:
        self.table = KeyTable(capacity)

    @rule(key=keys)
    def add(self, key: Key) -> None:
        if key in self.model or len(self.model) == self.table.capacity:
            return
        slot = self.table.add(key)
        assert 0 <= slot < self.table.capacity
        assert slot not in self.model.values()
        self.model[key] = slot

    @rule(wanted=st.lists(keys, min_size=15, max_size=60, unique=True))
    def add_many(self, wanted: list[Key]) -> None:
        for key in wanted:
            self.add(key)

    @rule(key=keys)
    def remove(self, key: Key) -> None:
        assert self.table.remove(key) == self.model.pop(key, MISSING)

    @rule(tenant=st.sampled_from([ANN, BOB]))
    def remove_tenant(self, tenant: bytes) -> None:
        gone = {key: slot for key, slot in self.model.items() if tenant_tag_of(key) == tenant}
        assert sorted(self.table.remove_tenant(tenant).tolist()) == sorted(gone.values())
        for key in gone:
            del self.model[key]

    @rule(wanted=st.lists(keys, max_size=60))
    def find(self, wanted: list[Key]) -> None:
        expected = [self.model.get(key, MISSING) for key in wanted]
        assert self.table.find(wanted).tolist() == expected
        assert [self.table.get(key) for key in wanted] == expected

    @rule(wanted=st.lists(keys, min_size=30, max_size=60))
    def find_many(self, wanted: list[Key]) -> None:
        self.find(wanted)  # together, not one by one

    @invariant()
    def holds_the_same(self) -> None:
        assert len(self.table) == len(self.model)
        assert all(self.table.key(slot) == key for key, slot in self.model.items())


TestTableBesideADict = TableBesideADict.TestCase
TestTableBesideADict.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


COLLIDING = (
    a_key(ANN, 7, 1),
    a_key(ANN, 7, 2),
    a_key(BOB, 7, 1),
    Key(b"elsw" + a_key(ANN, 7, 1)[4:]),
)
"""Of one word, so of one place in the table: apart in the rest of the digest, the tenant, the
model's space."""


@pytest.mark.parametrize("held", range(len(COLLIDING)))
@pytest.mark.parametrize("beside", [0, 40], ids=["one by one", "together"])
def test_keys_that_collide_in_the_table_are_told_apart_by_all_of_their_bytes(
    held: int, beside: int
) -> None:
    table = KeyTable(100)
    others = [a_key(BOB, 1 << 31 | number, number) for number in range(beside)]
    slot = table.add(COLLIDING[held])

    found = table.find([*COLLIDING, *others])

    assert found.tolist() == [
        *(slot if at == held else MISSING for at in range(len(COLLIDING))),
        *[MISSING] * beside,
    ]


def test_keys_that_collide_lie_beside_each_other_and_one_goes_alone() -> None:
    table = KeyTable(100)
    slots = [table.add(key) for key in COLLIDING]

    assert table.remove(COLLIDING[1]) == slots[1]

    slots[1] = MISSING
    assert [table.get(key) for key in COLLIDING] == slots
    assert table.find([*COLLIDING] * 10).tolist() == slots * 10


@pytest.mark.parametrize("count", [1, 500])
def test_one_and_many_are_found_alike_where_keys_are_as_they_come(count: int) -> None:
    """Uniform digests, a table half full: most keys lie in the first cells, some further on."""
    rows = np.random.default_rng(1).bytes(2000 * KEY_BYTES)
    made = [Key(rows[at : at + KEY_BYTES]) for at in range(0, len(rows), KEY_BYTES)]
    table = KeyTable(1000)
    for key in made[:1000]:
        table.add(key)

    found = np.concatenate(
        [table.find(made[start : start + count]) for start in range(0, 2000, count)]
    )

    assert found.tolist() == [*range(1000), *[MISSING] * 1000]


def test_a_tenants_keys_leave_a_full_table_and_the_others_stay() -> None:
    rows = np.random.default_rng(2).bytes(1000 * (KEY_BYTES - 8))
    made = [
        Key(b"spac" + (ANN, BOB)[n % 2] + rows[n * 16 : (n + 1) * 16]) for n in range(1000)
    ]  # fmt: skip
    table = KeyTable(1000)
    for key in made:
        table.add(key)

    table.remove_tenant(ANN)

    assert table.find(made).tolist() == [n if n % 2 else MISSING for n in range(1000)]
    again = [table.add(key) for key in made[::2]]
    assert sorted(again) == list(range(0, 1000, 2))
