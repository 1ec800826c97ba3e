"""One computation for many callers.

A *flight* is one key on its way: through Valkey and, where that misses, through an embedder. A
*trip* is the task that carries the flights which one request has started together. Whoever wants
a key in the meantime joins its flight instead of starting another.

Most keys that memory misses lie in Valkey, so a request reads them there first (`Reads`), and only
what it does not find flies. Of what lands meanwhile it hears.

A trip belongs to nobody in particular: it goes on while anybody waits for one of its flights, and
is cancelled when the last one leaves. No caller's deadline is the trip's.

Source of the pattern: single flight, as in Go's x/sync; ours works on batches and can be left.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from typing import Final

import structlog

from embedkeep.errors import EmbedKeepError, Internal
from embedkeep.keys import Key
from embedkeep.node.admission import Urgency
from embedkeep.records import Entry

log = structlog.stdlib.get_logger()


class Origin(Enum):
    """Which tier ended a flight."""

    VALKEY = auto()
    PEER = auto()
    """Another node's memory or its Valkey."""
    EMBEDDER = auto()
    COALESCED = auto()
    """A computation that somebody else had started."""


class Flight:
    """One key on its way."""

    __slots__ = ("_joined", "entry", "error", "key", "origin", "store", "text", "trip", "urgency")

    def __init__(self, key: Key, text: str, trip: "Trip", *, store: bool, urgency: Urgency) -> None:
        self.key: Final = key
        self.urgency: Final = urgency
        self.text: Final = text
        self.trip: Final = trip
        self.store = store
        """Some caller allows to keep the answer, and nobody has withdrawn it meanwhile."""
        self.entry: Entry | None = None
        self.error: EmbedKeepError | None = None
        self.origin = Origin.EMBEDDER
        self._joined: asyncio.Future[None] | None = None

    @property
    def landed(self) -> bool:
        """There is an entry or an error."""
        return self.entry is not None or self.error is not None

    def land(self, outcome: Entry | EmbedKeepError, origin: Origin) -> None:
        """End the flight; what it ended with first stands."""
        if self.landed:
            return
        self.origin = origin
        if isinstance(outcome, Entry):
            self.entry = outcome
        else:
            self.error = outcome
        if self._joined is not None and not self._joined.done():
            self._joined.set_result(None)

    def landing(self) -> asyncio.Future[None]:
        """Done when this flight has landed; made only for those who did not start it."""
        if self._joined is None:
            self._joined = asyncio.get_running_loop().create_future()
            if self.landed:
                self._joined.set_result(None)
        return self._joined


class Trip:
    """The flights that one request has started, and the task that carries them."""

    __slots__ = ("flights", "task", "waiting")

    def __init__(self) -> None:
        self.flights: list[Flight] = []
        self.task: asyncio.Task[None] | None = None
        self.waiting = 0
        """Requests that wait for any of the flights."""


Carry = Callable[[Trip], Coroutine[None, None, None]]
"""Lands every flight of a trip; the owner of `Flights` brings it along for each boarding."""


class Reading:
    """Keys that one request reads from Valkey, and what became of them meanwhile."""

    __slots__ = ("keys", "landed", "withdrawn")

    def __init__(self, keys: Collection[Key]) -> None:
        self.keys: Final = keys
        self.landed: Final[dict[Key, Flight]] = {}
        """Flights that have ended well since: the entry may not have been in Valkey yet."""
        self.withdrawn: Final[set[Key]] = set()
        """Not to be kept: what was read may be older than an invalidation."""


class Reads:
    """All readings that are under way."""

    def __init__(self) -> None:
        self._open: set[Reading] = set()

    @contextmanager
    def open(self, keys: Collection[Key]) -> Iterator[Reading]:
        """While the block runs, *keys* are read; looking for one in them must be quick."""
        reading = Reading(keys)
        self._open.add(reading)
        try:
            yield reading
        finally:
            self._open.remove(reading)

    def landed(self, flight: Flight) -> None:
        """Tell whoever reads its key."""
        for reading in self._open:
            if flight.key in reading.keys:
                reading.landed[flight.key] = flight

    def withdraw(self, concerns: Callable[[Key], bool]) -> None:
        """Let nothing be kept of what is read under such keys now, nor given what has landed."""
        for reading in self._open:
            reading.withdrawn.update(filter(concerns, reading.keys))
            for key in reading.withdrawn:
                reading.landed.pop(key, None)


class Boarding:
    """What one request waits for: a flight for each of its keys. Leave it when done waiting."""

    __slots__ = ("_joined", "_own", "_owner", "_trips", "flights")

    def __init__(self, owner: "Flights", flights: Sequence[Flight], own: Trip) -> None:
        self.flights: Final = flights
        """In the order of the keys."""
        self._owner = owner
        self._own = own
        self._joined = [flight for flight in flights if flight.trip is not own]
        self._trips = {flight.trip for flight in flights}
        for trip in self._trips:
            trip.waiting += 1

    def started(self, flight: Flight) -> bool:
        """This request set *flight* off; it did not join it."""
        return flight.trip is self._own

    @property
    def landed(self) -> bool:
        """All have."""
        return all(flight.landed for flight in self.flights)

    async def wait(self, timeout_s: float | None) -> None:
        """Wait until all have landed, or time is up: then some have not. None: for ever."""
        await wait_for([self], timeout_s)

    def awaited(self) -> Iterator[asyncio.Future[None]]:
        """What is to be waited for."""
        if self._own.task is not None:
            yield self._own.task
        for flight in self._joined:
            if not flight.landed:
                yield flight.landing()

    def leave(self) -> None:
        """Stop waiting; trips that nobody waits for any more are cancelled."""
        for trip in self._trips:
            trip.waiting -= 1
            if trip.waiting == 0:
                self._owner.abandon(trip)


async def wait_for(boardings: Iterable[Boarding], timeout_s: float | None) -> None:
    """Wait until all flights of all have landed, or time is up. None: for ever."""
    if awaited := {each for boarding in boardings for each in boarding.awaited()}:
        await asyncio.wait(awaited, timeout=timeout_s)


class Flights:
    """All keys on their way, and the tasks that carry them.

    Args:
        name: Of the tasks, for whoever looks at a hanging process.
        on_landed: Told of each flight that ends with an entry which later requests may be given.
    """

    def __init__(self, name: str, *, on_landed: Callable[[Flight], None]) -> None:
        self._name = name
        self._on_landed = on_landed
        self._flying: dict[tuple[Key, Urgency], Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._flying)

    def board(
        self,
        wanted: Iterable[tuple[Key, str]],
        *,
        store: bool,
        carry: Carry,
        urgency: Urgency = Urgency.DEMAND,
    ) -> Boarding:
        """Join the flights of *wanted*, and start those that do not fly yet, as one trip.

        A flight that is less urgent than this caller is not joined: a person must not wait behind
        background work. The embedder answers both from one pass while the slower one still waits
        in its queue.

        Args:
            wanted: Distinct keys with their texts.
            store: The caller allows to keep answers; one that does is enough for a flight.
            carry: Carries the new trip.
            urgency: Who waits.
        """
        trip = Trip()
        flights: list[Flight] = []
        for key, text in wanted:
            if (flight := self._joinable(key, urgency)) is None:
                flight = Flight(key, text, trip, store=store, urgency=urgency)
                self._flying[key, urgency] = flight
                trip.flights.append(flight)
            elif store:
                flight.store = True
            flights.append(flight)
        if trip.flights:
            trip.task = asyncio.create_task(self._carry(trip, carry), name=self._name)
            self._tasks.add(trip.task)
            trip.task.add_done_callback(self._tasks.discard)
        return Boarding(self, flights, trip)

    def join(
        self, wanted: Iterable[Key], *, store: bool, urgency: Urgency = Urgency.DEMAND
    ) -> Boarding:
        """As `board`, and start nothing: the flights of those of *wanted* that fly already."""
        flights: list[Flight] = []
        for key in wanted:
            if (flight := self._joinable(key, urgency)) is not None:
                flight.store = flight.store or store
                flights.append(flight)
        return Boarding(self, flights, Trip())

    def withdraw(self, concerns: Callable[[Key], bool]) -> None:
        """Let no later request join the flights of such keys, and keep none of their answers."""
        for name in [name for name in self._flying if concerns(name[0])]:
            self._flying.pop(name).store = False

    def abandon(self, trip: Trip) -> None:
        """Cancel *trip*: nobody waits for it."""
        self._clear(trip)
        if trip.task is not None:
            trip.task.cancel()

    async def close(self) -> None:
        """Cancel everything and wait until it has ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # A task that is cancelled before its first step never gets to land its flights.
        for flight in self._flying.values():
            flight.land(Internal("the node is stopping"), Origin.EMBEDDER)
        self._flying.clear()

    async def _carry(self, trip: Trip, carry: Carry) -> None:
        try:
            await carry(trip)
        except EmbedKeepError as error:
            for flight in trip.flights:
                flight.land(error, Origin.EMBEDDER)
        except Exception:  # this task's outermost edge: a bug must not leave callers waiting
            log.exception("a trip failed", flights=len(trip.flights))
        finally:
            # Also after a cancellation: the next request for a key must start anew.
            self._clear(trip)
            for flight in trip.flights:
                flight.land(Internal("the computation ended without an answer"), Origin.EMBEDDER)

    def _joinable(self, key: Key, urgency: Urgency) -> Flight | None:
        for level in Urgency:
            if level > urgency:
                return None
            if (flight := self._flying.get((key, level))) is not None:
                return flight
        return None

    def _clear(self, trip: Trip) -> None:
        for flight in trip.flights:
            name = (flight.key, flight.urgency)
            if self._flying.get(name) is flight:
                del self._flying[name]
                if flight.entry is not None:
                    self._on_landed(flight)
