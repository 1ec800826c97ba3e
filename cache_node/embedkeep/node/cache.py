"""The path of a request through the tiers.

L1, then flights of keys that are on their way already, then Valkey, then flights of the request's
own (`trips`): to the node beside the key's owner where that is another one, then to the embedder.
Each input is answered by the first that has it, in its own row, bit for bit as the embedder
returned it, or with an error of its own. Nothing here knows gRPC.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Final

import numpy as np

from embedkeep.config import NodeConfig
from embedkeep.errors import (
    EmbedderUnavailable,
    EmbedKeepError,
    InvalidInput,
    NotCached,
)
from embedkeep.keys import TAG_BYTES, Key
from embedkeep.node.admission import Urgency
from embedkeep.node.credits import Credits
from embedkeep.node.embedders import Embedders, Outcome
from embedkeep.node.exchange import Answer, Asked, Request, faults
from embedkeep.node.flights import Boarding, wait_for
from embedkeep.node.forgetting import delete, start_epoch, tell
from embedkeep.node.imports import Landings
from embedkeep.node.keytable import MISSING, Slots
from embedkeep.node.memory import Memory
from embedkeep.node.metrics import Metrics, Result
from embedkeep.node.peers import Peers
from embedkeep.node.recorder import Recorder
from embedkeep.node.space import Space
from embedkeep.node.tenants import Partition, Tenants
from embedkeep.node.tiers import Tier
from embedkeep.node.trips import Hosted, Trips, ended
from embedkeep.records import Entry

ANSWER_MARGIN_S: Final = 0.05
"""Left of a deadline to send what is there; a fifth of it where it is short."""

_SLOWEST: Final = (
    Result.ERROR, Result.EMBEDDER, Result.COALESCED, Result.PEER, Result.VALKEY,
    Result.NOT_CACHED, Result.L1,
)  # fmt: skip


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
        self._metrics = metrics
        self._limits = config.limits
        self._clock_ms = clock_ms
        self._memory = Memory(tenants=tenants, metrics=metrics, config=config, clock_ms=clock_ms)
        self.adopt = self._memory.adopt
        self._trips = Trips(
            embedders=embedders,
            metrics=metrics,
            config=config,
            keep=self._memory.keep,
            learn=lambda asked, epoch: self.learn(asked.tenant, epoch=epoch, forgotten=0),
        )
        self.compute = self._trips.compute
        self.stay = self._trips.stay
        self.landings = Landings()
        """What imports are about to store."""
        self.tier: Tier | None = None
        """None: no Valkey."""
        self.peers: Peers | None = None
        """None: this node is alone."""
        self.recorder = (
            Recorder(
                config.history,
                tenants=tenants,
                metrics=metrics,
                clock_s=lambda: clock_ms() / 1000,
            )
            if config.history is not None
            else None
        )
        """None: no text is kept."""
        self.credits = Credits(metrics) if config.warmup is not None else None
        """None: nothing is warmed."""

    @property
    def space(self) -> Space | None:
        """Which model's vectors are held; None: none was agreed yet."""
        return self._memory.space

    def connect(self, tier: Tier, peers: Peers | None) -> None:
        """Use these from now on; called once by the owner, before the first request."""
        self.tier = self._trips.tier = tier
        self.peers = self._trips.peers = peers

    async def close(self) -> None:
        """End what is on its way."""
        await self._trips.close()

    async def answer(self, request: Request, tenant: Partition, *, timeout_s: float) -> Answer:
        """Answer every row with a vector or an error.

        Raises:
            EmbedderUnavailable: No embedder was ever seen, so there is nothing to serve.
            EmbedKeepError: Every row failed for the same reason, and not by its own fault.
        """
        started = time.perf_counter()
        wait_s = timeout_s - min(ANSWER_MARGIN_S, timeout_s / 5)
        space = self.serving()
        withdrawn = (tenant.epoch, tenant.forgotten)
        asked = Asked(request=request, tenant=tenant, epoch=tenant.epoch, space=space)
        answer = Answer.empty(len(request.texts), space, tenant.epoch)
        if missing := self._look_up(asked, answer):
            await self._await(asked, answer, missing, wait_s)
        self._count(answer, time.perf_counter() - started)
        # What was withdrawn while it was answered may have been this.
        if self.recorder is not None and withdrawn == (tenant.epoch, tenant.forgotten):
            _note(asked, answer, self.recorder)
        if len(answer.errors) == len(request.texts):
            _raise_if_shared(list(answer.errors.values()))
        return answer

    async def forget(self, texts: Sequence[str], prompt: str, tenant: Partition) -> None:
        """Forget these texts under this prompt.

        Raises:
            EmbedderUnavailable: Nothing is served yet.
            Unavailable: Not all of Valkey was told; this node has forgotten.
        """
        space = self.serving()
        make = tenant.keys(fingerprint=space.fingerprint, prompt=prompt).key
        keys = {make(text) for text in texts}
        self._drop(keys)
        try:
            if self.peers is not None:
                # What is on its way there must not be stored once it was deleted.
                await self.peers.withdraw(tenant.tag)
            if self.tier is not None:
                await delete(list(keys), tenant, self.tier, clock_ms=self._clock_ms)
        finally:
            # A request that came while Valkey was deleting may have read the old entry.
            self._drop(keys)
            if self.peers is not None:
                # So has one that came while another node was: this one's number hides that one's.
                self.epoch_moved(tenant)
        if self.recorder is not None and self.tier is not None:
            await self.recorder.forget(texts, prompt, tenant, self.tier)
        self._metrics.invalidations.inc()

    async def forget_all(self, tenant: Partition) -> None:
        """Forget all that was stored or asked for before, by a new epoch.

        Raises:
            Unavailable: Not all of Valkey was told; this node has forgotten.
        """
        self._metrics.invalidations.inc()
        start = partial(self._start_epoch, tenant)
        if self.tier is None:
            start()
        else:
            await start_epoch(tenant, self.tier, start=start)
            if self.recorder is not None:
                await self.recorder.forget(None, "", tenant, self.tier)

    async def withdraw(self, tenant: Partition) -> None:
        """A peer is about to delete texts of *tenant*: store nothing that is on its way here."""
        self.epoch_moved(tenant)
        if self.tier is not None:
            await self.tier.settle()

    def learn(self, tenant: Partition, *, epoch: int, forgotten: int) -> None:
        """A peer has said what it knows of a partition: take what it knows better."""
        if tenant.learn(epoch=epoch, forgotten=forgotten):
            self.epoch_moved(tenant)

    def host(
        self, request: Request, tenant: Partition, *, epoch: int, until_s: float = math.inf
    ) -> Hosted:
        """Answer a peer, from here alone.

        Args:
            request: Each text once.
            epoch: The peer's.
            until_s: How long it waits, on `time.perf_counter`.

        Raises:
            EmbedderUnavailable: Nothing is served yet.
        """
        space = self.serving()
        asked = Asked(request=request, tenant=tenant, epoch=tenant.epoch, space=space)
        named = partial(tenant.keys, fingerprint=space.fingerprint, prompt=request.prompt)
        found: dict[int, tuple[Outcome, Result]] = {
            index: (error, Result.ERROR)
            for index, error in faults(request.texts, self._limits.max_input_bytes).items()
        }
        indices = [index for index in range(len(request.texts)) if index not in found]
        keys = named().keys(request.texts[index] for index in indices)
        slots = self._find(keys, asked)
        at = np.flatnonzero(slots != MISSING).tolist()
        for place, entry in zip(at, self._memory.read(slots[at]), strict=True):
            found[indices[place]] = entry, Result.L1
        flying = {
            index: key for index, key in zip(indices, keys, strict=True) if index not in found
        }
        return Hosted(
            keys=named(epoch=epoch).keys(request.texts),
            found=found,
            flying=list(flying),
            boarding=self._trips.board_here(
                asked,
                [(key, request.texts[index]) for index, key in flying.items()],
                until_s=until_s,
            ),
        )

    def epoch_moved(self, tenant: Partition) -> None:
        """Drop what L1 holds of a partition, and withdraw what is on its way."""
        self._memory.drop_tenant(tenant.tag)
        if self.recorder is not None:
            self.recorder.drop(tenant)
        self._withdraw(lambda key: key[TAG_BYTES : 2 * TAG_BYTES] == tenant.tag)

    def serving(self) -> Space:
        """Whose vectors are held.

        Raises:
            EmbedderUnavailable: No embedder was seen yet.
        """
        if self.space is None:
            raise EmbedderUnavailable(
                "no embedder was seen yet, so there is nothing to serve", retry_after_s=1.0
            )
        return self.space

    def holds(self, key: Key) -> bool:
        """It is in this node's memory; no hit is counted."""
        return key in self._memory

    async def present(self, keys: Sequence[Key], space: Space) -> set[Key]:
        """Those of *keys* that are cached, as far as can be told in time."""
        held = set(filter(self.holds, keys))
        rest = [key for key in keys if key not in held]
        found = await self._trips.read(rest, space)
        return held.union(rest[place] for place in found.places)

    async def store(
        self, entries: Mapping[Key, Entry], tenant: Partition, *, overwrite: bool
    ) -> int:
        """Keep entries that were brought: in Valkey, or in L1 where there is none.

        Returns:
            How many: without *overwrite*, what somebody else has stored meanwhile stays.

        Raises:
            Unavailable: Valkey has not acknowledged all of them, or with *overwrite* not all other
                nodes will hear of them.
            Overloaded: Valkey is too far behind; some may be stored.
        """
        if overwrite:
            self._drop(entries.keys())
        try:
            if self.tier is not None:
                stored = await self.tier.store(entries, overwrite=overwrite)
                if overwrite:
                    await tell(tenant, self.tier, clock_ms=self._clock_ms)
                return stored
        finally:
            if overwrite:  # a request that came meanwhile may have read the old one
                self._drop(entries.keys())
                if self.peers is not None:
                    self.epoch_moved(tenant)  # as in `forget`
        for key, entry in entries.items():
            self._memory.put(key, entry, tenant.tag)
        return len(entries)

    def _look_up(self, asked: Asked, answer: Answer) -> Missing:
        """Answer what L1 holds; the rest is missing. Does not wait."""
        request = asked.request
        keyspace = asked.tenant.keys(fingerprint=asked.space.fingerprint, prompt=request.prompt)
        texts = request.texts
        for index, error in faults(texts, self._limits.max_input_bytes).items():
            answer.fail(index, error)
        indices = list(range(len(texts)))
        if answer.errors:
            indices = [index for index in indices if index not in answer.errors]
            texts = [texts[index] for index in indices]
        keys = keyspace.keys(texts)
        slots = self._find(keys, asked)
        found = slots != MISSING
        hits = np.count_nonzero(found)
        if hits == len(keys):
            answer.take_all(indices, self._memory.read(slots), Result.L1)
            return {}
        if hits:
            taken = np.flatnonzero(found).tolist()
            answer.take_all(
                [indices[at] for at in taken], self._memory.read(slots[found]), Result.L1
            )
        absent = np.flatnonzero(~found).tolist()
        missing: Missing = {keys[at]: [indices[at]] for at in absent}
        if len(missing) < len(absent):  # some text stands there twice
            missing = {key: [] for key in missing}
            for at in absent:
                missing[keys[at]].append(indices[at])
        return missing

    def _find(self, keys: Sequence[Key], asked: Asked) -> Slots:
        """Where L1 holds each key; nowhere where a fresh answer is wanted."""
        if asked.request.fresh:
            return np.full(len(keys), MISSING, np.int32)
        return self._memory.find(keys)

    async def _await(self, asked: Asked, answer: Answer, missing: Missing, wait_s: float) -> None:
        """Answer what flies already, then what Valkey holds, then the rest by flights of its own.

        A hit in Valkey never flies: a flight costs more than the read.
        """
        until_s = time.perf_counter() + wait_s
        request = asked.request
        boardings = [] if request.cached_only else self._trips.join(asked, missing)
        try:
            rest = missing
            if flying := {flight.key for boarding in boardings for flight in boarding.flights}:
                rest = {key: rows for key, rows in missing.items() if key not in flying}
            if rest and not request.fresh:
                rest = await self._read(asked, answer, rest, wait_s)
            if request.cached_only:
                _refuse(answer, rest)
            elif rest:
                texts = request.texts
                wanted = [(key, texts[rows[0]]) for key, rows in rest.items()]
                boardings += self._trips.board(asked, wanted, until_s=until_s)
            if boardings:
                await wait_for(boardings, max(until_s - time.perf_counter(), 0))
        finally:
            for boarding in boardings:
                boarding.leave()
        _land(answer, missing, boardings)

    async def _read(self, asked: Asked, answer: Answer, wanted: Missing, wait_s: float) -> Missing:
        """Answer what Valkey holds, and what lands while it is asked; returns the rest."""
        with self._trips.reads.open(wanted) as reading:
            keys = list(wanted)
            found = await self._trips.read(keys, asked.space, timeout_s=wait_s)
        hits = [keys[place] for place in found.places]
        if self.credits is not None:
            self.credits.note(hits, found.entries)
        if asked.request.store:
            self._memory.keep_all(hits, found.entries, asked, but=reading.withdrawn)
        waiting, entries = [wanted[key] for key in hits], found.entries
        rows = [row for mine in waiting for row in mine]
        if len(rows) > len(hits):  # some text stands there twice
            entries = entries.take([at for at, mine in enumerate(waiting) for _ in mine])
        answer.take_all(rows, entries, Result.VALKEY)
        if len(hits) == len(keys):
            return {}
        answered = set(hits)
        rest = {key: rows for key, rows in wanted.items() if key not in answered}
        for key in rest.keys() & reading.landed.keys():
            outcome, result = ended(reading.landed[key], started=False)
            answer.settle(rest.pop(key), outcome, result)
        return rest

    def _drop(self, keys: AbstractSet[Key]) -> None:
        self._memory.drop(keys)
        self._withdraw(keys.__contains__)

    def _start_epoch(self, tenant: Partition) -> None:
        tenant.epoch = max(self._clock_ms(), tenant.epoch + 1)
        self.epoch_moved(tenant)

    def _withdraw(self, concerns: Callable[[Key], bool]) -> None:
        for under_way in (self._trips, self.landings):
            under_way.withdraw(concerns)

    def _count(self, answer: Answer, seconds: float) -> None:
        metrics = self._metrics
        kinds = set(answer.results)
        for kind in kinds:
            metrics.lookups[kind].inc(answer.results.count(kind))
        metrics.latency[next(kind for kind in _SLOWEST if kind in kinds)].observe(seconds)
        metrics.saved.inc(answer.saved_ns / 1e9)
        metrics.saved_tokens.inc(answer.saved_tokens)


def _note(asked: Asked, answer: Answer, recorder: Recorder) -> None:
    """Have kept what a person has asked for; not jobs, nor what is not to be kept."""
    request = asked.request
    if request.urgency is not Urgency.DEMAND or not request.store or request.fresh:
        return
    texts = request.texts
    if answer.errors:
        failed = answer.errors
        texts = [
            text
            for index, text in enumerate(texts)
            if isinstance(failed.get(index), NotCached | None)
        ]
    recorder.note(texts, request.prompt, asked.tenant)


def _land(answer: Answer, missing: Missing, boardings: Sequence[Boarding]) -> None:
    """Answer with how the flights have ended."""
    for boarding in boardings:
        for flight in boarding.flights:
            outcome, result = ended(flight, started=boarding.started(flight))
            answer.settle(missing[flight.key], outcome, result)


def _refuse(answer: Answer, rest: Missing) -> None:
    """Say that these are in no tier, and are not to be computed."""
    for rows in rest.values():
        for row in rows:
            answer.fail(row, NotCached("not cached, and only_if_cached was asked for"))


def _raise_if_shared(errors: Sequence[EmbedKeepError]) -> None:
    """Fail the call where every row failed alike and none is itself at fault."""
    first = errors[0]
    if isinstance(first, InvalidInput | NotCached):
        return
    if all(type(error) is type(first) for error in errors):
        raise first
