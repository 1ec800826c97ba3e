"""How long a newcomer is told that it would wait, beside how long it does."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep.config import Batching
from embedkeep.embedder.lanes import Lane, Lanes, Queued
from embedkeep.embedder.schedule import CostModel, Item, Newcomer, Schedule
from embedkeep.embedder.waiting import Ahead, Backlog, BatchCost, Speed, ahead_of
from embedkeep.errors import Overloaded

FIXED_S, TOKEN_S = 0.003, 0.0001
FLOWS = (b"a", b"b", b"c")
NEWCOMER = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Came:
    """An input that came, and how many batches were taken just before."""

    lane: Lane
    flow: bytes
    tokens: int
    takes: int


came = st.builds(
    Came,
    lane=st.sampled_from(Lane),
    flow=st.sampled_from(FLOWS),
    tokens=st.integers(1, 2000),
    takes=st.integers(0, 2),
)


def a_cost(*, measured: bool = True) -> CostModel:
    cost = CostModel(fixed_s=FIXED_S, token_s=TOKEN_S)
    if measured:
        cost.observe(100, FIXED_S + 100 * TOKEN_S)
    return cost


class Device:
    """A schedule, and a device that does what it says in the time that it is expected to take."""

    def __init__(self, *, measured: bool = True, **limits: int) -> None:
        self.schedule: Schedule[int] = Schedule(
            Batching.model_validate({"max_batch_inputs": 16, **limits}), a_cost(measured=measured)
        )
        self.now_s = 0.0
        self.free_s = 0.0

    def put(
        self, *, lane: Lane, flow: bytes, tokens: int, payload: int = 0, inputs: int = 1
    ) -> None:
        self.schedule.reserve(Newcomer(inputs=inputs, lane=lane), now_s=self.now_s)
        self.schedule.offer(
            [
                Item(payload=payload, tokens=tokens, lane=lane, flow=flow, arrived_s=self.now_s)
                for _ in range(inputs)
            ]
        )

    def take(self) -> list[int]:
        """The next batch, once the device is free."""
        self.now_s = max(self.now_s, self.free_s)
        rows = self.schedule.take(self.now_s)
        if rows:
            self.free_s = self.now_s + FIXED_S + TOKEN_S * sum(row.tokens for row in rows)
        return [row.payer.payload for row in rows]

    def after(self, given: Sequence[Came]) -> "Device":
        for each in given:
            for _ in range(each.takes):
                self.take()
            self.put(lane=each.lane, flow=each.flow, tokens=each.tokens)
        return self

    def waited_s(self, lane: Lane, flow: bytes) -> float:
        """How long one who comes now waits until its batch has ended, its own time left out."""
        came_s = self.now_s
        self.put(lane=lane, flow=flow, tokens=1, payload=NEWCOMER)
        while NEWCOMER not in self.take():
            pass
        return self.free_s - came_s

    def refuses(self, lane: Lane, flow: bytes, *, patience_s: float) -> bool:
        try:
            self.schedule.reserve(
                Newcomer(inputs=1, lane=lane, flow=flow, patience_s=patience_s), now_s=self.now_s
            )
        except Overloaded:
            return True
        return False


@given(st.lists(came, max_size=40), st.sampled_from(Lane), st.sampled_from([*FLOWS, b"new"]))
def test_nobody_is_refused_who_has_nothing_waiting_and_would_be_answered_in_time(
    given: list[Came], lane: Lane, flow: bytes
) -> None:
    given = [each for each in given if (each.lane, each.flow) != (lane, flow)]
    patience_s = Device().after(given).waited_s(lane, flow) + 1e-9

    assert not Device().after(given).refuses(lane, flow, patience_s=patience_s)


@given(st.integers(1, 60), st.integers(1, 10), st.sampled_from(Lane))
def test_who_would_wait_longer_behind_his_own_is_refused(
    entries: int, tokens: int, lane: Lane
) -> None:
    """Sixteen such are a batch. His own may begin one."""
    given = [Came(lane=lane, flow=b"a", tokens=tokens, takes=0)] * entries
    waited_s = Device().after(given).waited_s(lane, b"a")
    too_short_s = waited_s - FIXED_S - TOKEN_S - 1e-9

    assert Device().after(given).refuses(lane, b"a", patience_s=too_short_s)


@given(st.lists(came, max_size=40), st.sampled_from(Lane))
def test_nobody_is_refused_by_a_guess(given: list[Came], lane: Lane) -> None:
    device = Device(measured=False).after(given)

    assert not device.refuses(lane, b"a", patience_s=0.0)


def test_one_tenants_backlog_is_not_why_another_is_refused() -> None:
    device = Device()
    device.put(lane=Lane.DEMAND, flow=b"flood", tokens=100, inputs=1000)
    device.take()

    assert device.refuses(Lane.DEMAND, b"flood", patience_s=1.0)
    assert not device.refuses(Lane.DEMAND, b"seldom", patience_s=1.0)


def test_background_work_is_not_why_a_person_is_refused_but_people_are_why_it_is() -> None:
    device = Device()
    device.put(lane=Lane.BULK, flow=b"a", tokens=100, inputs=1000)

    assert not device.refuses(Lane.DEMAND, b"a", patience_s=0.001)

    device = Device()
    device.put(lane=Lane.DEMAND, flow=b"a", tokens=100, inputs=1000)
    assert device.refuses(Lane.BULK, b"b", patience_s=1.0)


def test_the_batch_under_way_counts_until_it_should_have_ended_and_not_beyond() -> None:
    device = Device()
    device.put(lane=Lane.BULK, flow=b"a", tokens=9970)  # takes a second
    device.take()

    assert device.refuses(Lane.DEMAND, b"b", patience_s=0.9)
    device.now_s = 0.5
    assert not device.refuses(Lane.DEMAND, b"b", patience_s=0.6)
    device.now_s = 7.0  # it hangs, and nobody knows for how long
    assert not device.refuses(Lane.DEMAND, b"b", patience_s=0.0)


def test_an_idle_device_refuses_nobody_even_where_its_last_batch_was_quicker_than_usual() -> None:
    device = Device()
    device.put(lane=Lane.DEMAND, flow=b"a", tokens=9970)
    device.take()

    assert device.schedule.take(0.1) == []
    device.now_s = 0.1
    assert not device.refuses(Lane.DEMAND, b"a", patience_s=0.0)


@pytest.mark.parametrize(
    ("tokens", "measured", "expected_s"),
    [
        (1_000, True, 10 * (FIXED_S + 1_000 * TOKEN_S)),
        (1, True, 0.05),
        (100_000, True, 30.0),
        (1_000, False, 0.5),
    ],
)
def test_a_refusal_says_how_long_one_would_have_waited_within_bounds(
    tokens: int,
    measured: bool,  # noqa: FBT001  # a parameter of the test
    expected_s: float,
) -> None:
    device = Device(measured=measured, max_queue_inputs=10)
    device.put(lane=Lane.DEMAND, flow=b"a", tokens=tokens, inputs=10)

    with pytest.raises(Overloaded, match="inputs wait") as full:
        device.schedule.reserve(Newcomer(inputs=1, lane=Lane.DEMAND, flow=b"a"), now_s=0.0)

    assert full.value.retry_after_s == pytest.approx(expected_s)


def test_who_is_refused_for_his_time_hears_how_long_it_takes() -> None:
    device = Device()
    device.put(lane=Lane.DEMAND, flow=b"a", tokens=1000, inputs=20)

    with pytest.raises(Overloaded, match="the caller has") as late:
        device.schedule.reserve(
            Newcomer(inputs=1, lane=Lane.DEMAND, flow=b"a", patience_s=0.25), now_s=0.0
        )

    assert late.value.retry_after_s == pytest.approx(20 * 1000 * TOKEN_S + 20 * FIXED_S)
    assert device.schedule.held == 20


@given(
    st.lists(st.tuples(st.sampled_from(FLOWS), st.integers(1, 50)), max_size=40),
    st.integers(0, 30),
    st.sampled_from([*FLOWS, b"new"]),
)
def test_what_is_ahead_is_what_goes_first_up_to_an_entry_of_each_other_flow(
    given: list[tuple[bytes, int]], served: int, flow: bytes
) -> None:
    lanes: Lanes[int] = Lanes(max_wait_s=1.0)

    def add(flow: bytes, size: int, payload: int) -> None:
        lanes.add(Queued(payload=payload, size=size, lane=Lane.DEMAND, flow=flow, arrived_s=0.0))

    for each, size in given:
        add(each, size, 0)
    for _ in range(served):
        lanes.take(Lane.DEMAND, most_size=1, most=1)

    told = lanes.ahead_of(Lane.DEMAND, flow)

    add(flow, 1, NEWCOMER)
    first: list[Queued[int]] = []
    while (entry := lanes.take(Lane.DEMAND, most_size=1, most=1)[0]).payload != NEWCOMER:
        first.append(entry)
    others = {entry.flow for entry in first} - {flow}
    size = sum(entry.size for entry in first)
    assert size - 50 * len(others) <= told.size <= size
    assert told.entries <= len(first)


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=60),
    st.integers(1, 400),
    st.integers(1, 20),
)
def test_batches_never_take_less_than_was_told(
    sizes: list[int], batch_size: int, batch_entries: int
) -> None:
    cost = BatchCost(fixed_s=1.0, unit_s=0.001)
    took_s, left = 0.0, list(sizes)
    while left:
        batch = [left.pop()]
        while left and len(batch) < batch_entries and sum(batch) + left[-1] <= batch_size:
            batch.append(left.pop())
        took_s += 1.0 + 0.001 * sum(batch)

    told_s = cost.seconds(
        Ahead(size=sum(sizes), entries=len(sizes)),
        batch_size=max(batch_size, *sizes),
        batch_entries=batch_entries,
    )

    assert told_s <= took_s + 1e-9


def test_of_another_flow_only_what_has_an_earlier_start_is_ahead() -> None:
    mine = Backlog(start=100, size=50, entries=1)
    others = [
        Backlog(start=140, size=1000, entries=100),
        Backlog(start=60, size=30, entries=3),
        Backlog(start=151, size=10, entries=1),
    ]

    assert ahead_of(mine, others) == Ahead(size=50 + 10 + 30, entries=1 + 1 + 3)


def test_a_flow_that_shares_the_device_is_known_to_wait_for_what_comes_to_others_later() -> None:
    """As much of it waits, and of the other, who goes first, never more than one text."""
    refused: list[bool] = []
    for others in (0, 1):
        device, left = Device(), 200
        device.put(lane=Lane.DEMAND, flow=b"flood", tokens=50, inputs=left, payload=1)
        while left > 140:
            for _ in range(others):
                device.put(lane=Lane.DEMAND, flow=b"other", tokens=50)
            left -= sum(device.take())
        refused.append(device.refuses(Lane.DEMAND, b"flood", patience_s=1.2))
        assert not device.refuses(Lane.DEMAND, b"other", patience_s=0.1)

    assert refused == [False, True]


@given(st.floats(1e-6, 1.0), st.floats(1e-6, 1.0), st.integers(1, 1000), st.integers(1, 50))
def test_speed_follows_what_was_seen_and_stays_between(
    first_s: float, second_s: float, size: int, entries: int
) -> None:
    speed = Speed.after(None, took_s=first_s, size=size)
    later = Speed.after(speed, took_s=second_s, size=size)
    waiting = Ahead(size=size * entries, entries=entries)

    assert speed.seconds(waiting, more=0) == pytest.approx(first_s * entries)
    low, high = sorted([speed.unit_s, second_s / size])
    assert low * (1 - 1e-9) <= later.unit_s <= high * (1 + 1e-9)
    assert later.seconds(waiting, more=1) >= later.seconds(waiting, more=0)
    assert later.seconds(Ahead(size=0, entries=0), more=1) == 0.0
