"""What an upstream computes: learned at the start, and looked at again while it is used.

Somebody else may put another model behind the same URL at any time. Vectors of two models in one
cache would be wrong answers, so nothing is asked later than a while after a look, or after a lost
connection without one. What changed ends the process: the next one describes what is there now,
and nodes refuse it.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import structlog

from embedkeep.config import ModelSpec, Upstream
from embedkeep.embedder import canaries
from embedkeep.embedder.backends import Vectors
from embedkeep.embedder.fingerprint import of_upstream
from embedkeep.embedder.upstream.failures import Failure, Kind, Names, refusal
from embedkeep.embedder.upstream.http import Http
from embedkeep.embedder.upstream.metrics import CANARIES, UpstreamMetrics
from embedkeep.embedder.upstream.pace import NEEDS_SOMEBODY
from embedkeep.embedder.upstream.wires import (
    Answer,
    Misfit,
    Terms,
    Wire,
    most_answer_bytes,
    read,
    wire,
)
from embedkeep.errors import EmbedderUnavailable, InvalidConfig
from embedkeep.v1 import embedder_pb2 as pb

log = structlog.stdlib.get_logger()

INFO_EVERY_S: Final = 30.0
"""An upstream that says what it runs is asked no later than this after it last said it."""
CANARIES_EVERY_S: Final = 600.0
"""One that does not say it embeds the canaries again: some hundred tokens."""

_MOST_DIMENSIONS: Final = 65_536
_NORMALIZED_WITHIN: Final = 1e-3
"""Vectors whose lengths are all that near to 1 are normalized: float16 is that coarse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What an upstream computes."""

    terms: Terms
    canaries: Vectors
    decimals: bool
    """It answers numbers in JSON, whatever it is asked for."""


class Look:
    """Looks at one upstream.

    Args:
        clock: Seconds.
    """

    def __init__(
        self,
        http: Http,
        upstream: Upstream,
        model: ModelSpec,
        *,
        metrics: UpstreamMetrics,
        clock: Callable[[], float],
    ) -> None:
        self.wire: Wire = wire(upstream, model=model.name)
        self.names = Names(url=http.named, key=http.key.named, model=upstream.model or model.name)
        self._http = http
        self._upstream = upstream
        self._model = model
        self._metrics = metrics
        self._clock = clock
        self._looking = asyncio.Lock()
        self._seen: Seen | None = None
        self._looked_s = 0.0
        self._failed_s = 0.0
        self._failure: Failure | None = None
        """Of the last look, at failed_s. None: it went well."""

    async def first(self) -> Seen | Failure:
        """What is there.

        Raises:
            InvalidConfig: It can never be used as the config says; names the field.
        """
        seen = await self._seen_now()
        if isinstance(seen, Failure):
            self._refuse_hopeless(seen)
            return seen
        asked, found = self._upstream.dimensions, seen.canaries.shape[1]
        if asked is not None and found != asked:
            raise InvalidConfig(
                f"{asked} were asked for, the upstream answers {found}: it cannot cut this model's"
                " vectors; leave it out",
                field="upstream.dimensions",
            )
        self._seen, self._looked_s = seen, self._clock()
        return seen

    async def look(self) -> Failure | None:
        """See `embedkeep.embedder.upstream.calls.Looker`."""
        if not self._due():
            return None
        came_s = self._clock()
        async with self._looking:
            if not self._due():
                return None
            if self._failure is None or self._failed_s < came_s:  # else it is this one's, too
                self._failure = _of_nobodys_input(await self._again())
                self._failed_s = self._clock()
            if self._failure is None:
                self._looked_s = self._failed_s
            return self._failure

    async def _again(self) -> Failure | None:
        """See that what is there is what was seen first."""
        if self._seen is None:
            raise RuntimeError("look() before first()")
        if self.wire.info_path is not None:
            terms = await self._terms()
            if isinstance(terms, Failure):
                return terms
            if terms.identity != self._seen.terms.identity:
                raise _changed(f"{dict(terms.identity)}, not {dict(self._seen.terms.identity)}")
            return None
        found = await self._canaries(self._seen.terms)
        if isinstance(found, Failure):
            return found
        if (worst := _worst_cosine(found.vectors, self._seen.canaries)) is not None:
            raise _changed(f"a canary lies at cosine {worst:.6f} from before")
        return None

    def distrust(self) -> None:
        """See `embedkeep.embedder.upstream.calls.Looker`."""
        self._looked_s = float("-inf")

    def describe(self, seen: Seen) -> pb.DescribeResponse:
        """As nodes hear it."""
        lengths = np.linalg.norm(seen.canaries.astype(np.float64), axis=1)
        return pb.DescribeResponse(
            fingerprint=of_upstream(
                [("protocol", self._upstream.protocol), *seen.terms.identity],
                revision=self._model.revision,
            ),
            model=self._model.name,
            revision=self._model.revision or "",
            dimensions=seen.canaries.shape[1],
            max_tokens=seen.terms.max_input_tokens or self._model.max_tokens or 0,
            normalized=bool((abs(lengths - 1) < _NORMALIZED_WITHIN).all()),
            backend=self._upstream.protocol,
            device="upstream",
            dtype=seen.terms.dtype,
            canaries=seen.canaries.astype("<f4").tobytes(),
            min_canary_cosine=canaries.MIN_UPSTREAM_COSINE,
        )

    def _due(self) -> bool:
        every_s = INFO_EVERY_S if self.wire.info_path is not None else CANARIES_EVERY_S
        return self._clock() - self._looked_s > every_s

    async def _seen_now(self) -> Seen | Failure:
        terms = await self._terms()
        if isinstance(terms, Failure):
            return terms
        found = await self._canaries(terms)
        if isinstance(found, Failure):
            return found
        return Seen(terms=terms, canaries=found.vectors, decimals=found.decimals)

    async def _terms(self) -> Terms | Failure:
        body = b""
        if (path := self.wire.info_path) is not None:
            reply = await self._http.get(path, most_bytes=most_answer_bytes(1, 0))
            if isinstance(reply, Failure):
                return reply
            body = reply.body
        try:
            return self.wire.terms(body)
        except Misfit as error:
            return Failure(kind=Kind.NONSENSE, said=f"{path}: {error}")

    async def _canaries(self, terms: Terms) -> Answer | Failure:
        """The canaries' vectors, in one request where it may be: batching is its own business."""
        most = self._upstream.max_batch_inputs or terms.max_inputs
        found: list[Answer] = []
        for texts in (canaries.TEXTS[at : at + most] for at in range(0, len(canaries.TEXTS), most)):
            answer = await self._embed(texts)
            if isinstance(answer, Failure):
                return answer
            found.append(answer)
        if len({each.vectors.shape[1] for each in found}) > 1:
            return Failure(kind=Kind.NONSENSE, said="canaries of several dimensions")
        return Answer(
            vectors=np.concatenate([each.vectors for each in found]),
            tokens=sum(each.tokens for each in found),
            decimals=any(each.decimals for each in found),
        )

    async def _embed(self, texts: Sequence[str]) -> Answer | Failure:
        reply = await self._http.post(
            self.wire.path,
            self.wire.body(texts),
            most_bytes=most_answer_bytes(len(texts), _MOST_DIMENSIONS),
        )
        if isinstance(reply, Failure):
            return reply
        answer = read(self.wire, reply.headers, reply.body, inputs=len(texts), dimensions=None)
        if isinstance(answer, Failure):
            return answer
        self._metrics.paid(CANARIES, answer.tokens)
        if not np.isfinite(answer.vectors).all():
            return Failure(kind=Kind.NONSENSE, said="NaN or infinity for a canary")
        return answer

    def _refuse_hopeless(self, failure: Failure) -> None:
        """Canaries are nobody's secret, so here the upstream's own words may be told."""
        words = f": {failure.words}" if failure.words else ""
        match failure.kind:
            case Kind.KEY:
                field = self._http.key.told_by
            case Kind.MODEL:
                named = self.wire.info_path is None
                field = "upstream.model" if named else "upstream.url"
            case Kind.REJECTED | Kind.NONSENSE | Kind.TOO_LONG | Kind.TOO_MANY:
                field = "upstream.url"
            case _:
                return
        said = refusal(failure, self.names, retry_after_s=0)
        raise InvalidConfig(f"{said}{words}", field=field)


def _of_nobodys_input(failure: Failure | None) -> Failure | None:
    """A canary that is refused is no reason to look for a bad input among others' texts."""
    if failure is None or failure.kind in NEEDS_SOMEBODY | {Kind.THROTTLED}:
        return failure
    return replace(failure, kind=Kind.FAILED, words="", suspect=None)


def _changed(how: str) -> EmbedderUnavailable:
    return EmbedderUnavailable(
        f"the upstream computes something else since it was looked at: {how}"
    )


def _worst_cosine(found: Vectors, before: Vectors) -> float | None:
    """None: near enough."""
    if found.shape != before.shape:
        return float("nan")
    a, b = found.astype(np.float64), before.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    worst = float((np.sum(a * b, axis=1) / np.where(lengths == 0, 1, lengths)).min())
    return None if worst >= canaries.MIN_UPSTREAM_COSINE else worst
