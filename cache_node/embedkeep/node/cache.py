"""The path of a request through the tiers.

L1, then the flights of keys that are already on their way, then Valkey, then the embedder. Each
input is answered by the first that has it, in its own row, bit for bit as the embedder returned
it, or with an error of its own. Nothing here knows gRPC.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from embedkeep.config import NodeConfig
from embedkeep.errors import (
    DeadlineExceeded,
    EmbedderUnavailable,
    EmbedKeepError,
    InvalidInput,
    NotCached,
    Overloaded,
)
from embedkeep.keys import TAG_BYTES, Key
from embedkeep.node.admission import Admission, Urgency
from embedkeep.node.arena import Arena
from embedkeep.node.embedders import Embedders, Outcome, Work
from embedkeep.node.exchange import Answer, Request, check
from embedkeep.node.flights import Flights, Origin, Trip
from embedkeep.node.imports import Landings
from embedkeep.node.keytable import MISSING
from embedkeep.node.metrics import Metrics, Result
from embedkeep.node.space import Space
from embedkeep.node.tenants import Partition, Tenants
from embedkeep.node.tiers import Tier
from embedkeep.records import Entry
from embedkeep.v1 import embedder_pb2

ANSWER_MARGIN_S: Final = 0.05
"""Left of a deadline to send what is there; a fifth of it where it is short."""

_PURPOSES: Final = {
    Urgency.DEMAND: embedder_pb2.PURPOSE_DEMAND,
    Urgency.BULK: embedder_pb2.PURPOSE_BULK,
    Urgency.BACKGROUND: embedder_pb2.PURPOSE_WARM,
}

_SLOWEST: Final = (
    Result.ERROR, Result.EMBEDDER, Result.COALESCED, Result.VALKEY, Result.NOT_CACHED, Result.L1,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A request, and what was true when its keys were made."""

    request: Request
    tenant: Partition
    epoch: int
    space: Space


Missing = dict[Key, list[int]]
"""Keys that no tier has answered yet, each with the rows that wait for it."""


class Cache:
    """One node's tiers as a whole.

    Args:
        clock_ms: Unix time, ms; epochs are made from it.
    """

    def __init__(
        self,
        *,
        tenants: Tenants,
        embedders: Embedders,
        metrics: Metrics,
        config: NodeConfig,
        clock_ms: Callable[[], int],
    ) -> None:
        self._tenants = tenants
        self._embedders = embedders
        self._metrics = metrics
        self._limits = config.limits
        self._l1_bytes = config.l1_bytes
        self._ttl_s = config.valkey.ttl_s if config.valkey is not None else None
        self._imports = config.imports
        self._clock_ms = clock_ms
        self._admission = Admission(config.limits.max_pending_inputs, what="inputs")
        self._flights = Flights("trip")
        # A caller that wants a fresh vector must not be given one that was on its way before.
        self._fresh = Flights("fresh trip")
        self.landings = Landings()
        """What imports are about to store."""
        self._arena: Arena | None = None
        self.tier: Tier | None = None
        """Set once by the owner, before the first request; None: no Valkey."""
        self.space: Space | None = None
        """Which model's vectors are held; None: none was agreed yet."""
        metrics.pending.set_function(lambda: self._admission.total)
        metrics.entries.labels("l1").set_function(lambda: len(self._arena or ()))
        metrics.bytes.labels("l1").set_function(
            lambda: len(self._arena) * self._arena.slot_bytes if self._arena else 0
        )

    def adopt(self, space: Space) -> None:
        """Serve *space* from now on; what L1 held of another is dropped."""
        self.space = space
        self._arena = Arena(
            nbytes=self._l1_bytes,
            dimensions=space.dimensions,
            tenants=[partition.tag for partition in self._tenants.partitions],
            ttl_s=self._ttl_s,
        )

    async def close(self) -> None:
        """End what is on its way."""
        await self._flights.close()
        await self._fresh.close()

    async def answer(self, request: Request, tenant: Partition, *, timeout_s: float) -> Answer:
        """Answer every row with a vector or an error.

        Raises:
            EmbedderUnavailable: No embedder was ever seen, so there is nothing to serve.
            EmbedKeepError: Every row failed for the same reason, and not by its own fault.
        """
        started = time.perf_counter()
        wait_s = timeout_s - min(ANSWER_MARGIN_S, timeout_s / 5)
        space, arena = self._serving()
        asked = _Asked(request=request, tenant=tenant, epoch=tenant.epoch, space=space)
        answer = Answer.empty(len(request.texts), space, tenant.epoch)
        missing = self._look_up(asked, answer, arena)
        if missing and request.cached_only:
            await self._read_only(asked, answer, missing, wait_s)
        elif missing:
            await self._fly(asked, answer, missing, wait_s)
        self._count(answer, time.perf_counter() - started)
        if len(answer.errors) == len(request.texts):
            _raise_if_shared(list(answer.errors.values()))
        return answer

    async def forget(self, texts: Sequence[str], prompt: str, tenant: Partition) -> None:
        """Forget these texts under this prompt.

        Raises:
            EmbedderUnavailable: Nothing is served yet.
            Unavailable: Valkey was not told; this node has forgotten.
        """
        space = self.serving()
        make = tenant.keys(fingerprint=space.fingerprint, prompt=prompt).key
        keys = {make(text) for text in texts}
        self._drop(keys)
        try:
            if self.tier is not None:
                await self.tier.delete(list(keys))
                # Only now: a node that dropped them sooner could read them from Valkey again.
                tenant.forgotten = max(self._clock_ms(), tenant.forgotten + 1)
                await self.tier.share()
        finally:
            # A request that came while Valkey was deleting may have read the old entry.
            self._drop(keys)
        self._metrics.invalidations.inc()

    def forget_all(self, tenant: Partition) -> None:
        """Start a new epoch; the owner sees that other nodes hear of it."""
        tenant.epoch = max(self._clock_ms(), tenant.epoch + 1)
        self.epoch_moved(tenant)
        self._metrics.invalidations.inc()

    def epoch_moved(self, tenant: Partition) -> None:
        """Drop what L1 holds of a partition, and withdraw what is on its way."""
        if self._arena is not None:
            self._arena.remove_tenant(tenant.tag)
        self._withdraw(lambda key: key[TAG_BYTES : 2 * TAG_BYTES] == tenant.tag)

    def serving(self) -> Space:
        """Whose vectors are held.

        Raises:
            EmbedderUnavailable: No embedder was seen yet.
        """
        return self._serving()[0]

    async def present(self, keys: Sequence[Key], space: Space) -> set[Key]:
        """Those of *keys* that are cached, as far as can be told in time."""
        found = {key for key in keys if self._arena is not None and key in self._arena}
        rest = [key for key in keys if key not in found]
        for key, entry in zip(rest, await self._read(rest, space), strict=True):
            if entry is not None:
                found.add(key)
        return found

    async def store(
        self, entries: Mapping[Key, Entry], tenant: Partition, *, overwrite: bool
    ) -> int:
        """Keep entries that were brought: in Valkey, or in L1 where there is none.

        Returns:
            How many: without *overwrite*, what somebody else has stored meanwhile stays.

        Raises:
            Unavailable: Valkey has not acknowledged all of them.
            Overloaded: Valkey is too far behind; some may be stored.
        """
        if overwrite:
            self._drop(entries.keys())
        try:
            if self.tier is not None:
                return await self.tier.store(entries, overwrite=overwrite)
        finally:
            if overwrite:  # a request that came meanwhile may have read the old one
                self._drop(entries.keys())
        for key, entry in entries.items():
            self._put(key, entry, tenant)
        return len(entries)

    async def compute(self, work: Work, space: Space, *, urgency: Urgency) -> Sequence[Outcome]:
        """Have texts embedded, if there is room to wait for it; one outcome each, in order.

        Raises:
            Overloaded: Too much waits already.
            EmbedKeepError: See `Embedders.compute`.
        """
        count = len(work.texts)
        try:
            self._admission.enter(work.flow, count, urgency)
        except Overloaded:
            self._metrics.refused.inc(count)
            raise
        try:
            return await self._embedders.compute(work, space)
        finally:
            self._admission.leave(work.flow, count, urgency)

    def _serving(self) -> tuple[Space, Arena]:
        if self.space is None or self._arena is None:
            raise EmbedderUnavailable(
                "no embedder was seen yet, so there is nothing to serve", retry_after_s=1.0
            )
        return self.space, self._arena

    def _look_up(self, asked: _Asked, answer: Answer, arena: Arena) -> Missing:
        """Answer what L1 holds; the rest is missing. Does not wait."""
        request = asked.request
        keyspace = asked.tenant.keys(fingerprint=asked.space.fingerprint, prompt=request.prompt)
        texts, most = request.texts, self._limits.max_input_bytes
        for index, text in enumerate(texts):
            if error := check(text, most):
                answer.fail(index, error)
        indices = [index for index in range(len(texts)) if index not in answer.errors]
        keys = keyspace.keys(texts[index] for index in indices)
        if request.fresh:
            slots = np.full(len(keys), MISSING, np.int32)
        else:
            slots = arena.find(keys, now_s=self._clock_ms() // 1000)
        found = slots != MISSING
        hits = np.count_nonzero(found)
        if hits == len(keys):
            answer.take_hits(indices, arena.read(slots))
            return {}
        if hits:
            taken = np.flatnonzero(found).tolist()
            answer.take_hits([indices[at] for at in taken], arena.read(slots[found]))
        missing: Missing = {}
        for at in np.flatnonzero(~found).tolist():
            missing.setdefault(keys[at], []).append(indices[at])
        return missing

    async def _read_only(
        self, asked: _Asked, answer: Answer, missing: Missing, wait_s: float
    ) -> None:
        """Answer from Valkey or not at all.

        Nothing is kept in L1: no flight carries these keys, so an invalidation that comes
        meanwhile could not withdraw them.
        """
        entries = await self._read(list(missing), asked.space, timeout_s=wait_s)
        for indices, entry in zip(missing.values(), entries, strict=True):
            for index in indices:
                if entry is None:
                    answer.fail(index, NotCached("not cached, and only_if_cached was asked for"))
                else:
                    answer.take(index, entry, Result.VALKEY)

    async def _fly(self, asked: _Asked, answer: Answer, missing: Missing, wait_s: float) -> None:
        """Answer through flights, this request's or those of others."""
        texts = asked.request.texts
        boarding = (self._fresh if asked.request.fresh else self._flights).board(
            ((key, texts[indices[0]]) for key, indices in missing.items()),
            store=asked.request.store,
            carry=partial(self._carry, asked),
            urgency=asked.request.urgency,
        )
        try:
            await boarding.wait(wait_s)
        finally:
            boarding.leave()
        for flight, indices in zip(boarding.flights, missing.values(), strict=True):
            if flight.entry is None:
                error = flight.error or DeadlineExceeded("time was up before the answer was there")
                for index in indices:
                    answer.fail(index, error)
                continue
            repeats = Result.VALKEY if flight.origin is Origin.VALKEY else Result.COALESCED
            started = flight.origin is Origin.EMBEDDER and boarding.started(flight)
            answer.take(indices[0], flight.entry, Result.EMBEDDER if started else repeats)
            for index in indices[1:]:
                answer.take(index, flight.entry, repeats)

    async def _carry(self, asked: _Asked, trip: Trip) -> None:
        """Land the flights of one trip: from Valkey, then from an embedder."""
        flights = trip.flights
        if not asked.request.fresh:
            entries = await self._read([flight.key for flight in flights], asked.space)
            for flight, entry in zip(flights, entries, strict=True):
                if entry is not None:
                    if flight.store:
                        self._keep(flight.key, entry, asked)
                    flight.land(entry, Origin.VALKEY)
            flights = [flight for flight in flights if not flight.landed]
        if not flights:
            return
        request = asked.request
        work = Work(
            texts=[request.prompt + flight.text for flight in flights],
            purpose=_PURPOSES[request.urgency],
            flow=asked.tenant.tag,
            traceparent=request.traceparent,
        )
        outcomes = await self.compute(work, asked.space, urgency=request.urgency)
        for flight, outcome in zip(flights, outcomes, strict=True):
            if isinstance(outcome, Entry) and flight.store:
                kept = self._keep(flight.key, outcome, asked)
                if kept and self.tier is not None:
                    self.tier.write(flight.key, outcome)
            flight.land(outcome, Origin.EMBEDDER)

    async def _read(
        self, keys: Sequence[Key], space: Space, *, timeout_s: float = math.inf
    ) -> Sequence[Entry | None]:
        """What Valkey holds of *keys*, in their order, and may be answered."""
        if self.tier is None:
            return [None] * len(keys)
        entries = await self.tier.read(keys, dimensions=space.dimensions, timeout_s=timeout_s)
        if self._imports:
            return entries
        return [None if entry is None or entry.imported else entry for entry in entries]

    def _keep(self, key: Key, entry: Entry, asked: _Asked) -> bool:
        """Keep *entry* in L1, unless tenant or model have moved on; whether they have not."""
        current = asked.tenant.epoch == asked.epoch and self.space is asked.space
        if not current:
            return False
        self._put(key, entry, asked.tenant)
        return True

    def _put(self, key: Key, entry: Entry, tenant: Partition) -> None:
        if self._arena is not None:
            before = self._arena.evictions
            self._arena.put(key, entry, tenant.tag)
            self._metrics.evictions.labels("l1").inc(self._arena.evictions - before)

    def _drop(self, keys: AbstractSet[Key]) -> None:
        for key in keys:
            if self._arena is not None:
                self._arena.remove(key)
        self._withdraw(keys.__contains__)

    def _withdraw(self, concerns: Callable[[Key], bool]) -> None:
        for under_way in (self._flights, self._fresh, self.landings):
            under_way.withdraw(concerns)

    def _count(self, answer: Answer, seconds: float) -> None:
        metrics = self._metrics
        kinds = set(answer.results)
        for kind in kinds:
            metrics.lookups[kind].inc(answer.results.count(kind))
        metrics.latency[next(kind for kind in _SLOWEST if kind in kinds)].observe(seconds)
        metrics.saved.inc(answer.saved_ns / 1e9)
        metrics.saved_tokens.inc(answer.saved_tokens)


def _raise_if_shared(errors: Sequence[EmbedKeepError]) -> None:
    """Fail the call where every row failed alike and none is itself at fault."""
    first = errors[0]
    if isinstance(first, InvalidInput | NotCached):
        return
    if all(type(error) is type(first) for error in errors):
        raise first
