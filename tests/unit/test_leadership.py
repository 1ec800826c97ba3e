"""Who works: one operator at a time, whatever happens to the others."""

import asyncio
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep_operator.kubernetes import leadership
from embedkeep_operator.kubernetes.failures import Conflict, Unreachable
from embedkeep_operator.kubernetes.leadership import HOLD_S, Held, Leadership, Seen

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Place:
    """A Lease as the API server keeps it."""

    def __init__(self) -> None:
        self.kept: Held | None = None
        self.versions = 0
        self.reachable = True
        self.written = asyncio.Event()

    async def lease(self) -> Held | None:
        if not self.reachable:
            raise Unreachable("no answer")
        return self.kept

    async def write_lease(self, wanted: Held, *, renewed: datetime) -> Held:
        del renewed
        if not self.reachable:
            raise Unreachable("no answer")
        if wanted.version != (self.kept.version if self.kept is not None else ""):
            raise Conflict("written since")
        self.versions += 1
        self.kept = Held(
            holder=wanted.holder,
            version=str(self.versions),
            hold_s=wanted.hold_s,
            transitions=wanted.transitions,
            acquired=wanted.acquired,
        )
        self.written.set()
        return self.kept


class Clock:
    """Stands still."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def place() -> Place:
    return Place()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(leadership, "RETRY_S", 0.0)
    return Clock()


def candidate(place: Place, clock: Clock, name: str) -> Leadership:
    return Leadership(place, me=name, clock=clock, now=lambda: NOW)


async def blocked(task: asyncio.Task[None]) -> bool:
    """It does not end, however often the loop turns."""
    for _ in range(50):
        await asyncio.sleep(0)
    return not task.done()


async def test_the_first_to_come_holds_it_and_the_second_waits(place: Place, clock: Clock) -> None:
    await candidate(place, clock, "a").acquire()
    second = asyncio.create_task(candidate(place, clock, "b").acquire())

    assert await blocked(second)
    assert place.kept is not None
    assert place.kept.holder == "a"
    second.cancel()


async def test_one_that_stops_renewing_is_followed_after_its_time_and_not_before(
    place: Place, clock: Clock
) -> None:
    await candidate(place, clock, "a").acquire()
    second = asyncio.create_task(candidate(place, clock, "b").acquire())
    assert await blocked(second)
    clock.now_s += HOLD_S - 1
    assert await blocked(second)
    clock.now_s += 1

    await asyncio.wait_for(second, 5)
    assert place.kept is not None
    assert (place.kept.holder, place.kept.transitions) == ("b", 2)


async def test_one_that_renews_is_not_followed_however_late_it_is(
    place: Place, clock: Clock
) -> None:
    first = candidate(place, clock, "a")
    await first.acquire()
    keeping = asyncio.create_task(first.keep())
    second = asyncio.create_task(candidate(place, clock, "b").acquire())
    for _ in range(5):
        place.written.clear()
        await place.written.wait()
        clock.now_s += 5
        assert await blocked(second)

    assert not keeping.done()
    keeping.cancel()
    second.cancel()


async def test_one_that_cannot_renew_stops_before_another_may_begin(
    place: Place, clock: Clock
) -> None:
    first = candidate(place, clock, "a")
    await first.acquire()
    place.reachable = False
    keeping = asyncio.create_task(first.keep())
    assert await blocked(keeping)
    clock.now_s += leadership.RENEW_S

    await asyncio.wait_for(keeping, 5)
    assert leadership.RENEW_S < HOLD_S


async def test_one_that_is_followed_stops(place: Place, clock: Clock) -> None:
    first = candidate(place, clock, "a")
    await first.acquire()
    place.kept = Held(holder="b", version="99", hold_s=HOLD_S, transitions=2)

    await asyncio.wait_for(first.keep(), 5)


async def test_what_is_given_back_is_free_at_once(place: Place, clock: Clock) -> None:
    first = candidate(place, clock, "a")
    await first.acquire()
    await first.give_back()

    await asyncio.wait_for(candidate(place, clock, "b").acquire(), 5)


async def test_what_is_anothers_is_not_given_back(place: Place, clock: Clock) -> None:
    await candidate(place, clock, "a").acquire()
    await candidate(place, clock, "b").give_back()

    assert place.kept is not None
    assert place.kept.holder == "a"


@given(st.floats(0, 100), st.floats(0, 100))
def test_a_lease_that_changes_is_never_free(first_s: float, later_s: float) -> None:
    """Whatever clocks say: the one who looks counts from what it has seen itself."""
    one = Held(holder="a", version="1", hold_s=HOLD_S, transitions=1)
    two = Held(holder="a", version="2", hold_s=HOLD_S, transitions=1)
    seen = Seen(lease=one, since_s=first_s).again(two, now_s=first_s + later_s)

    assert not seen.is_free(now_s=first_s + later_s, me="b")
