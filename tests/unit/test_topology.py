"""Forming a Valkey Cluster: whatever state it is in, the steps lead to a whole one."""

import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkeep_operator import slots
from embedkeep_operator.topology import (
    Assign,
    Endpoint,
    Forget,
    Meet,
    Peer,
    Plan,
    Reason,
    SetEpoch,
    Unbind,
    View,
    evened,
    plan,
)
from support.valkey_bus import BLOCKS, Bus, Valkey

TROUBLED = 12
"""Looks during which half of all pings are lost, and whoever takes the steps is often killed."""
CALM = 12
"""Looks after them, within which every state must be whole."""


def place(number: int) -> Endpoint:
    return Endpoint(host="127.0.0.1", port=7000 + number, bus_port=17000 + number)


def name(number: int) -> str:
    return f"valkey-{number}"


@dataclass(frozen=True)
class Case:
    """A state, and what happens while it is mended."""

    bus: Bus
    wanted: Mapping[str, Endpoint]
    seed: int
    replaced_at: Mapping[int, str]
    """Look at which one comes back empty, with a new id, by its name."""
    reset_at: Mapping[int, str]
    """Look at which one comes back empty, with its old id."""


@st.composite
def states(draw: st.DrawFn) -> Case:
    """Any state: who knows whom and where, who believes what of whose slots, dead ids."""
    count = draw(st.integers(1, 4))
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
        for block in BLOCKS:
            owner = draw(st.sampled_from([None, *sorted(known)]))
            if owner is not None:
                table[owner] = replace(table[owner], slots=table[owner].slots | block)
        valkeys[name(number)] = Valkey(id=own_id, endpoint=place(number), table=table)
    accidents = st.dictionaries(
        st.integers(0, TROUBLED - 1), st.sampled_from([*valkeys]), max_size=2
    )
    return Case(
        bus=Bus(valkeys),
        wanted={name(number): place(number) for number in range(count)},
        seed=draw(st.integers(0, 2**16)),
        replaced_at=draw(accidents),
        reset_at=draw(accidents),
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
        if is_killed():  # and with it the rest of its steps
            return
        bus.take(step)


def _accident(case: Case, look: int) -> None:
    bus = case.bus
    if (struck := case.replaced_at.get(look)) is not None:
        old = bus.valkeys[struck]
        bus.valkeys[struck] = Valkey(id=f"new-{look}", endpoint=old.endpoint)
    if (struck := case.reset_at.get(look)) is not None:
        old = bus.valkeys[struck]
        bus.valkeys[struck] = Valkey(id=old.id, endpoint=old.endpoint)


@settings(max_examples=120, deadline=None)
@given(states())
def test_every_state_becomes_one_whole_cluster(case: Case) -> None:
    settled = formed(case)

    assert settled == Plan(reason=Reason.SETTLED)
    claims = case.bus.claims().values()
    assert sum(claims) == slots.ALL, "each slot has exactly one owner"
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
    assert all(isinstance(step, SetEpoch | Meet) for step in todo.steps)


def test_three_new_ones_get_epochs_of_their_own_meet_and_share_evenly() -> None:
    bus = Bus({name(number): Valkey(f"id-{number}", place(number)) for number in range(3)})
    wanted = {each: valkey.endpoint for each, valkey in bus.valkeys.items()}

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
    wanted = {**wanted, "valkey-1": place(8)}

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
    wanted = {name(number): place(number) for number in range(2)}
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


def whole(count: int) -> tuple[Bus, dict[str, Endpoint]]:
    """A settled cluster."""
    bus = Bus({name(number): Valkey(f"id-{number}", place(number)) for number in range(count)})
    wanted = {each: valkey.endpoint for each, valkey in bus.valkeys.items()}
    while (todo := look(bus, wanted)).reason is not Reason.SETTLED:
        take_all(bus, todo)
        bus.gossip(itertools.permutations(wanted, 2))
    return bus, wanted


def take_all(bus: Bus, todo: Plan) -> None:
    for step in todo.steps:
        bus.take(step)


def look(bus: Bus, wanted: Mapping[str, Endpoint]) -> Plan:
    return plan(wanted, {each: valkey.view() for each, valkey in bus.valkeys.items()})
