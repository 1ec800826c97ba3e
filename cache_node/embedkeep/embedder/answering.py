"""The wire side of an embedder, whatever computes behind it: checks requests, lays out answers.

A model that runs here (`embedkeep.embedder.service`) and somebody else's
(`embedkeep.embedder.upstream`) are served through it alike.
"""

import asyncio
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from embedkeep.config import Batching
from embedkeep.embedder.backends import Vectors
from embedkeep.embedder.lanes import Lane
from embedkeep.errors import (
    DeadlineExceeded,
    EmbedKeepError,
    InvalidInput,
    InvalidRequest,
    ModelDrift,
    NotBuilt,
    Unavailable,
    code_of,
)
from embedkeep.refusal import Context, refuse
from embedkeep.v1 import embedder_pb2 as pb
from embedkeep.v1 import embedder_pb2_grpc
from embedkeep.v1.embedder_pb2 import Purpose

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Embedder"].full_name

LANES: Final = {
    Purpose.PURPOSE_UNSPECIFIED: Lane.DEMAND,
    Purpose.PURPOSE_DEMAND: Lane.DEMAND,
    Purpose.PURPOSE_BULK: Lane.BULK,
    Purpose.PURPOSE_WARM: Lane.BACKGROUND,
    Purpose.PURPOSE_SHADOW: Lane.BACKGROUND,
    Purpose.PURPOSE_BACKGROUND: Lane.BACKGROUND,
}

_ROW_OVERHEAD_BYTES: Final = 64
"""Of an answer, an input, beside its vector: tokens, time, perhaps an error's text."""


class Answered(Protocol):
    """What became of the texts of one call, a row each."""

    @property
    def vectors(self) -> Vectors:
        """Shape (texts, dimensions); NaN where a row failed."""
        ...

    @property
    def token_counts(self) -> Sequence[int]:
        """Of each text, as far as the model read it; 0: not known."""
        ...

    @property
    def truncated(self) -> Sequence[int]:
        """Rows whose text was longer than the model reads."""
        ...

    @property
    def device_ns(self) -> Sequence[int]:
        """What each row has cost."""
        ...

    @property
    def errors(self) -> Mapping[int, EmbedKeepError]:
        """By row."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Time:
    """Of a caller's, seconds; infinite: it waits for ever."""

    left_s: float = math.inf
    """Until its call ends. Others may wait for the same call as whoever has it made."""
    patience_s: float = math.inf
    """How long the one waits who wants it now: what will not have its turn by then is refused at
    once."""


class Computer(Protocol):
    """A model that can be asked."""

    @property
    def described(self) -> pb.DescribeResponse:
        """What it computes; instance and max_inputs are filled in here."""
        ...

    async def compute(
        self, texts: Sequence[str], *, purpose: Purpose.ValueType, flow: bytes, time: Time
    ) -> Answered:
        """Compute *texts*, each not empty; failures of single ones stand in the answer.

        Args:
            time: Whoever calls this leaves when none is left.

        Raises:
            EmbedKeepError: Nothing could be computed.
        """
        ...


class Detokenizer(Protocol):
    """The model's own tokenizer, backwards."""

    def __call__(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """See `Backend.detokenize`. Blocks."""
        ...


class Answering(embedder_pb2_grpc.EmbedderServicer):
    """Answers UNAVAILABLE until there is a computer.

    Args:
        limits: Of a request.
        max_message_bytes: Requests are refused whose answer could be larger.
        waits_for: What is not there yet, for people.
    """

    def __init__(self, limits: Batching, *, max_message_bytes: int, waits_for: str) -> None:
        self.instance = os.urandom(16)
        """Tells this embedder's answers from those of any other."""
        self.computer: Computer | None = None
        """Set by the owner, once it can be asked."""
        self.detokenizer: Detokenizer | None = None
        """Set by the owner. None: what computes has no tokenizer that is known here."""
        self.waits_for = waits_for
        self._limits = limits
        self._max_message_bytes = max_message_bytes

    async def Embed(self, request: pb.ComputeRequest, context: Context) -> pb.ComputeResponse:  # noqa: N802  # the name is the wire's
        """Compute the vectors of a request."""
        try:
            return await self._embed(request, context.time_remaining())
        except EmbedKeepError as error:
            await refuse(context, error)

    async def Describe(  # noqa: N802  # as above
        self,
        request: pb.DescribeRequest,  # noqa: ARG002  # has no fields
        context: Context,
    ) -> pb.DescribeResponse:
        """Say what is computed here."""
        try:
            described = self._there().described
        except EmbedKeepError as error:
            await refuse(context, error)
        answer = pb.DescribeResponse(max_inputs=self._max_inputs(described), instance=self.instance)
        answer.MergeFrom(described)
        return answer

    async def Detokenize(  # noqa: N802  # as above
        self, request: pb.DetokenizeRequest, context: Context
    ) -> pb.DetokenizeResponse:
        """Say which texts have these token ids."""
        try:
            described = self._there().described
            if self.detokenizer is None:
                raise NotBuilt("this embedder has no tokenizer of its own")
            self._check(request, described)
        except EmbedKeepError as error:
            await refuse(context, error)
        rows = [row.ids for row in request.inputs]
        return pb.DetokenizeResponse(texts=await asyncio.to_thread(self.detokenizer, rows))

    def _there(self) -> Computer:
        if self.computer is None:
            raise Unavailable(self.waits_for, retry_after_s=1.0)
        return self.computer

    def _max_inputs(self, described: pb.DescribeResponse) -> int:
        fitting = self._max_message_bytes // (4 * described.dimensions + _ROW_OVERHEAD_BYTES)
        return max(1, min(self._limits.max_request_inputs, fitting))

    async def _embed(self, request: pb.ComputeRequest, time_s: float | None) -> pb.ComputeResponse:
        computer = self._there()
        self._check(request, computer.described)
        if request.purpose not in LANES:
            raise InvalidRequest(f"purpose {request.purpose} is unknown here")
        texts = list(request.inputs)
        asked = [index for index, text in enumerate(texts) if text]
        if not asked:
            return self._answer(request, asked, None, computer.described)
        try:
            async with asyncio.timeout(time_s):
                computed = await computer.compute(
                    [texts[index] for index in asked],
                    purpose=request.purpose,
                    flow=request.flow,
                    time=_time(time_s, request.patience_ms),
                )
        except TimeoutError as error:
            raise DeadlineExceeded("the caller's time was up") from error
        return self._answer(request, asked, computed, computer.described)

    def _check(
        self, request: pb.ComputeRequest | pb.DetokenizeRequest, described: pb.DescribeResponse
    ) -> None:
        if request.fingerprint and request.fingerprint != described.fingerprint:
            raise ModelDrift(
                f"this embedder's fingerprint is {described.fingerprint}, not {request.fingerprint}"
            )
        count, most = len(request.inputs), self._max_inputs(described)
        if not 1 <= count <= most:
            raise InvalidRequest(f"a request has 1 to {most} inputs, got {count}")

    def _answer(
        self,
        request: pb.ComputeRequest,
        asked: Sequence[int],
        computed: Answered | None,
        described: pb.DescribeResponse,
    ) -> pb.ComputeResponse:
        """Put the rows that were computed between those that were not asked for."""
        count = len(request.inputs)
        if computed is not None and len(asked) == count:
            vectors = computed.vectors
        else:
            vectors = np.full((count, described.dimensions), np.nan, np.float32)
        tokens, device_ns, truncated = [0] * count, [0] * count, []
        errors: dict[int, EmbedKeepError] = {
            index: InvalidInput("the text is empty", index=index)
            for index, text in enumerate(request.inputs)
            if not text
        }
        if computed is not None:
            if vectors is not computed.vectors:
                vectors[list(asked)] = computed.vectors
            for index, counted, spent in zip(
                asked, computed.token_counts, computed.device_ns, strict=True
            ):
                tokens[index], device_ns[index] = counted, spent
            truncated = [asked[row] for row in computed.truncated]
            errors |= {asked[row]: error for row, error in computed.errors.items()}
        return pb.ComputeResponse(
            vectors=vectors.astype("<f4", copy=False).tobytes(),
            dimensions=described.dimensions,
            tokens=tokens,
            device_ns=device_ns,
            truncated=truncated,
            errors=[
                pb.ComputeError(
                    index=index, code=code_of(error), reason=error.reason, message=str(error)
                )
                for index, error in sorted(errors.items())
            ],
            fingerprint=described.fingerprint,
            instance=self.instance,
        )


def _time(left_s: float | None, patience_ms: int) -> Time:
    left_s = math.inf if left_s is None else left_s
    return Time(left_s=left_s, patience_s=min(left_s, patience_ms / 1000 or math.inf))
