"""Order, fairness and bounds of the queue, by properties."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep.config import Batching
from embedkeep.embedder.lanes import LIFT_EVERY, Lane
from embedkeep.embedder.schedule import (
    CostModel,
    Item,
    Newcomer,
    Schedule,
    apportion,
)
from embedkeep.errors import Overloaded

FIXED_S, TOKEN_S = 0.003, 0.0001
LIMITS = Batching(max_batch_inputs=16, max_queue_inputs=100_000)


def a_schedule(limits: Batching = LIMITS) -> Schedule[int]:
    return Schedule(limits, CostModel(fixed_s=FIXED_S, token_s=TOKEN_S))


def an_item(
    payload: int = 0,
    *,
    tokens: int = 10,
    lane: Lane = Lane.DEMAND,
    flow: bytes = b"",
    at: float = 0.0,
) -> Item[int]:
    return Item(payload=payload, tokens=tokens, lane=lane, flow=flow, arrived_s=at)


def put(schedule: Schedule[int], *items: Item[int]) -> None:
    for item in items:
        schedule.reserve(Newcomer(inputs=1, lane=item.lane), now_s=0.0)
    schedule.offer(items)


def taken(schedule: Schedule[int], now: float = 0.0) -> list[Item[int]]:
    """The next batch, of items that share no row."""
    return [item for row in schedule.take(now) for item in row.waiters]


def all_batches(schedule: Schedule[int], *, now: float = 0.0) -> list[list[Item[int]]]:
    return list(iter(lambda: taken(schedule, now), []))


arrivals = st.lists(
    st.tuples(
        st.sampled_from(Lane),
        st.sampled_from([b"a", b"b", b"c"]),
        st.integers(1, 2000),  # tokens
        st.floats(0, 1),  # seconds before it comes
        st.integers(0, 3),  # batches taken before it comes
    ),
    max_size=60,
)


@given(arrivals)
def test_every_input_is_dispatched_once_in_batches_that_keep_to_the_target(
    given: list[tuple[Lane, bytes, int, float, int]],
) -> None:
    schedule, now, batches = a_schedule(), 0.0, []
    for number, (lane, flow, tokens, pause_s, takes) in enumerate(given):
        batches += [taken(schedule, now) for _ in range(takes)]
        now += pause_s
        put(schedule, an_item(number, tokens=tokens, lane=lane, flow=flow, at=now))
    batches += all_batches(schedule, now=now)
    batches = [batch for batch in batches if batch]

    assert sorted(item.payload for batch in batches for item in batch) == list(range(len(given)))
    assert schedule.held == 0
    for batch in batches:
        assert len({item.lane for item in batch}) == 1
        assert [item.tokens for item in batch] == sorted(item.tokens for item in batch)
        target_s = 0.05 if batch[0].lane is Lane.DEMAND else 0.02
        cost_s = FIXED_S + TOKEN_S * sum(item.tokens for item in batch)
        assert len(batch) == 1 or cost_s <= target_s
        assert len(batch) <= LIMITS.max_batch_inputs


@given(arrivals)
def test_a_lower_class_goes_first_only_when_overdue_and_in_every_fourth_batch(
    given: list[tuple[Lane, bytes, int, float, int]],
) -> None:
    schedule, now = a_schedule(), 0.0
    waiting: list[Item[int]] = []
    lifted: list[int] = []
    number = 0

    def take() -> None:
        nonlocal number
        if not (batch := taken(schedule, now)):
            return
        lane = batch[0].lane
        if lane > min(item.lane for item in waiting):
            oldest_s = min(item.arrived_s for item in waiting if item.lane is lane)
            assert now - oldest_s > LIMITS.max_wait_s
            lifted.append(number)
        number += 1
        for item in batch:
            waiting.remove(item)

    for lane, flow, tokens, pause_s, takes in given:
        for _ in range(takes):
            take()
        now += pause_s
        item = an_item(tokens=tokens, lane=lane, flow=flow, at=now)
        waiting.append(item)
        put(schedule, item)
    while waiting:
        take()

    assert all(later - earlier >= LIFT_EVERY for earlier, later in pairwise(lifted))


@given(st.lists(st.tuples(st.sampled_from([Lane.BULK, Lane.BACKGROUND]), st.integers(1, 500))))
def test_nothing_starves_while_demand_never_ends(given: list[tuple[Lane, int]]) -> None:
    schedule, now, batch_s = a_schedule(), 0.0, 0.05
    put(schedule, *(an_item(n, lane=lane, tokens=t) for n, (lane, t) in enumerate(given)))
    left = len(given)

    for _ in range(int(LIMITS.max_wait_s / batch_s) + 1 + LIFT_EVERY * (len(given) + 1)):
        put(schedule, *(an_item(lane=Lane.DEMAND, at=now) for _ in range(20)))
        left -= sum(item.lane is not Lane.DEMAND for item in taken(schedule, now))
        now += batch_s

    assert left == 0


def test_an_overdue_backlog_leaves_three_batches_of_four_to_people() -> None:
    schedule = a_schedule()
    put(schedule, *(an_item(lane=Lane.BULK, tokens=150) for _ in range(50)))
    put(schedule, *(an_item(lane=Lane.DEMAND, tokens=400, at=99.9) for _ in range(30)))

    lanes = Counter(taken(schedule, 100.0)[0].lane for _ in range(20))

    assert lanes == {Lane.DEMAND: 15, Lane.BULK: 5}


@given(
    st.lists(st.integers(1, 600), min_size=1, max_size=80),
    st.lists(st.integers(1, 600), min_size=1, max_size=80),
)
def test_flows_with_work_get_the_same_tokens_up_to_an_input_of_each(
    given_a: list[int], given_b: list[int]
) -> None:
    schedule = a_schedule()
    put(schedule, *(an_item(flow=b"a", tokens=tokens) for tokens in given_a))
    put(schedule, *(an_item(flow=b"b", tokens=tokens) for tokens in given_b))
    left = {b"a": len(given_a), b"b": len(given_b)}
    served: Counter[bytes] = Counter()

    while all(left.values()):
        batch = taken(schedule)
        for item in batch:
            left[item.flow] -= 1
            served[item.flow] += item.tokens
        if all(left.values()):
            assert abs(served[b"a"] - served[b"b"]) <= max(given_a) + max(given_b)


@given(
    st.lists(st.sampled_from([b"busy", b"busier"]), min_size=40, max_size=60),
    st.integers(0, 4),
)
def test_a_flow_that_asks_seldom_waits_for_one_text_of_each_other_and_for_the_batch_under_way(
    crowd: list[bytes], batches: int
) -> None:
    schedule = a_schedule()
    put(schedule, *(an_item(flow=flow, tokens=30) for flow in crowd))
    for _ in range(batches):
        taken(schedule)
        put(schedule, an_item(-1, flow=b"quiet", tokens=30))

        rows = schedule.take(0.0, most=3)

        assert -1 in [item.payload for row in rows for item in row.waiters]


def test_a_single_text_does_not_wait_for_a_batch_filled_up_with_a_crowds() -> None:
    schedule = a_schedule()
    put(schedule, *(an_item(flow=b"busy", tokens=30) for _ in range(100)))
    taken(schedule)
    put(schedule, an_item(1, flow=b"quiet", tokens=30), an_item(2, flow=b"as quiet", tokens=30))

    batches = [[item.payload for item in taken(schedule)] for _ in range(2)]

    assert batches == [[1, 2], [0] * 8]


def test_a_batch_is_filled_up_where_all_that_waits_fits() -> None:
    schedule = a_schedule()
    put(schedule, *(an_item(flow=b"busy", tokens=30) for _ in range(13)))
    taken(schedule)
    put(schedule, an_item(1, flow=b"quiet", tokens=30))

    assert sorted(item.payload for item in taken(schedule)) == [0] * 5 + [1]


def test_a_flow_gains_nothing_by_asking_bit_by_bit() -> None:
    schedule = a_schedule()
    put(schedule, *(an_item(flow=b"patient", tokens=10) for _ in range(100)))
    put(schedule, an_item(flow=b"sly", tokens=100))
    served: Counter[bytes] = Counter()

    for _ in range(50):
        (row,) = schedule.take(0.0, most=1)
        served[row.payer.flow] += row.tokens
        if row.payer.flow == b"sly":
            put(schedule, an_item(flow=b"sly", tokens=100))

    assert abs(served[b"sly"] - served[b"patient"]) <= 110


def test_dropped_inputs_are_never_dispatched_and_give_their_places_back() -> None:
    schedule = a_schedule()
    kept, dropped = an_item(1, flow=b"a"), [an_item(2, flow=b"a"), an_item(3, flow=b"b")]
    put(schedule, kept, *dropped)

    gone = schedule.drop(dropped)

    assert gone == 2
    assert schedule.held == 1
    assert all_batches(schedule) == [[kept]]
    assert schedule.drop([kept]) == 0


@pytest.mark.parametrize(
    ("lane", "room"), [(Lane.DEMAND, 100), (Lane.BULK, 75), (Lane.BACKGROUND, 50)]
)
def test_the_queue_is_bounded_and_background_work_leaves_room_for_people(
    lane: Lane, room: int
) -> None:
    schedule = a_schedule(Batching(max_queue_inputs=100))
    schedule.reserve(Newcomer(inputs=room, lane=lane), now_s=0.0)
    schedule.offer([an_item(tokens=100, lane=lane) for _ in range(room)])

    with pytest.raises(Overloaded, match="inputs wait"):
        schedule.reserve(Newcomer(inputs=1, lane=lane), now_s=0.0)

    assert schedule.held == room


def test_a_request_that_does_not_fit_is_refused_whole() -> None:
    schedule = a_schedule(Batching(max_queue_inputs=10))
    schedule.reserve(Newcomer(inputs=8, lane=Lane.DEMAND), now_s=0.0)

    with pytest.raises(Overloaded):
        schedule.reserve(Newcomer(inputs=3, lane=Lane.DEMAND), now_s=0.0)

    schedule.reserve(Newcomer(inputs=2, lane=Lane.DEMAND), now_s=0.0)
    schedule.release(10)
    assert schedule.held == 0


@given(st.integers(0, 10**12), st.lists(st.integers(1, 9000), min_size=1, max_size=600))
def test_shares_of_a_batch_add_up_to_its_time_and_follow_tokens(
    busy_ns: int, tokens: list[int]
) -> None:
    shares = apportion(busy_ns, tokens)

    assert sum(shares) == busy_ns
    for share, count in zip(shares, tokens, strict=True):
        assert abs(share - busy_ns * count / sum(tokens)) <= 1 + busy_ns * 1e-15


@given(
    st.floats(0.0001, 0.1),
    st.floats(1e-7, 1e-3),
    st.lists(st.integers(1, 5000), min_size=40, max_size=80),
)
def test_the_cost_model_finds_a_linear_devices_cost_for_sizes_it_saw(
    fixed_s: float, token_s: float, sizes: list[int]
) -> None:
    cost = CostModel()

    for tokens in sizes:
        cost.observe(tokens, fixed_s + token_s * tokens)

    # Exact where sizes vary; where all are alike, good for that size.
    for tokens in (min(sizes), max(sizes)) if max(sizes) > 3 * min(sizes) else sizes[-1:]:
        truth = fixed_s + token_s * tokens
        assert cost.seconds(tokens) == pytest.approx(truth, rel=0.15)


def test_the_cost_model_follows_a_device_that_becomes_slower() -> None:
    cost = CostModel()
    for n in range(100):
        cost.observe(10 + n % 7 * 100, 0.002 + 1e-4 * (10 + n % 7 * 100))
    for n in range(200):
        cost.observe(10 + n % 7 * 100, 0.006 + 3e-4 * (10 + n % 7 * 100))

    assert cost.seconds(300) == pytest.approx(0.096, rel=0.05)
    assert cost.tokens_within(0.096) < 320


def test_one_stall_hardly_moves_the_cost_model() -> None:
    cost = CostModel()
    for n in range(50):
        cost.observe(100 + n % 5 * 50, 0.002 + 1e-4 * (100 + n % 5 * 50))
    before_s = cost.seconds(200)

    cost.observe(200, 30.0)

    assert cost.seconds(200) < before_s * 1.2


@given(st.integers(0, 10**9), st.integers(0, 20))
def test_rows_without_any_token_share_a_batchs_time_evenly(busy_ns: int, rows: int) -> None:
    shares = apportion(busy_ns, [0] * rows)

    assert len(shares) == rows
    assert sum(shares) == (busy_ns if rows else 0)
    assert not shares or max(shares) - min(shares) <= 1


def test_a_batch_without_tokens_teaches_the_cost_model_nothing() -> None:
    cost = CostModel(fixed_s=FIXED_S, token_s=TOKEN_S)

    cost.observe(0, 0.5)

    assert (cost.fixed_s, cost.token_s) == (FIXED_S, TOKEN_S)


def test_a_device_whose_fixed_cost_is_beyond_the_target_still_gets_batches() -> None:
    """Else each input would be a batch of its own, and the model never see another size."""
    cost = CostModel()
    for tokens in (64, 256, 64, 256):
        cost.observe(tokens, 0.060 + 1e-5 * tokens)
    schedule: Schedule[int] = Schedule(Batching(), cost)
    put(schedule, *(an_item(n, tokens=8) for n in range(400)))

    assert [len(batch) for batch in all_batches(schedule)] == [400]


@given(st.floats(1e-5, 0.2), st.floats(1e-7, 1e-3), st.floats(0.001, 0.2))
def test_a_full_batch_is_as_long_as_pays_within_the_target_or_twice_its_fixed_part(
    fixed_s: float, token_s: float, target_s: float
) -> None:
    """What pays: until the fixed part is a ninth, or half of the target."""
    cost = CostModel(fixed_s=fixed_s, token_s=token_s)
    full_s = max(min(target_s, max(9 * fixed_s, target_s / 2)), 2 * fixed_s)

    tokens = cost.tokens_within(target_s)

    assert cost.seconds(tokens) <= full_s * (1 + 1e-9)
    assert cost.seconds(tokens + 2) > full_s


def test_texts_are_bounded_by_their_characters_too_but_a_single_request_may_be_larger() -> None:
    schedule = a_schedule(Batching(max_queue_characters=1000))
    schedule.reserve(Newcomer(inputs=1, lane=Lane.BACKGROUND, characters=5000), now_s=0.0)

    with pytest.raises(Overloaded, match="characters"):
        schedule.reserve(Newcomer(inputs=1, lane=Lane.DEMAND, characters=1), now_s=0.0)

    schedule.release(1, characters=5000)
    schedule.reserve(Newcomer(inputs=1, lane=Lane.BACKGROUND, characters=500), now_s=0.0)
    with pytest.raises(Overloaded, match="characters"):
        schedule.reserve(Newcomer(inputs=1, lane=Lane.BACKGROUND, characters=1), now_s=0.0)
    schedule.reserve(Newcomer(inputs=1, lane=Lane.DEMAND, characters=500), now_s=0.0)
    assert (schedule.held, schedule.held_characters) == (2, 1000)


wishes = st.tuples(
    st.sampled_from(Lane),
    st.sampled_from([b"a", b"b"]),
    st.integers(0, 3),  # what the model reads
)


@given(
    st.lists(
        st.one_of(
            st.lists(wishes, min_size=1, max_size=4),  # a call
            st.integers(0, 1000),  # which call leaves
            st.none(),  # a batch
        ),
        max_size=60,
    )
)
def test_equal_inputs_of_a_flow_that_wait_together_are_one_row_in_the_most_urgent_lane(
    given: list[list[tuple[Lane, bytes, int]] | int | None],
) -> None:
    schedule = a_schedule()
    calls: list[list[Item[int]]] = []
    waiting: list[Item[int]] = []

    def take() -> None:
        batch = schedule.take(0.0)
        assert bool(batch) == bool(waiting)
        if not batch:
            return
        lane = min(item.lane for item in waiting)
        for row in batch:
            together = [
                item for item in waiting if (item.flow, item.key) == (row.payer.flow, row.payer.key)
            ]
            # All who wait for it and nobody else; the first of the most urgent pays.
            assert row.waiters == sorted(together, key=lambda item: item.lane)
            assert row.payer.lane is lane
            for item in together:
                waiting.remove(item)

    for step in given:
        match step:
            case list():
                calls.append(
                    [
                        Item(payload=0, tokens=5, lane=lane, flow=flow, arrived_s=0.0, key=key)
                        for lane, flow, key in step
                    ]
                )
                put(schedule, *calls[-1])
                waiting += calls[-1]
            case int() if calls:
                leaving = calls[step % len(calls)]
                assert schedule.drop(leaving) == sum(item in waiting for item in leaving)
                waiting = [item for item in waiting if item not in leaving]
            case None:
                take()
        assert schedule.held == len(waiting)
    while waiting:
        take()

    assert schedule.take(0.0) == []
    assert schedule.held == 0
