"""Vectors that callers bring: checked against the model by a sample, then kept like computed ones.

An import may put into its tenant's part of the cache what every caller of that tenant will read,
which no other call can. So it is taken only where the resource allows it, a batch at a time: rows
that no model can have returned refuse it, then a random sample of what would be stored is computed,
on the books as a shadow check, and one row that differs refuses it too. What is kept says that it
was imported, and answers say so.

Nothing goes to L1 while there is a Valkey: an import would push out what is asked for now.
"""

import asyncio
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from embedkeep import pairs
from embedkeep.config import NodeConfig
from embedkeep.errors import (
    DeadlineExceeded,
    EmbedKeepError,
    InvalidRequest,
    InvalidVector,
    Retryable,
)
from embedkeep.keys import Key
from embedkeep.node.admission import Urgency
from embedkeep.node.embedders import Work
from embedkeep.node.exchange import check
from embedkeep.node.metrics import Metrics
from embedkeep.node.space import Space
from embedkeep.node.tenants import Partition
from embedkeep.records import Entry
from embedkeep.v1 import embedder_pb2

if TYPE_CHECKING:
    from embedkeep.node.cache import Cache  # which knows of imports under way

MAX_NAMED: Final = 32
"""Rows at fault that are named; one is enough to refuse the batch."""

Draw = Callable[[Sequence[Key], int], Sequence[Key]]
"""So many of them, at random."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """One batch of one tenant."""

    texts: Sequence[str]
    prompt: str
    """Resolved, not a name."""
    vectors: NDArray[np.float32]
    """Shape (texts, the model's dimensions)."""
    tokens: Sequence[int]
    """One a text; 0: not known."""
    truncated: frozenset[int] = frozenset()
    """Indices of texts that the model is known not to read to their end."""
    overwrite: bool = False
    dry_run: bool = False


@dataclass(slots=True, kw_only=True)
class Taken:
    """What became of a batch."""

    space: Space
    epoch: int
    """The tenant's when the batch was read."""
    errors: dict[int, EmbedKeepError] = field(default_factory=dict)
    """Why rows were refused, by index. Where there is one, nothing was kept."""
    stored: int = 0
    present: int = 0
    withdrawn: int = 0
    sampled: int = 0
    worst_cosine: float = 0.0
    spent_ns: int = 0


class Landings:
    """Keys that imports are about to store, so that an invalidation can withdraw them."""

    def __init__(self) -> None:
        self._open: list[dict[Key, int]] = []

    @contextmanager
    def open(self, rows: Mapping[Key, int]) -> Iterator[dict[Key, int]]:
        """While the block runs; what is withdrawn meanwhile is missing from what it is given."""
        mine = dict(rows)
        self._open.append(mine)
        try:
            yield mine
        finally:
            self._open = [each for each in self._open if each is not mine]

    def withdraw(self, concerns: Callable[[Key], bool]) -> None:
        """Store no such key of those that are not stored yet."""
        for rows in self._open:
            for key in [key for key in rows if concerns(key)]:
                del rows[key]


class Importer:
    """Takes batches in.

    Args:
        draw: Chooses the sample; nobody who sends a batch may foresee it.
    """

    def __init__(
        self, *, cache: "Cache", config: NodeConfig, metrics: Metrics, draw: Draw | None = None
    ) -> None:
        self._cache = cache
        self._limits = config.limits
        self._allowed = config.imports
        self._metrics = metrics
        self._draw = draw or random.SystemRandom().sample

    async def take(self, batch: Pairs, tenant: Partition, *, timeout_s: float) -> Taken:
        """Check *batch*, and keep it where nothing speaks against it.

        Raises:
            InvalidRequest: Imports are not allowed.
            EmbedderUnavailable: Nothing is served yet, or no embedder checks the sample.
            Unavailable: Not all is known to be stored. What is will be found there again.
            Overloaded: Valkey or the embedder is too far behind.
            DeadlineExceeded: Not all in time.
        """
        if not self._allowed:
            raise InvalidRequest(
                "this cache takes no imports; spec.security.imports: true allows them"
            )
        space = self._cache.serving()
        taken = Taken(space=space, epoch=tenant.epoch)
        try:
            async with asyncio.timeout(timeout_s):
                await self._take(batch, tenant, taken)
        except TimeoutError as error:
            raise DeadlineExceeded("time was up before all was stored") from error
        self._count(taken)
        return taken

    async def _take(self, batch: Pairs, tenant: Partition, taken: Taken) -> None:
        taken.errors = self._faults(batch, taken.space)
        if taken.errors:
            return
        make = tenant.keys(fingerprint=taken.space.fingerprint, prompt=batch.prompt).key
        rows: dict[Key, int] = {}
        for index, text in enumerate(batch.texts):
            rows.setdefault(make(text), index)
        # From here on, so that no invalidation goes by unseen.
        with self._cache.landings.open(rows) as landing:
            if not batch.overwrite:
                for key in await self._cache.present(list(rows), taken.space):
                    landing.pop(key, None)
                    del rows[key]
            taken.present = len(batch.texts) - len(rows)
            if not rows:
                return
            entries = await self._checked(batch, tenant, rows, taken)
            if taken.errors or batch.dry_run:
                taken.stored = 0 if taken.errors else len(rows)
                return
            if self._cache.space is not taken.space:
                landing.clear()
            taken.withdrawn = len(rows) - len(landing)
            kept = {key: entries[index] for key, index in landing.items()}
            taken.stored = await self._cache.store(kept, tenant, overwrite=batch.overwrite)
            taken.present += len(kept) - taken.stored

    def _faults(self, batch: Pairs, space: Space) -> dict[int, EmbedKeepError]:
        """Rows that cannot be what the model returned, without asking it."""
        found: dict[int, EmbedKeepError] = {}
        for index, text in enumerate(batch.texts):
            if error := check(text, self._limits.max_input_bytes):
                found[index] = error
        wrong = pairs.faults(
            batch.vectors, normalized=space.normalized, min_cosine=space.min_canary_cosine
        )
        for index, why in wrong.items():
            found.setdefault(index, InvalidVector(why))
        return dict(sorted(found.items())[:MAX_NAMED])

    async def _checked(
        self, batch: Pairs, tenant: Partition, rows: Mapping[Key, int], taken: Taken
    ) -> dict[int, Entry]:
        """The entries of *rows*, by index; empty, with errors in *taken*, where the sample differs.

        What computing a row has cost elsewhere is not known: it is taken to be what the sample has
        cost here, by length.
        """
        limits = self._limits
        least = max(limits.import_sample_min, math.ceil(len(rows) * limits.import_sample_ratio))
        count = min(least, len(rows))
        sample = sorted(rows[key] for key in self._draw(list(rows), count))
        texts = [batch.texts[index] for index in sample]
        work = Work(
            texts=[batch.prompt + text for text in texts],
            purpose=embedder_pb2.PURPOSE_SHADOW,
            flow=tenant.tag,
        )
        outcomes = await self._cache.compute(work, taken.space, urgency=Urgency.BULK)
        computed: list[Entry] = []
        for index, outcome in zip(sample, outcomes, strict=True):
            if isinstance(outcome, Retryable):
                raise outcome
            if isinstance(outcome, Entry):
                computed.append(outcome)
            else:
                taken.errors[index] = outcome
        taken.sampled = len(sample)
        taken.spent_ns = sum(entry.device_ns for entry in computed)
        if taken.errors:
            return {}
        given = batch.vectors[sample]
        seen = np.stack([entry.vector for entry in computed])
        taken.worst_cosine = float(pairs.cosines(given, seen).min())
        wrong = pairs.differences(given, seen, min_cosine=taken.space.min_canary_cosine)
        if wrong:
            taken.errors = {sample[at]: InvalidVector(why) for at, why in wrong.items()}
            return {}
        cost = Cost.of(texts, computed, max_tokens=taken.space.max_tokens)
        known = dict(zip(sample, computed, strict=True))
        born_s = max(entry.born_s for entry in computed)
        return {
            index: replace(known[index], vector=batch.vectors[index], imported=True)
            if index in known
            else Entry(
                vector=batch.vectors[index],
                tokens=batch.tokens[index],
                truncated=index in batch.truncated,
                device_ns=cost.device_ns(batch.texts[index]),
                born_s=born_s,
                imported=True,
            )
            for index in rows.values()
        }

    def _count(self, taken: Taken) -> None:
        counts = self._metrics.imported
        counts["stored"].inc(taken.stored)
        counts["present"].inc(taken.present)
        counts["withdrawn"].inc(taken.withdrawn)
        counts["refused"].inc(len(taken.errors))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What texts cost to compute, as a sample has shown."""

    ns_per_byte: float
    max_bytes: float
    """About as much as the model reads of a text."""

    @classmethod
    def of(cls, texts: Sequence[str], computed: Sequence[Entry], *, max_tokens: int) -> "Cost":
        """From *texts* and what they became; there is at least one."""
        nbytes = sum(len(text.encode()) for text in texts)
        tokens = sum(entry.tokens for entry in computed)
        return cls(
            ns_per_byte=sum(entry.device_ns for entry in computed) / nbytes,
            max_bytes=max_tokens * nbytes / tokens if tokens and max_tokens else math.inf,
        )

    def device_ns(self, text: str) -> int:
        """Of *text*."""
        return round(self.ns_per_byte * min(len(text.encode()), self.max_bytes))
