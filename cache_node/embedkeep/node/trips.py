"""How keys that memory misses are answered: who carries their flights, and from where.

Flights of two kinds keep a hop from going in circles. Those *here* end in this node's own reads
from Valkey and its own computations, and wait for nothing else. Those *away* are of keys that a
peer owns: they wait for the peer, and for flights here where it does not answer. A peer that asks
this node joins flights here alone, whatever either thinks of whose a key is.

A request reads Valkey before it boards. Only what a peer asks for is read by the flights here.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog

from embedkeep.config import NodeConfig
from embedkeep.errors import DeadlineExceeded, EmbedKeepError, InvalidResponse, Overloaded
from embedkeep.keys import Key
from embedkeep.node.admission import Admission, Stay, Urgency
from embedkeep.node.commands import Found
from embedkeep.node.embedders import Embedders, Outcome, Work, patience_ms
from embedkeep.node.exchange import Asked
from embedkeep.node.flights import Boarding, Flight, Flights, Origin, Reads, Trip
from embedkeep.node.hops import outcomes_of, request_of
from embedkeep.node.metrics import Metrics, Result
from embedkeep.node.peers import Peer, Peers
from embedkeep.node.space import Space
from embedkeep.node.tiers import Tier
from embedkeep.records import FLAG_IMPORTED, Entry
from embedkeep.v1 import embedder_pb2, peers_pb2

log = structlog.stdlib.get_logger()

Keep = Callable[[Key, Entry, Asked], bool]
"""Keeps an entry in memory, unless tenant or model have moved on; whether they have not."""

Wanted = Sequence[tuple[Key, str]]
"""Distinct keys with their texts."""

_PURPOSES: Final = {
    Urgency.DEMAND: embedder_pb2.PURPOSE_DEMAND,
    Urgency.BULK: embedder_pb2.PURPOSE_BULK,
    Urgency.BACKGROUND: embedder_pb2.PURPOSE_BACKGROUND,
}
_RESULTS: Final = {
    Origin.VALKEY: Result.VALKEY,
    Origin.PEER: Result.PEER,
    Origin.EMBEDDER: Result.EMBEDDER,
    Origin.COALESCED: Result.COALESCED,
}


class Trips:
    """Carries what is asked of one node, once for all who ask meanwhile.

    Args:
        keep: Where answers go.
        learn: Told what a peer knows of a partition's epoch.
    """

    def __init__(
        self,
        *,
        embedders: Embedders,
        metrics: Metrics,
        config: NodeConfig,
        keep: Keep,
        learn: Callable[[Asked, int], None],
    ) -> None:
        self._embedders = embedders
        self._metrics = metrics
        self._imports = config.imports
        self._keep = keep
        self._learn = learn
        self.stay: Final = Stay()
        """Of what a model or a peer was asked for."""
        self._admission = Admission(config.limits.max_pending_inputs, what="inputs", stay=self.stay)
        # A caller that wants a fresh vector must not be given one that was on its way before.
        self.reads: Final = Reads()
        """Of requests, before they board."""
        told, nobody = self.reads.landed, _tell_nobody  # who reads does not want it fresh
        self._here = {
            False: Flights("trip", on_landed=told),
            True: Flights("fresh trip", on_landed=nobody),
        }
        self._away = {
            False: Flights("hop", on_landed=told),
            True: Flights("fresh hop", on_landed=nobody),
        }
        self.tier: Tier | None = None
        self.peers: Peers | None = None
        metrics.pending.set_function(lambda: self._admission.total)

    async def close(self) -> None:
        """End what is on its way."""
        # Those away first: where a peer's answer is cut off, they would start flights here.
        for flights in (*self._away.values(), *self._here.values()):
            await flights.close()

    def withdraw(self, concerns: Callable[[Key], bool]) -> None:
        """Let no later request join the flights of such keys, and keep none of their answers."""
        for flights in (*self._away.values(), *self._here.values()):
            flights.withdraw(concerns)
        self.reads.withdraw(concerns)

    def join(self, asked: Asked, keys: Iterable[Key]) -> list[Boarding]:
        """Those flights of *keys* that are under way. Leave each when done waiting."""
        request = asked.request
        away, here = self._away[request.fresh], self._here[request.fresh]
        if not len(away) + len(here):
            return []
        keys = list(keys)
        owners = self._owners(keys)
        return [
            flights.join(wanted, store=request.store, urgency=request.urgency)
            for flights, wanted in (
                (away, owners),
                (here, [key for key in keys if key not in owners]),
            )
        ]

    def board(self, asked: Asked, wanted: Wanted, *, until_s: float = math.inf) -> list[Boarding]:
        """Flights for all of *wanted*, by whoever owns them. Leave each when done waiting.

        Valkey is not read again: whoever asks has seen to that.

        Args:
            until_s: How long the caller waits, on `time.perf_counter`. Others who join may wait
                longer.
        """
        owners = self._owners(key for key, _ in wanted)
        if not owners:
            return [self.board_here(asked, wanted, until_s=until_s, read=False)]
        request = asked.request
        away = self._away[request.fresh].board(
            [each for each in wanted if each[0] in owners],
            store=request.store,
            carry=partial(self._carry_away, asked, owners, until_s),
            urgency=request.urgency,
        )
        here = [each for each in wanted if each[0] not in owners]
        return [away, self.board_here(asked, here, until_s=until_s, read=False)]

    def board_here(
        self, asked: Asked, wanted: Wanted, *, until_s: float, read: bool = True
    ) -> Boarding:
        """Flights that this node ends by itself.

        Args:
            until_s: As of `board`.
            read: Look into Valkey first; a computation that is wanted fresh never does.
        """
        request = asked.request
        return self._here[request.fresh].board(
            wanted,
            store=request.store,
            carry=partial(self._carry_here if read else self._carry_computed, asked, until_s),
            urgency=request.urgency,
        )

    async def read(
        self, keys: Sequence[Key], space: Space, *, timeout_s: float = math.inf
    ) -> Found:
        """What Valkey holds of *keys*, and may be answered."""
        if self.tier is None:
            return Found.nothing(dimensions=space.dimensions)
        found = await self.tier.read(keys, dimensions=space.dimensions, timeout_s=timeout_s)
        if self._imports or not (brought := found.entries.marked(FLAG_IMPORTED)):
            return found
        return found.only(sorted(set(range(len(found.places))).difference(brought)))

    async def compute(self, work: Work, space: Space, *, urgency: Urgency) -> Sequence[Outcome]:
        """Have texts embedded, if there is room to wait for it; one outcome each, in order.

        Raises:
            Overloaded: Too much waits already.
            EmbedKeepError: See `Embedders.compute`.
        """
        with self._admitted(work.flow, len(work.texts), urgency):
            return await self._embedders.compute(work, space)

    @contextmanager
    def _admitted(self, tenant: bytes, count: int, urgency: Urgency) -> Iterator[None]:
        try:
            self._admission.enter(tenant, count, urgency)
        except Overloaded:
            self._metrics.refused.inc(count)
            raise
        began_s = time.perf_counter()
        try:
            yield
            self.stay.seen(time.perf_counter() - began_s)
        finally:
            self._admission.leave(tenant, count, urgency)

    def _owners(self, keys: Iterable[Key]) -> dict[Key, Peer]:
        """Whom to ask for those of *keys* that are a peer's."""
        if self.peers is None:
            return {}
        owner = self.peers.owner
        return {key: peer for key in keys if (peer := owner(key)) is not None}

    async def _carry_here(self, asked: Asked, until_s: float, trip: Trip) -> None:
        """Land the flights of one trip: from Valkey, then from an embedder."""
        if flights := await self._carry_read(asked, trip.flights):
            await self._compute(asked, flights, until_s)

    async def _carry_computed(self, asked: Asked, until_s: float, trip: Trip) -> None:
        """The same where Valkey was read just now."""
        await self._compute(asked, trip.flights, until_s)

    async def _carry_away(
        self, asked: Asked, owners: Mapping[Key, Peer], until_s: float, trip: Trip
    ) -> None:
        """Land the flights of one trip, each by its owner's node."""
        parts: dict[Peer, list[Flight]] = {}
        for flight in trip.flights:
            parts.setdefault(owners[flight.key], []).append(flight)
        async with asyncio.TaskGroup() as hops:
            for peer, flights in parts.items():
                hops.create_task(
                    self._hop(asked, peer, flights, until_s), name=f"hop to {peer.name}"
                )

    async def _carry_read(self, asked: Asked, flights: Sequence[Flight]) -> Sequence[Flight]:
        """Land what Valkey holds; returns the rest."""
        if asked.request.fresh:
            return flights
        found = await self.read([flight.key for flight in flights], asked.space)
        for place, entry in found.items():
            flight = flights[place]
            if flight.store:
                self._keep(flight.key, entry, asked)
            flight.land(entry, Origin.VALKEY)
        return [flight for flight in flights if not flight.landed]

    async def _compute(self, asked: Asked, flights: Sequence[Flight], until_s: float) -> None:
        """Land *flights* from an embedder."""
        request = asked.request
        work = Work(
            texts=[request.prompt + flight.text for flight in flights],
            purpose=_PURPOSES[request.urgency],
            flow=asked.tenant.tag,
            trace=request.trace,
            until_s=until_s,
        )
        outcomes = await self.compute(work, asked.space, urgency=request.urgency)
        for flight, outcome in zip(flights, outcomes, strict=True):
            if isinstance(outcome, Entry) and flight.store:
                kept = self._keep(flight.key, outcome, asked)
                if kept and self.tier is not None:
                    self.tier.write(flight.key, outcome)
            flight.land(outcome, Origin.EMBEDDER)

    async def _hop(
        self, asked: Asked, peer: Peer, flights: Sequence[Flight], until_s: float
    ) -> None:
        """Land *flights* by a peer, and here what it does not answer."""
        tag, urgency = asked.tenant.tag, asked.request.urgency
        try:
            with self._admitted(tag, len(flights), urgency):
                try:
                    carried = await peer.carry(
                        request_of(asked, flights, patience_ms=patience_ms(until_s)),
                        trace=asked.request.trace,
                    )
                    self._land(asked, flights, carried)
                except InvalidResponse as error:
                    log.warning("a peer answered nonsense", name=peer.name, why=str(error))
                except EmbedKeepError:
                    pass  # counted and logged where it is known what it means
            if rest := [flight for flight in flights if not flight.landed]:
                await self._carry_instead(asked, rest, until_s)
        except EmbedKeepError as error:
            for flight in flights:
                flight.land(error, Origin.EMBEDDER)

    def _land(self, asked: Asked, flights: Sequence[Flight], carried: peers_pb2.Carried) -> None:
        """Land what a peer has answered.

        Raises:
            InvalidResponse: It does not fit what was asked; nothing is landed.
        """
        # Before anything is kept: under an older epoch nothing is any more.
        self._learn(asked, carried.epoch)
        keys = [flight.key for flight in flights]
        found = outcomes_of(carried, keys, dimensions=asked.space.dimensions, imports=self._imports)
        for flight, ended in zip(flights, found, strict=True):
            if ended is None:
                continue
            outcome, origin = ended
            if isinstance(outcome, Entry) and flight.store:
                self._keep(flight.key, outcome, asked)
            flight.land(outcome, origin)

    async def _carry_instead(self, asked: Asked, flights: Sequence[Flight], until_s: float) -> None:
        """Land *flights* here, together with whatever carries the same keys here already."""
        boarding = self.board_here(
            asked,
            [(flight.key, flight.text) for flight in flights],
            until_s=until_s,
            read=False,
        )
        try:
            await boarding.wait(None)
        finally:
            boarding.leave()
        for flight, here in zip(flights, boarding.flights, strict=True):
            joined = here.origin is Origin.EMBEDDER and not boarding.started(here)
            outcome, _ = ended(here, started=True)
            flight.land(outcome, Origin.COALESCED if joined else here.origin)


def _tell_nobody(_flight: Flight) -> None:
    pass


def ended(flight: Flight, *, started: bool) -> tuple[Outcome, Result]:
    """How a flight has ended for one who waited until its time was up.

    Args:
        started: It was this one who set it off.
    """
    if flight.entry is None:
        late = DeadlineExceeded("time was up before the answer was there")
        return flight.error or late, Result.ERROR
    result = _RESULTS[flight.origin]
    return flight.entry, result if started or result is not Result.EMBEDDER else Result.COALESCED


@dataclass(slots=True, kw_only=True)
class Hosted:
    """What a peer waits for here. Leave it when done waiting."""

    keys: Sequence[Key]
    """One a text, as the peer knows them."""
    found: dict[int, tuple[Outcome, Result]] = field(default_factory=dict)
    """What was there at once, by index."""
    flying: Sequence[int]
    """Indices of the others, in the order of the flights."""
    boarding: Boarding

    @property
    def landed(self) -> bool:
        """All are answered."""
        return self.boarding.landed

    async def wait(self, timeout_s: float) -> None:
        """Wait until all are answered, or time is up."""
        await self.boarding.wait(timeout_s)

    def leave(self) -> None:
        """Stop waiting."""
        self.boarding.leave()

    def outcomes(self) -> list[tuple[Outcome, Result]]:
        """What became of each text, in order."""
        found = self.found | {
            index: ended(flight, started=self.boarding.started(flight))
            for index, flight in zip(self.flying, self.boarding.flights, strict=True)
        }
        return [found[index] for index in range(len(self.keys))]
