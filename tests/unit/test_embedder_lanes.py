"""The queue under lanes and flows: what leaving costs. Order and fairness: see the schedule's."""

import sys
import weakref
from types import FrameType

from hypothesis import given
from hypothesis import strategies as st

from embedkeep.embedder.lanes import Lane, Lanes, Queued


class Thing:
    """A payload that can be watched."""


def an_entry(*, flow: bytes = b"", lane: Lane = Lane.DEMAND, size: int = 1) -> Queued[Thing]:
    return Queued(payload=Thing(), size=size, lane=lane, flow=flow, arrived_s=0.0)


def some_lanes() -> Lanes[Thing]:
    return Lanes(max_wait_s=1.0)


def steps_of_a_drop(waiting: int) -> int:
    """Instructions of Python while one entry of so many leaves."""
    lanes = some_lanes()
    entries = [an_entry(flow=b"%d" % (n % 50)) for n in range(waiting)]
    for entry in entries:
        lanes.add(entry)
    steps = 0

    def count(frame: FrameType, event: str, _arg: object) -> object:
        nonlocal steps
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        return count

    before = sys.gettrace()
    sys.settrace(count)  # type: ignore[arg-type]  # the stub cannot name a function that gives itself
    try:
        lanes.drop(entries[waiting // 2])
    finally:
        sys.settrace(before)
    return steps


def test_a_drop_costs_the_same_however_many_wait() -> None:
    assert 0 < steps_of_a_drop(200) == steps_of_a_drop(20_000)


def test_what_was_dropped_behind_one_that_waits_is_not_kept() -> None:
    lanes = some_lanes()
    lanes.add(an_entry())
    kept: weakref.WeakSet[Thing] = weakref.WeakSet()

    for _ in range(1000):
        entry = an_entry()
        kept.add(entry.payload)
        lanes.add(entry)
        lanes.drop(entry)
        del entry

    assert len(kept) <= 20


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(Lane), st.sampled_from([b"a", b"b"]), st.integers(0, 9)),
            st.integers(0, 1000),  # which one is dropped
            st.none(),  # a turn
        ),
        max_size=80,
    )
)
def test_what_was_not_dropped_is_taken_once_and_in_its_flows_order(
    given: list[tuple[Lane, bytes, int] | int | None],
) -> None:
    lanes, added, dropped, taken = some_lanes(), [], set(), []
    for step in given:
        match step:
            case (lane, flow, size):
                added.append(an_entry(lane=lane, flow=flow, size=size))
                lanes.add(added[-1])
            case int() if added:
                entry = added[step % len(added)]
                left = lanes.drop(entry)
                assert left == (entry not in dropped and entry not in taken)
                if left:
                    dropped.add(entry)
            case None if (turn := lanes.turn(0.0)) is not None:
                taken += lanes.take(turn, most_size=12, most=5)
    while (turn := lanes.turn(0.0)) is not None:
        taken += lanes.take(turn, most_size=12, most=5)

    assert len(taken) == len(set(taken))
    for lane in Lane:
        for flow in (b"a", b"b"):
            mine = [entry for entry in taken if (entry.lane, entry.flow) == (lane, flow)]
            assert mine == [
                entry
                for entry in added
                if (entry.lane, entry.flow) == (lane, flow) and entry not in dropped
            ]
