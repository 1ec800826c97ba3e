from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from embedkeep.errors import Overloaded
from embedkeep.node.admission import Admission, Stay, Urgency


def burst(
    admission: Admission, tenant: str, *, inputs: int = 1, urgency: Urgency = Urgency.DEMAND
) -> int:
    """Have *tenant* send until it is refused; how many inputs were let in."""
    before = admission.total
    while True:
        try:
            admission.enter(tenant, inputs, urgency)
        except Overloaded:
            return admission.total - before


def test_a_tenant_alone_gets_half() -> None:
    assert burst(Admission(100, what="inputs", stay=Stay()), "ann") == 50


@given(bound=st.integers(1, 500), sizes=st.lists(st.integers(1, 60), min_size=2, max_size=50))
def test_a_tenant_alone_gets_at_most_half_however_it_slices_its_requests(
    bound: int, sizes: Sequence[int]
) -> None:
    admission = Admission(bound, what="inputs", stay=Stay())
    for inputs in sizes:
        before = admission.total
        try:
            admission.enter("ann", inputs)
        except Overloaded:
            assert admission.total == before
        else:
            assert before == 0 or admission.total <= bound // 2


def test_two_tenants_get_a_third_each() -> None:
    admission = Admission(90, what="inputs", stay=Stay())
    shares = {"ann": 0, "bob": 0}
    for _ in range(90):
        for tenant in shares:
            try:
                admission.enter(tenant, 1)
            except Overloaded:
                continue
            shares[tenant] += 1

    assert shares == {"ann": 30, "bob": 30}


@given(
    bound=st.integers(64, 1000),
    order=st.lists(st.sampled_from(["ann", "bob", "cid", "dee"]), max_size=1200),
)
def test_a_newcomer_finds_room_while_others_burst(bound: int, order: Sequence[str]) -> None:
    admission = Admission(bound, what="inputs", stay=Stay())
    for tenant in order:
        try:
            admission.enter(tenant, 1)
        except Overloaded:
            continue

    admission.enter("new", 1)


def test_a_request_larger_than_the_share_is_answered_when_nothing_else_of_the_tenant_waits() -> (
    None
):
    admission = Admission(10, what="inputs", stay=Stay())
    admission.enter("bob", 1)

    admission.enter("ann", 9)

    assert admission.total == 10


def test_a_request_larger_than_the_bound_is_refused() -> None:
    with pytest.raises(Overloaded, match="11 more do not fit the bound of 10"):
        Admission(10, what="inputs", stay=Stay()).enter("ann", 11)


def test_a_refusal_says_how_much_waits_and_counts_nothing() -> None:
    admission = Admission(4, what="inputs", stay=Stay())
    admission.enter("ann", 1)
    admission.enter("bob", 2)

    with pytest.raises(Overloaded, match="3 inputs wait, 2 of them yours") as full:
        admission.enter("bob", 1)

    assert full.value.retry_after_s is not None
    assert admission.total == 3


class Counting(RuleBasedStateMachine):
    """Requests come and go in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.bound = 40
        self.admission = Admission(self.bound, what="inputs", stay=Stay())
        self.waiting: list[tuple[str, int]] = []

    @rule(tenant=st.sampled_from(["ann", "bob", "cid"]), inputs=st.integers(1, 45))
    def enter(self, tenant: str, inputs: int) -> None:
        mine = sum(count for name, count in self.waiting if name == tenant)
        free = self.bound - sum(count for _, count in self.waiting)
        fits = inputs <= free if mine == 0 else mine + inputs <= free - inputs
        try:
            self.admission.enter(tenant, inputs)
        except Overloaded:
            assert not fits
        else:
            assert fits
            self.waiting.append((tenant, inputs))

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.waiting:
            gone = data.draw(st.integers(0, len(self.waiting) - 1))
            self.admission.leave(*self.waiting.pop(gone))

    @invariant()
    def counts_what_waits_and_never_more_than_the_bound(self) -> None:
        assert self.admission.total == sum(count for _, count in self.waiting) <= self.bound


TestCounting = Counting.TestCase


def test_when_all_have_left_it_is_as_at_first() -> None:
    """A tenant that left must not be remembered: names would pile up."""
    admission = Admission(10, what="inputs", stay=Stay())
    admission.enter("ann", 3)
    admission.enter("ann", 2)

    admission.leave("ann", 3)
    admission.leave("ann", 2)

    assert (admission.total, admission._waiting) == (0, {})


@pytest.mark.parametrize(("urgency", "let_in"), [(Urgency.BULK, 37), (Urgency.BACKGROUND, 25)])
def test_less_urgent_work_stops_earlier(urgency: Urgency, let_in: int) -> None:
    """Half of three quarters, and half of a half."""
    assert burst(Admission(100, what="inputs", stay=Stay()), "ann", urgency=urgency) == let_in


def test_background_work_is_never_why_a_person_is_refused() -> None:
    admission = Admission(100, what="inputs", stay=Stay())
    for tenant in ("ann", "bob", "cid", "dee"):
        burst(admission, tenant, urgency=Urgency.BACKGROUND)

    assert burst(admission, "ann") >= 25


def test_who_is_refused_is_told_to_come_when_the_others_have_had_their_time() -> None:
    stay = Stay()
    admission = Admission(2, what="inputs", stay=stay)
    burst(admission, "ann")

    def told_s() -> float | None:
        with pytest.raises(Overloaded) as refused:
            admission.enter("ann", 2)
        return refused.value.retry_after_s

    assert told_s() == 0.5  # nothing was measured yet
    stay.seen(3.0)
    assert told_s() == 3.0
    stay.seen(0.0)
    assert told_s() == 3.0 * 7 / 8
    for _ in range(100):
        stay.seen(0.0)
    assert told_s() == 0.05
    for _ in range(100):
        stay.seen(1000.0)
    assert told_s() == 30.0


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_a_mean_stay_lies_between_the_shortest_and_the_longest(stays: Sequence[float]) -> None:
    stay = Stay()
    for each in stays:
        stay.seen(each)

    assert stay.mean_s is not None
    assert min(stays) <= stay.mean_s * (1 + 1e-9)
    assert stay.mean_s <= max(stays) * (1 + 1e-9)
