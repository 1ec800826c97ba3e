"""Which pod is replaced next."""

from hypothesis import given
from hypothesis import strategies as st

from embedkeep_operator.kubernetes.rollout import Member, next_step

MEMBERS = st.lists(
    st.builds(
        Member,
        name=st.uuids().map(str),
        shard=st.integers(0, 3),
        current=st.booleans(),
        ready=st.booleans(),
        primary=st.booleans(),
        leaving=st.booleans(),
    ),
    max_size=8,
)


def member(
    name: str, *, current: bool = False, ready: bool = True, primary: bool = False
) -> Member:
    return Member(name=name, shard=0, current=current, ready=ready, primary=primary)


@given(members=MEMBERS, wanted=st.integers(0, 8), settled=st.booleans())
def test_only_an_old_pod_is_replaced_and_only_while_the_others_are_well(
    members: list[Member], wanted: int, *, settled: bool
) -> None:
    replaced = next_step(members, wanted=wanted, settled=settled).replace

    if replaced is not None:
        (one,) = [each for each in members if each.name == replaced]
        assert not one.current
        assert len(members) >= wanted
        assert not any(each.leaving for each in members)
        assert not one.ready or (settled and all(each.ready for each in members))


@given(MEMBERS)
def test_nothing_goes_on_where_all_are_as_wanted(members: list[Member]) -> None:
    found = next_step(members, wanted=len(members), settled=True)

    assert (found.doing is None) == all(each.current for each in members)


def test_replicas_come_before_primaries() -> None:
    members = [member("a", primary=True), member("b")]

    assert next_step(members, wanted=2, settled=True).replace == "b"


def test_a_primary_comes_last() -> None:
    members = [member("a", primary=True), member("b", current=True)]

    assert next_step(members, wanted=2, settled=True).replace == "a"


def test_a_pod_that_does_not_work_is_replaced_whatever_else_is_so() -> None:
    members = [member("a", ready=False), member("b", current=True, ready=False)]

    assert next_step(members, wanted=2, settled=False).replace == "a"
