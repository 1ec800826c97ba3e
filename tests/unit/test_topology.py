"""Forming a Valkey Cluster: whatever state it is in, the steps lead to a whole one."""

import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkeep_operator import slots
from embedkeep_operator.cluster import (
    Assign,
    Clear,
    Endpoint,
    Forget,
    Meet,
    Peer,
    SetEpoch,
    TakeOver,
    Unbind,
    View,
    Wanted,
)
from embedkeep_operator.topology import Plan, Reason, evened, plan
from support.valkey_bus import BLOCKS, Bus, Valkey

TROUBLED = 12
"""Looks during which half of all pings are lost, and whoever takes the steps is often killed."""
CALM = 20
"""Looks after them, within which every state must be whole."""


def place(number: int) -> Endpoint:
    return Endpoint(host="127.0.0.1", port=7000 + number, bus_port=17000 + number)


def name(number: int) -> str:
    return f"valkey-{number}"


@dataclass(frozen=True)
class Case:
    """A state, and what happens while it is mended."""

    bus: Bus
    wanted: Mapping[str, Wanted]
    seed: int
    replaced_at: Mapping[int, str]
    """Look at which one comes back empty, with a new id, by its name."""
    reset_at: Mapping[int, str]
    """Look at which one comes back empty, with its old id, and knows nobody."""
    restarted_at: Mapping[int, str]
    """Look at which one comes back empty, and knows who it was."""


@st.composite
def states(draw: st.DrawFn) -> Case:
    """Any state: who knows whom and where, whose slots and whose replica each is, dead ids.

    But of the Valkeys of a shard one at most has slots.
    """
    count = draw(st.integers(1, 4))
    shards = [number % draw(st.integers(1, count)) for number in range(count)]
    holders = {shard: shards.index(shard) for shard in shards}
    gone = [f"gone-{number}" for number in range(draw(st.integers(0, 2)))]
    ids = [f"id-{draw(st.integers(0, 999)):03}-{number}" for number in range(count)]
    valkeys = {}
    for number, own_id in enumerate(ids):
        known = draw(st.sets(st.sampled_from([*ids, *gone]))) | {own_id}
        table = {
            peer_id: Peer(
                endpoint=place(number if peer_id == own_id else draw(_whereabouts(ids, peer_id))),
                epoch=draw(st.integers(0, 4)),
                well=draw(st.booleans()),
            )
            for peer_id in sorted(known)
        }
        follows = draw(st.sampled_from([None, None, *sorted(known - {own_id})]))
        table[own_id] = replace(table[own_id], primary=follows)
        owners = [None, *sorted(known - {own_id})]
        if follows is None and holders[shards[number]] == number:
            owners.append(own_id)
        for block in BLOCKS:
            owner = draw(st.sampled_from(owners))
            if owner is not None:
                table[owner] = replace(table[owner], slots=table[owner].slots | block)
        valkeys[name(number)] = Valkey(
            id=own_id,
            endpoint=place(number),
            table=table,
            data=draw(st.sampled_from([frozenset(), frozenset({own_id})])),
            admits=draw(st.booleans()),
        )
    accidents = st.dictionaries(
        st.integers(0, TROUBLED - 1), st.sampled_from([*valkeys]), max_size=2
    )
    return Case(
        bus=Bus(valkeys),
        wanted={
            name(number): Wanted(shard=shards[number], endpoint=place(number))
            for number in range(count)
        },
        seed=draw(st.integers(0, 2**16)),
        replaced_at=draw(accidents),
        reset_at=draw(accidents),
        restarted_at=draw(accidents),
    )


def _whereabouts(ids: list[str], peer_id: str) -> st.SearchStrategy[int]:
    """Mostly where it is, or at another's place, or nowhere."""
    right = ids.index(peer_id) if peer_id in ids else 90
    return st.sampled_from([right, right, *range(len(ids)), 91])


def formed(case: Case) -> Plan:
    """Look, plan and act until it is settled, with accidents on the way."""
    chance = random.Random(case.seed)
    todo = Plan(reason=Reason.MISSING)
    for look in range(TROUBLED + CALM):
        lost = 0.5 if look < TROUBLED else 0
        _accident(case, look)
        seen = {each: valkey.view() for each, valkey in case.bus.valkeys.items()}
        todo = plan(case.wanted, seen)
        if todo.reason is Reason.SETTLED and look > TROUBLED:
            return todo
        before = case.bus.claims()
        _take(case.bus, todo, before, lambda: chance.random() < lost)  # noqa: B023  # called now
        for each in case.bus.valkeys:
            if chance.random() < lost / 4:
                case.bus.elect(each)
        for each, claimed in before.items():
            assert case.bus.claims()[each] & claimed == claimed, "taken from a live primary"
        pairs = [*itertools.permutations(case.bus.valkeys, 2)]
        chance.shuffle(pairs)
        case.bus.gossip(pair for pair in pairs if chance.random() >= lost)
    raise AssertionError(f"not whole in the end: {todo}")


def _take(bus: Bus, todo: Plan, before: Mapping[str, int], is_killed: Callable[[], bool]) -> None:
    given_out = 0
    for step in todo.steps:
        if isinstance(step, Assign):
            assert not step.slots & given_out, "given to two"
            assert not any(step.slots & claimed for claimed in before.values()), "owned already"
            given_out |= step.slots
        if isinstance(step, Unbind):
            assert not step.slots & before[step.at], "its own"
        if isinstance(step, Clear):
            assert not before[step.at], "of slots of its own"
        if isinstance(step, TakeOver):
            _may_be_taken_over(bus, step.at)
        if is_killed():  # and with it the rest of its steps
            return
        bus.take(step)


def _may_be_taken_over(bus: Bus, replica: str) -> None:
    lost = bus.valkeys[replica].own.primary
    for valkey in bus.valkeys.values():
        if valkey.id == lost:
            assert len(valkey.data) < len(bus.valkeys[replica].data), "taken from a live primary"
            assert not valkey.admits


def _accident(case: Case, look: int) -> None:
    bus = case.bus
    if (struck := case.replaced_at.get(look)) is not None:
        old = bus.valkeys[struck]
        bus.valkeys[struck] = Valkey(id=f"new-{look}", endpoint=old.endpoint)
    if (struck := case.reset_at.get(look)) is not None:
        old = bus.valkeys[struck]
        bus.valkeys[struck] = Valkey(id=old.id, endpoint=old.endpoint)
    if (struck := case.restarted_at.get(look)) is not None:
        bus.valkeys[struck] = bus.valkeys[struck].restarted()


@settings(max_examples=120, deadline=None)
@given(states())
def test_every_state_becomes_one_whole_cluster(case: Case) -> None:
    settled = formed(case)

    assert settled == Plan(reason=Reason.SETTLED)
    claims = case.bus.claims().values()
    assert sum(claims) == slots.ALL, "each slot has exactly one owner"
    by_shard: dict[int, list[Valkey]] = {}
    for each, valkey in case.bus.valkeys.items():
        by_shard.setdefault(case.wanted[each].shard, []).append(valkey)
    for of_one in by_shard.values():
        (primary,) = (valkey for valkey in of_one if valkey.own.primary is None)
        assert {valkey.own.primary for valkey in of_one} <= {None, primary.id}
        assert {valkey.data for valkey in of_one} == {primary.data}, "all hold the same"
    living = {valkey.id for valkey in case.bus.valkeys.values()}
    for valkey in case.bus.valkeys.values():
        assert {*valkey.table} == living, "the dead are forgotten, the living known"
        for other in case.bus.valkeys.values():
            believed = valkey.table[other.id]
            assert (believed.slots, believed.endpoint) == (other.own.slots, other.endpoint)


@settings(max_examples=100, deadline=None)
@given(states(), st.data())
def test_while_one_does_not_answer_nothing_is_forgotten_or_given_away(
    case: Case, data: st.DataObject
) -> None:
    silent = data.draw(st.sets(st.sampled_from([*case.wanted]), min_size=1))
    seen = {
        each: valkey.view() for each, valkey in case.bus.valkeys.items() if each not in silent
    }  # fmt: skip

    todo = plan(case.wanted, seen)

    assert todo.reason is Reason.MISSING
    assert not [step for step in todo.steps if isinstance(step, Forget | Assign | Unbind)]


def test_three_new_ones_get_epochs_of_their_own_meet_and_share_evenly() -> None:
    bus = Bus({name(number): Valkey(f"id-{number}", place(number)) for number in range(3)})
    wanted = wanted_of(bus)

    first = look(bus, wanted)
    assert first.steps == (
        SetEpoch(at="valkey-0", epoch=1),
        SetEpoch(at="valkey-1", epoch=2),
        SetEpoch(at="valkey-2", epoch=3),
        Meet(at="valkey-0", whom=place(1)),
        Meet(at="valkey-0", whom=place(2)),
        Meet(at="valkey-1", whom=place(2)),
    )
    take_all(bus, first)

    second = look(bus, wanted)
    assert second.steps == tuple(
        Assign(at=at, slots=slots.from_ranges([held]))
        for at, held in (
            ("valkey-0", (0, 5461)),
            ("valkey-1", (5462, 10922)),
            ("valkey-2", (10923, 16383)),
        )
    )
    take_all(bus, second)
    assert look(bus, wanted) == Plan(reason=Reason.SPREADING)
    bus.gossip(itertools.permutations(wanted, 2))
    assert look(bus, wanted) == Plan(reason=Reason.SETTLED)


def test_one_that_comes_back_empty_under_another_id_takes_the_slots_of_its_old_one() -> None:
    bus, wanted = whole(3)
    lost = bus.valkeys["valkey-1"].own.slots
    bus.valkeys["valkey-1"] = Valkey("id-new", place(1))

    assert look(bus, wanted).steps == (
        SetEpoch(at="valkey-1", epoch=4),
        Meet(at="valkey-0", whom=place(1)),
        Meet(at="valkey-1", whom=place(2)),
    )
    take_all(bus, look(bus, wanted))
    assert look(bus, wanted) == Plan(
        reason=Reason.FORGETTING,
        steps=(Forget(at="valkey-0", id="id-1"), Forget(at="valkey-2", id="id-1")),
    )
    take_all(bus, look(bus, wanted))
    assert look(bus, wanted) == Plan(
        reason=Reason.ASSIGNING, steps=(Assign(at="valkey-1", slots=lost),)
    )


def test_an_address_that_changed_is_set_right_before_anybody_is_forgotten() -> None:
    bus, wanted = whole(2)
    bus.valkeys["valkey-1"].endpoint = place(8)
    bus.valkeys["valkey-1"].change("id-1", endpoint=place(8))
    bus.valkeys["valkey-0"].table["gone"] = Peer(endpoint=place(9), epoch=9, well=False)
    wanted = wanted_of(bus)

    assert look(bus, wanted) == Plan(
        reason=Reason.MEETING, steps=(Meet(at="valkey-0", whom=place(8)),)
    )


def test_a_stranger_that_is_well_keeps_its_slots_and_is_not_forgotten() -> None:
    bus, wanted = whole(2)
    third = Peer(endpoint=place(5), epoch=9, slots=slots.from_ranges([(0, 99)]))
    for valkey in bus.valkeys.values():
        for peer_id, peer in valkey.table.items():
            valkey.change(peer_id, slots=peer.slots & ~third.slots)
        valkey.table["stranger"] = third

    assert look(bus, wanted) == Plan(reason=Reason.STRANGERS)


def test_a_slot_that_moves_while_they_are_asked_is_given_to_no_third() -> None:
    """One that was asked before says it has not got it yet, another, asked after, that it has."""
    bus, wanted = whole(3)
    moving = slots.from_ranges([(0, 9)])
    before = bus.valkeys["valkey-1"].view()
    bus.valkeys["valkey-1"].bind(moving, "id-1")
    for each in ("valkey-0", "valkey-2"):
        bus.valkeys[each].bind(moving, "id-1")
    seen = {each: valkey.view() for each, valkey in bus.valkeys.items()} | {"valkey-1": before}

    todo = plan(wanted, seen)

    assert {step.at for step in todo.steps} == {"valkey-1"}, "which has it, and refuses"


def test_a_handshake_under_way_is_nobody_to_be_forgotten() -> None:
    bus, wanted = whole(2)
    bus.valkeys["valkey-0"].table["passing"] = Peer(endpoint=place(1), epoch=0, met=False)

    assert look(bus, wanted) == Plan(reason=Reason.SETTLED)


@pytest.mark.parametrize(
    ("claims", "epochs"),
    [((slots.ALL, 1), (1, 2)), ((slots.ALL ^ 1, 1), (3, 3))],
    ids=["two claim a slot", "two have an epoch"],
)
def test_what_valkeys_settle_themselves_is_waited_for(
    claims: tuple[int, int], epochs: tuple[int, int]
) -> None:
    wanted = {name(number): Wanted(shard=number, endpoint=place(number)) for number in range(2)}
    peers = {
        f"id-{number}": Peer(endpoint=place(number), epoch=epochs[number], slots=claims[number])
        for number in range(2)
    }
    seen = {name(number): View(id=f"id-{number}", peers=peers) for number in range(2)}

    assert plan(wanted, seen) == Plan(reason=Reason.SPREADING)


def test_a_cluster_that_refuses_writes_is_not_settled() -> None:
    bus, wanted = whole(2)
    seen = {each: valkey.view() for each, valkey in bus.valkeys.items()}
    seen["valkey-1"] = replace(seen["valkey-1"], takes_writes=False)

    assert plan(wanted, seen) == Plan(reason=Reason.OPENING)


class Fate(Enum):
    """What becomes of a Valkey that is killed."""

    SAME = "comes back as who it was"
    NEW_ID = "comes back under another id at its address"
    NEW_PLACE = "comes back under another id at another address"


def strike(bus: Bus, wanted: dict[str, Wanted], struck: str, fate: Fate) -> None:
    old = bus.valkeys[struck]
    match fate:
        case Fate.SAME:
            bus.valkeys[struck] = old.restarted()
        case Fate.NEW_ID:
            bus.valkeys[struck] = Valkey(f"new-{old.id}", old.endpoint)
        case Fate.NEW_PLACE:
            moved = place(old.endpoint.port - 7000 + 50)
            bus.valkeys[struck] = Valkey(f"new-{old.id}", moved)
            wanted[struck] = replace(wanted[struck], endpoint=moved)


@settings(max_examples=120, deadline=None)
@given(
    count=st.integers(1, 3),
    replicas=st.integers(1, 2),
    fates=st.lists(st.sampled_from(Fate), min_size=3, max_size=3),
    struck=st.lists(st.integers(0, 2), min_size=3, max_size=3),
    seed=st.integers(0, 2**16),
)
def test_what_one_valkey_of_a_shard_holds_outlives_the_death_of_another(
    count: int, replicas: int, fates: list[Fate], struck: list[int], seed: int
) -> None:
    """One of each shard dies at the same time, primary or replica, and comes back in any way."""
    bus, wanted = whole(count, replicas=replicas)
    held = stored(bus, wanted)
    chance = random.Random(seed)
    for shard in range(count):
        each = name(shard * (1 + replicas) + struck[shard] % (1 + replicas))
        strike(bus, wanted, each, fates[shard])

    for _ in range(CALM):
        pairs = [pair for pair in itertools.permutations(wanted, 2) if chance.random() < 0.7]
        chance.shuffle(pairs)
        bus.gossip(pairs)
        if chance.random() < 0.3:
            bus.elect(name(chance.randrange(len(wanted))))
        todo = look(bus, wanted)
        take_all(bus, todo)
    settle(bus, wanted)

    for each, valkey in bus.valkeys.items():
        assert valkey.data == held[wanted[each].shard]


def test_two_shards_with_replicas_are_formed_with_a_primary_each() -> None:
    bus, _ = whole(2, replicas=1)

    assert [each.own.primary for each in bus.valkeys.values()] == [None, "id-0", None, "id-2"]
    assert [each.own.slots.bit_count() for each in bus.valkeys.values()] == [8192, 0, 8192, 0]
    assert all(each.admits for each in bus.valkeys.values()), "whoever may have to take over"


def test_a_primary_that_came_back_becomes_a_replica_of_the_one_that_took_over() -> None:
    bus, wanted = whole(1, replicas=1)
    stored(bus, wanted)
    strike(bus, wanted, "valkey-0", Fate.NEW_PLACE)
    bus.gossip([])

    first = look(bus, wanted)
    assert TakeOver(at="valkey-1") in first.steps, "nobody else could vote"
    take_all(bus, first)
    settle(bus, wanted)

    assert bus.valkeys["valkey-0"].own.primary == "id-1"
    assert {*bus.valkeys["valkey-1"].table} == {"id-1", "new-id-0"}


def test_an_empty_primary_gives_no_copies_to_a_replica_that_holds_more() -> None:
    """It is the same one at the same address: nobody has missed it."""
    bus, wanted = whole(1, replicas=1)
    held = stored(bus, wanted)
    strike(bus, wanted, "valkey-0", Fate.SAME)
    bus.gossip(itertools.permutations(wanted, 2))

    assert look(bus, wanted) == Plan(reason=Reason.TAKING_OVER, steps=(TakeOver(at="valkey-1"),))
    take_all(bus, look(bus, wanted))
    settle(bus, wanted)
    assert {valkey.data for valkey in bus.valkeys.values()} == {held[0]}


def test_of_several_replicas_the_one_that_holds_most_takes_over() -> None:
    bus, wanted = whole(1, replicas=2)
    stored(bus, wanted)
    bus.valkeys["valkey-1"].data = frozenset()
    strike(bus, wanted, "valkey-0", Fate.NEW_PLACE)
    bus.gossip([])

    assert TakeOver(at="valkey-2") in look(bus, wanted).steps


@pytest.mark.parametrize(
    ("count", "replicas", "answers"),
    [(1, 1, False), (1, 2, True), (2, 1, True), (3, 1, False)],
    ids=["it may be us who are cut off", "most miss it", "no majority can vote", "others vote"],
)
def test_where_the_dead_may_be_alive_elsewhere_a_replica_takes_over_if_most_miss_it(
    count: int,
    replicas: int,
    answers: bool,  # noqa: FBT001 - pytest gives it by name
) -> None:
    bus, wanted = whole(count, replicas=replicas)
    del bus.valkeys["valkey-0"]
    bus.gossip([])

    todo = look(bus, wanted)

    assert todo.reason is Reason.MISSING
    assert [type(step) for step in todo.steps] == ([TakeOver] if answers else [])


def test_a_replica_whose_primary_is_well_takes_nothing_over() -> None:
    bus, wanted = whole(2, replicas=1)
    del bus.valkeys["valkey-0"]  # does not answer us, but others

    assert look(bus, wanted) == Plan(reason=Reason.MISSING)


def test_one_that_does_not_run_is_not_waited_for() -> None:
    """Of each shard one that does is enough."""
    bus, wanted = whole(2, replicas=1)
    del bus.valkeys["valkey-0"]
    wanted["valkey-0"] = replace(wanted["valkey-0"], endpoint=None)
    bus.gossip([])

    settle(bus, wanted)

    assert bus.valkeys["valkey-1"].own.slots.bit_count() == 8192


def test_nobody_is_forgotten_whose_replica_stands_for_it() -> None:
    bus, wanted = whole(2, replicas=1)
    strike(bus, wanted, "valkey-0", Fate.NEW_PLACE)
    bus.gossip([])
    seen = []
    while (todo := look(bus, wanted)).reason is not Reason.SETTLED:
        followed = {valkey.own.primary for valkey in bus.valkeys.values()}
        assert not [step for step in todo.steps if isinstance(step, Forget) and step.id in followed]
        seen.append(todo.reason)
        take_all(bus, todo)
        bus.gossip(itertools.permutations(bus.valkeys, 2))

    assert Reason.FORGETTING in seen


def test_a_shard_that_is_gone_gets_its_slots_back_empty() -> None:
    bus, wanted = whole(2, replicas=1)
    lost = bus.valkeys["valkey-0"].own.slots
    held = stored(bus, wanted)
    for each in ("valkey-0", "valkey-1"):
        strike(bus, wanted, each, Fate.NEW_PLACE)
    bus.gossip([])

    settle(bus, wanted)

    assert bus.valkeys["valkey-0"].own.slots == lost
    assert bus.valkeys["valkey-1"].own.primary == bus.valkeys["valkey-0"].id
    assert bus.valkeys["valkey-3"].data == held[1]


def test_a_copy_is_made_only_of_a_primary_all_of_whose_replicas_are_known() -> None:
    """One that does not answer now may hold what this one has lost."""
    bus, wanted = whole(1, replicas=1)
    strike(bus, wanted, "valkey-0", Fate.SAME)
    del bus.valkeys["valkey-1"]

    assert look(bus, wanted) == Plan(reason=Reason.MISSING)


def test_slots_of_two_primaries_of_one_shard_are_not_ours_to_move() -> None:
    bus, wanted = whole(2)
    wanted = {each: replace(one, shard=0) for each, one in wanted.items()}

    todo = look(bus, wanted)
    take_all(bus, todo)

    assert look(bus, wanted) == Plan(reason=Reason.SPLIT)


def test_one_alone_gets_all_slots() -> None:
    bus, _ = whole(1)

    assert bus.claims() == {"valkey-0": slots.ALL}


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(0, 200))
def test_more_is_shared_so_that_sums_are_as_even_as_they_can_be(
    counts: list[int], more: int
) -> None:
    quotas = evened(counts, more)

    assert sum(quotas) == more
    given_to = [count + quota for count, quota in zip(counts, quotas, strict=True) if quota]
    if given_to:
        sums = [count + quota for count, quota in zip(counts, quotas, strict=True)]
        assert max(given_to) - min(sums) <= 1


def wanted_of(bus: Bus, *, replicas: int = 0) -> dict[str, Wanted]:
    """Those that there are; with *replicas*, each so many together are a shard."""
    return {
        each: Wanted(shard=number // (1 + replicas), endpoint=valkey.endpoint)
        for number, (each, valkey) in enumerate(bus.valkeys.items())
    }


def whole(count: int, *, replicas: int = 0) -> tuple[Bus, dict[str, Wanted]]:
    """A settled cluster of so many shards."""
    total = count * (1 + replicas)
    bus = Bus({name(number): Valkey(f"id-{number}", place(number)) for number in range(total)})
    wanted = wanted_of(bus, replicas=replicas)
    settle(bus, wanted)
    return bus, wanted


def settle(bus: Bus, wanted: Mapping[str, Wanted]) -> None:
    for _ in range(CALM):
        if (todo := look(bus, wanted)).reason is Reason.SETTLED:
            return
        take_all(bus, todo)
        bus.gossip(itertools.permutations(bus.valkeys, 2))
    raise AssertionError("not settled in the end")


def stored(bus: Bus, wanted: Mapping[str, Wanted]) -> dict[int, frozenset[str]]:
    """Something in each Valkey, by shard."""
    for each, valkey in bus.valkeys.items():
        valkey.data = frozenset({f"of shard {wanted[each].shard}"})
    return {each.shard: bus.valkeys[name].data for name, each in wanted.items()}


def take_all(bus: Bus, todo: Plan) -> None:
    for step in todo.steps:
        bus.take(step)


def look(bus: Bus, wanted: Mapping[str, Wanted]) -> Plan:
    return plan(wanted, {each: valkey.view() for each, valkey in bus.valkeys.items()})
