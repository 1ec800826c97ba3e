"""The way to the embedders: one balanced channel, and the rule whose vectors may be taken."""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

import grpc
import numpy as np
from numpy.typing import NDArray

from embedkeep import tls
from embedkeep.channels import AsyncLines, Lines, lent
from embedkeep.config import EmbedderTarget
from embedkeep.errors import (
    EmbedderUnavailable,
    EmbedKeepError,
    InvalidResponse,
    ModelDrift,
    Retryable,
    Unavailable,
    from_call,
    from_wire,
)
from embedkeep.node.space import Space, drift, from_description
from embedkeep.node.trace import Trace
from embedkeep.records import Entry
from embedkeep.v1 import embedder_pb2, embedder_pb2_grpc

MESSAGE_BYTES = 64 << 20
MAX_INSTANCES = 256
"""Compared embedder processes remembered; beyond it the oldest is compared again."""
DESCRIBE_TRIES = 5
"""Calls are balanced, so asking for one process may reach another."""
DESCRIBE_TIMEOUT_S = 5.0
DRIFT_TRIES = 8
"""Calls for one computation while those that answer compute another space: the next call goes to
the next embedder, unless calls beside it shift the turn."""

_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.lb_policy_name", "round_robin"),
    # A restarted embedder is found again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A paused or unplugged peer is noticed while calls wait for it.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
]

Metadata = tuple[tuple[str, str], ...]

Outcome = Entry | EmbedKeepError
"""What became of one input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Inputs of one tenant for the model."""

    texts: Sequence[str]
    """Prompts resolved: exactly what the model reads."""
    purpose: embedder_pb2.Purpose.ValueType
    flow: bytes
    trace: Trace | None = None
    """Of the request that started it. None: it had none."""
    until_s: float = math.inf
    """How long whoever wants it now waits, on `time.perf_counter`; infinite: as long as a call
    may take."""

    @property
    def metadata(self) -> Metadata:
        """What goes beside the call."""
        return self.trace.metadata if self.trace is not None else ()


class Embedders:
    """The embedders of this cache, as one.

    Args:
        target: Where they are.
        on_drift: Told why an embedder is refused, and None when one was found the same.
    """

    def __init__(self, target: EmbedderTarget, *, on_drift: Callable[[str | None], None]) -> None:
        self._timeout_s = target.timeout_s
        self._on_drift = on_drift
        self._lines: AsyncLines[embedder_pb2_grpc.EmbedderAsyncStub] = Lines(
            partial(_dial, target),
            tls.FollowedCredentials(target.tls, tls.channel_credentials) if target.tls else None,
        )
        self._compared: dict[bytes, Space] = {}
        self._comparing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        for channel in self._lines.close():
            await channel.close()

    async def describe(self) -> Space:
        """The space of whichever embedder answers.

        Raises:
            EmbedderUnavailable: None answers.
            InvalidResponse: One answers nonsense.
        """
        return from_description(await self._describe())

    async def compute(self, work: Work, space: Space) -> list[Outcome]:
        """Embed; one outcome for each text, in order.

        A call that finds no embedder is tried once more, since another one may take it; one that
        finds an embedder of another space up to `DRIFT_TRIES` times in all. All tries together
        run for the target's timeout at most, whoever waits.

        Raises:
            EmbedderUnavailable: None answered.
            Overloaded: The embedder's queue is full, or takes longer than *work* says.
            ModelDrift: What answers does not compute *space*.
            InvalidResponse: The answer does not fit the question.
        """
        request = embedder_pb2.ComputeRequest(
            inputs=work.texts,
            purpose=work.purpose,
            flow=work.flow,
            fingerprint=space.fingerprint,
            patience_ms=patience_ms(work.until_s),
        )
        ends_s = asyncio.get_running_loop().time() + self._timeout_s
        try:
            async with asyncio.timeout_at(ends_s):
                response = await self._embed_in(space, request, ends_s, work.metadata)
        except TimeoutError as error:
            raise EmbedderUnavailable("no embedder answered in time") from error
        return outcomes(response, expected=len(work.texts), space=space, now_s=int(time.time()))

    async def detokenize(
        self, rows: Sequence[Sequence[int]], space: Space, *, timeout_s: float
    ) -> list[str]:
        """A text for each row of ids, of which the model's tokenizer makes that very row.

        Returns:
            In order; empty where there is none beyond doubt.

        Raises:
            NotBuilt: The embedder has no tokenizer.
            EmbedderUnavailable: None answered.
            ModelDrift: What answers has another model than *space*.
            InvalidResponse: The answer does not fit the question.
        """
        request = embedder_pb2.DetokenizeRequest(
            inputs=[embedder_pb2.TokenIds(ids=row) for row in rows], fingerprint=space.fingerprint
        )
        try:
            async with lent(self._lines) as stub:
                response = await stub.Detokenize(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _ours(error) from error
        if len(response.texts) != len(rows):
            raise InvalidResponse(
                f"the embedder answered {len(response.texts)} texts for {len(rows)} rows of ids"
            )
        return list(response.texts)

    async def _embed_in(
        self, space: Space, request: embedder_pb2.ComputeRequest, ends_s: float, metadata: Metadata
    ) -> embedder_pb2.ComputeResponse:
        """The answer of an embedder that computes *space*."""
        for _ in range(DRIFT_TRIES - 1):
            with contextlib.suppress(ModelDrift):
                return await self._embed_once(space, request, ends_s, metadata)
        return await self._embed_once(space, request, ends_s, metadata)

    async def _embed_once(
        self, space: Space, request: embedder_pb2.ComputeRequest, ends_s: float, metadata: Metadata
    ) -> embedder_pb2.ComputeResponse:
        try:
            response = await self._embed(request, ends_s, metadata)
        except ModelDrift as error:
            self._on_drift(str(error))
            raise
        await self._compare(response.instance, space)
        return response

    async def _embed(
        self, request: embedder_pb2.ComputeRequest, ends_s: float, metadata: Metadata
    ) -> embedder_pb2.ComputeResponse:
        clock = asyncio.get_running_loop().time
        try:
            async with lent(self._lines) as stub:
                return await stub.Embed(
                    request, timeout=max(0.0, ends_s - clock()), metadata=metadata
                )
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise _ours(error) from error
        try:
            async with lent(self._lines) as stub:
                return await stub.Embed(
                    request, timeout=max(0.0, ends_s - clock()), metadata=metadata
                )
        except grpc.aio.AioRpcError as error:
            raise _ours(error) from error

    async def _describe(self) -> embedder_pb2.DescribeResponse:
        try:
            async with lent(self._lines) as stub:
                return await stub.Describe(
                    embedder_pb2.DescribeRequest(), timeout=DESCRIBE_TIMEOUT_S
                )
        except grpc.aio.AioRpcError as error:
            raise _ours(error) from error

    async def _compare(self, instance: bytes, space: Space) -> None:
        """See that the process *instance* computes *space*, once for each process.

        Raises:
            ModelDrift: It does not.
            EmbedderUnavailable: It does not answer any more.
        """
        if self._compared.get(instance) == space:
            return
        async with self._comparing:
            for _ in range(DESCRIBE_TRIES):
                if self._compared.get(instance) == space:
                    return
                described = await self._describe()
                if why := drift(space, from_description(described)):
                    self._on_drift(why)
                    if described.instance == instance:
                        raise ModelDrift(why)
                    continue
                self._on_drift(None)
                self._compared[described.instance] = space
                while len(self._compared) > MAX_INSTANCES:
                    del self._compared[next(iter(self._compared))]
            if self._compared.get(instance) != space:
                raise EmbedderUnavailable("the embedder went away before it could be compared")


def patience_ms(until_s: float) -> int:
    """How long *until_s* is away, on `time.perf_counter`, as the wire says it; 0: for ever."""
    if until_s == math.inf:
        return 0
    return min(max(round((until_s - time.perf_counter()) * 1000), 1), 2**32 - 1)


def _dial(
    target: EmbedderTarget, trusted: grpc.ChannelCredentials | None
) -> "tuple[grpc.aio.Channel, embedder_pb2_grpc.EmbedderAsyncStub]":  # a name for types only
    options = [*_OPTIONS, *tls.channel_options(target.tls)]
    channel = (
        grpc.aio.insecure_channel(target.address, options)
        if trusted is None
        else grpc.aio.secure_channel(target.address, trusted, options)
    )
    return channel, embedder_pb2_grpc.EmbedderStub(channel)


def outcomes(
    response: embedder_pb2.ComputeResponse, *, expected: int, space: Space, now_s: int
) -> list[Outcome]:
    """Read an embedder's answer, trusting nothing.

    Raises:
        InvalidResponse: Lengths or dimensions do not fit.
    """
    shape = (expected, space.dimensions)
    if (
        len(response.vectors) != 4 * shape[0] * shape[1]
        or len(response.tokens) != expected
        or len(response.device_ns) != expected
    ):
        raise InvalidResponse(
            f"the embedder answered {len(response.vectors)} bytes, {len(response.tokens)} token "
            f"counts and {len(response.device_ns)} times for {expected} inputs of "
            f"{space.dimensions} dimensions"
        )
    rows: NDArray[np.float32] = np.frombuffer(response.vectors, "<f4").reshape(shape)
    finite = np.isfinite(rows.sum(axis=1, dtype=np.float64))
    cut = frozenset(response.truncated)
    failed = {error.index: error for error in response.errors}
    found: list[Outcome] = []
    for index, row in enumerate(rows):
        if error := failed.get(index):
            found.append(from_wire(error.code, error.reason, error.message))
        elif not finite[index]:
            found.append(InvalidResponse("the model returned NaN or infinity for this input"))
        else:
            found.append(
                Entry(
                    vector=row,
                    tokens=response.tokens[index],
                    truncated=index in cut,
                    device_ns=response.device_ns[index],
                    born_s=now_s,
                )
            )
    return found


def _ours(error: grpc.aio.AioRpcError) -> EmbedKeepError:
    """A failed call to the embedder, as one of our errors."""
    message = error.details() or error.code().name
    known = from_call(error.code(), dict(error.trailing_metadata() or ()), message)
    if isinstance(known, EmbedderUnavailable):
        return known  # one that answers, and says what it lacks
    gone = (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    )
    if isinstance(known, Unavailable) or error.code() in gone:
        after_s = known.retry_after_s if isinstance(known, Retryable) else None
        return EmbedderUnavailable(f"no embedder answers: {message}", retry_after_s=after_s)
    return known
