import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from embedkeep.errors import EmbedderUnavailable, Internal
from embedkeep.keys import Key
from embedkeep.node.flights import Boarding, Flight, Flights, Origin, Trip
from embedkeep.records import Entry

WAIT_S = 30.0
"""For what must happen; a test that needs it all has failed."""


def an_entry(number: int = 0) -> Entry:
    return Entry(vector=np.full(2, number, np.float32), tokens=number, truncated=False, device_ns=0)


def wanted(text: str) -> list[tuple[Key, str]]:
    """Each letter is a text; its key is its bytes."""
    return [(Key(letter.encode()), letter) for letter in text]


class Carrier:
    """Carries trips when told to, and remembers what it carried."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.entered: asyncio.Queue[Trip] = asyncio.Queue()
        self.trips: list[str] = []
        self.cancelled: list[str] = []
        self.error: Exception | None = None
        self.leave_out = ""

    async def __call__(self, trip: Trip) -> None:
        texts = "".join(flight.text for flight in trip.flights)
        self.trips.append(texts)
        self.entered.put_nowait(trip)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(texts)
            raise
        if self.error is not None:
            raise self.error
        for flight in trip.flights:
            if flight.text not in self.leave_out:
                flight.land(an_entry(len(self.trips)), Origin.EMBEDDER)


@pytest.fixture
async def flights() -> AsyncIterator[Flights]:
    owner = Flights("test", on_landed=lambda _flight: None)
    yield owner
    await owner.close()


@pytest.fixture
def carrier() -> Carrier:
    return Carrier()


def board(flights: Flights, carrier: Carrier, texts: str, *, store: bool = True) -> Boarding:
    return flights.board(wanted(texts), store=store, carry=carrier)


def ended(flight: Flight) -> asyncio.Task[None]:
    """The task of a flight's trip."""
    assert flight.trip.task is not None
    return flight.trip.task


async def test_fifty_callers_of_one_key_share_one_trip(flights: Flights, carrier: Carrier) -> None:
    boardings = [board(flights, carrier, "a") for _ in range(50)]
    carrier.gate.set()

    await asyncio.gather(*(boarding.wait(WAIT_S) for boarding in boardings))

    assert carrier.trips == ["a"]
    assert len({id(boarding.flights[0].entry) for boarding in boardings}) == 1
    assert [boarding.started(boarding.flights[0]) for boarding in boardings] == [True] + [
        False
    ] * 49
    for boarding in boardings:
        boarding.leave()


async def test_a_request_starts_only_what_does_not_fly_yet(
    flights: Flights, carrier: Carrier
) -> None:
    first = board(flights, carrier, "abc")
    second = board(flights, carrier, "cdb")
    carrier.gate.set()

    await asyncio.gather(first.wait(WAIT_S), second.wait(WAIT_S))

    assert carrier.trips == ["abc", "d"]
    assert [flight.text for flight in second.flights] == ["c", "d", "b"]
    assert [second.started(flight) for flight in second.flights] == [False, True, False]
    assert all(flight.entry is not None for flight in (*first.flights, *second.flights))
    assert len(flights) == 0


async def test_after_a_landing_the_next_request_starts_anew(
    flights: Flights, carrier: Carrier
) -> None:
    carrier.gate.set()
    for _ in range(2):
        boarding = board(flights, carrier, "a")
        await boarding.wait(WAIT_S)
        boarding.leave()

    assert carrier.trips == ["a", "a"]


async def test_a_caller_that_leaves_does_not_fail_the_others(
    flights: Flights, carrier: Carrier
) -> None:
    starter, joiner = board(flights, carrier, "a"), board(flights, carrier, "a")
    await carrier.entered.get()

    starter.leave()
    carrier.gate.set()
    await joiner.wait(WAIT_S)

    assert joiner.flights[0].entry is not None
    assert carrier.cancelled == []


async def test_a_trip_is_cancelled_when_its_last_caller_leaves(
    flights: Flights, carrier: Carrier
) -> None:
    starter, joiner = board(flights, carrier, "ab"), board(flights, carrier, "b")
    await carrier.entered.get()

    joiner.leave()
    starter.leave()
    await asyncio.wait([ended(starter.flights[0])], timeout=WAIT_S)

    assert carrier.cancelled == ["ab"]
    assert len(flights) == 0
    assert all(isinstance(flight.error, Internal) for flight in starter.flights)


async def test_a_key_whose_trip_was_abandoned_starts_anew_at_once(
    flights: Flights, carrier: Carrier
) -> None:
    """No caller may join what is about to be cancelled."""
    abandoned = board(flights, carrier, "a")
    await carrier.entered.get()
    abandoned.leave()

    again = board(flights, carrier, "a")
    carrier.gate.set()
    await again.wait(WAIT_S)

    assert carrier.trips == ["a", "a"]
    assert again.flights[0].entry is not None


async def test_a_caller_that_joins_two_trips_leaves_both(
    flights: Flights, carrier: Carrier
) -> None:
    first, second = board(flights, carrier, "a"), board(flights, carrier, "b")
    both = board(flights, carrier, "ab")
    await carrier.entered.get()
    await carrier.entered.get()
    tasks = [ended(flight) for flight in both.flights]

    first.leave()
    second.leave()
    assert not any(task.cancelling() for task in tasks)
    both.leave()
    await asyncio.wait(tasks, timeout=WAIT_S)

    assert sorted(carrier.cancelled) == ["a", "b"]


async def test_waiting_ends_when_time_is_up_and_the_trip_goes_on(
    flights: Flights, carrier: Carrier
) -> None:
    hasty, patient = board(flights, carrier, "a"), board(flights, carrier, "a")

    await hasty.wait(0.001)
    await patient.wait(0.001)
    landed = [hasty.flights[0].landed, patient.flights[0].landed]
    hasty.leave()
    carrier.gate.set()
    await patient.wait(WAIT_S)

    assert landed == [False, False]
    assert patient.flights[0].entry is not None


async def test_a_caller_that_is_cancelled_leaves_the_trip_flying(
    flights: Flights, carrier: Carrier
) -> None:
    starter, joiner = board(flights, carrier, "a"), board(flights, carrier, "a")
    waiting = asyncio.create_task(starter.wait(WAIT_S))
    await carrier.entered.get()

    waiting.cancel()
    await asyncio.wait([waiting])
    starter.leave()
    carrier.gate.set()
    await joiner.wait(WAIT_S)

    assert waiting.cancelled()
    assert joiner.flights[0].entry is not None


async def test_an_error_lands_with_everybody(flights: Flights, carrier: Carrier) -> None:
    carrier.error = EmbedderUnavailable("gone")
    starter, joiner = board(flights, carrier, "ab"), board(flights, carrier, "b")
    carrier.gate.set()

    await asyncio.gather(starter.wait(WAIT_S), joiner.wait(WAIT_S))

    assert [flight.error for flight in (*starter.flights, *joiner.flights)] == [carrier.error] * 3
    assert len(flights) == 0


async def test_a_bug_lands_everybody_with_an_internal_error(
    flights: Flights, carrier: Carrier
) -> None:
    carrier.error = ZeroDivisionError("a bug")
    starter, joiner = board(flights, carrier, "ab"), board(flights, carrier, "b")
    carrier.gate.set()

    await asyncio.gather(starter.wait(WAIT_S), joiner.wait(WAIT_S))

    errors = [flight.error for flight in (*starter.flights, *joiner.flights)]
    assert [type(error) for error in errors] == [Internal] * 3
    assert "a bug" not in str(errors[0])


async def test_a_flight_that_its_carrier_forgot_lands_too(
    flights: Flights, carrier: Carrier
) -> None:
    carrier.leave_out = "b"
    carrier.gate.set()
    boarding = board(flights, carrier, "abc")

    await boarding.wait(WAIT_S)

    assert [type(flight.error) for flight in boarding.flights] == [type(None), Internal, type(None)]


async def test_what_a_flight_ended_with_first_stands(flights: Flights, carrier: Carrier) -> None:
    (flight,) = board(flights, carrier, "a").flights

    flight.land(first := an_entry(1), Origin.VALKEY)
    flight.land(an_entry(2), Origin.EMBEDDER)
    flight.land(Internal("late"), Origin.EMBEDDER)

    assert (flight.entry, flight.error, flight.origin) == (first, None, Origin.VALKEY)


async def test_a_joiner_goes_on_as_soon_as_its_own_flight_lands(
    flights: Flights, carrier: Carrier
) -> None:
    """A hit in Valkey must not wait for the embedder's part of somebody else's batch."""
    starter, joiner = board(flights, carrier, "ab"), board(flights, carrier, "a")
    waiting = asyncio.create_task(joiner.wait(WAIT_S))
    await carrier.entered.get()

    starter.flights[0].land(an_entry(), Origin.VALKEY)
    await asyncio.wait_for(waiting, WAIT_S)

    assert not starter.flights[1].landed


async def test_who_joins_a_flight_that_has_landed_does_not_wait(
    flights: Flights, carrier: Carrier
) -> None:
    starter = board(flights, carrier, "ab")
    starter.flights[0].land(an_entry(), Origin.VALKEY)

    joiner = board(flights, carrier, "a")
    await asyncio.wait_for(joiner.wait(WAIT_S), WAIT_S)
    await asyncio.wait_for(joiner.flights[0].landing(), WAIT_S)

    assert joiner.flights[0].entry is starter.flights[0].entry


@pytest.mark.parametrize(
    ("stores", "expected"),
    [([False, False], False), ([True, False], True), ([False, True], True), ([True, True], True)],
)
async def test_one_caller_that_allows_keeping_is_enough(
    flights: Flights,
    carrier: Carrier,
    stores: list[bool],
    expected: bool,  # noqa: FBT001 - a case
) -> None:
    boardings = [board(flights, carrier, "a", store=store) for store in stores]

    assert boardings[0].flights[0].store is expected


async def test_a_withdrawn_flight_is_not_joined_and_not_kept(
    flights: Flights, carrier: Carrier
) -> None:
    """After an invalidation returned, no later request may see what was in flight before it."""
    before = board(flights, carrier, "ab")

    flights.withdraw(lambda key: key == b"a")
    after = board(flights, carrier, "ab")
    carrier.gate.set()
    await asyncio.gather(before.wait(WAIT_S), after.wait(WAIT_S))

    assert carrier.trips == ["ab", "a"]
    assert [flight.store for flight in before.flights] == [False, True]
    assert [flight.store for flight in after.flights] == [True, True]
    assert all(flight.entry is not None for flight in (*before.flights, *after.flights))


async def test_the_end_of_a_withdrawn_trip_leaves_its_successor_flying(
    flights: Flights, carrier: Carrier
) -> None:
    before = board(flights, carrier, "a")
    await carrier.entered.get()
    flights.withdraw(lambda _: True)
    after = board(flights, carrier, "a")

    before.leave()
    await asyncio.wait([ended(before.flights[0])], timeout=WAIT_S)
    joiner = board(flights, carrier, "a")

    assert joiner.flights[0] is after.flights[0]
    assert not after.flights[0].landed


async def test_closing_ends_all_trips_and_lands_all_flights(
    flights: Flights, carrier: Carrier
) -> None:
    flying = board(flights, carrier, "ab")
    await carrier.entered.get()

    await flights.close()

    assert carrier.cancelled == ["ab"]
    assert all(isinstance(flight.error, Internal) for flight in flying.flights)


async def test_closing_lands_flights_whose_trip_had_not_begun(
    flights: Flights, carrier: Carrier
) -> None:
    """A task that is cancelled before its first step never runs its `finally`."""
    starter, joiner = board(flights, carrier, "a"), board(flights, carrier, "a")

    await flights.close()
    await asyncio.wait_for(joiner.wait(WAIT_S), WAIT_S / 2)

    assert carrier.trips == []
    assert isinstance(starter.flights[0].error, Internal)
    assert len(flights) == 0
