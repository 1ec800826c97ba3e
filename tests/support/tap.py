"""An embedder whose model is a counter: it speaks the real wire, and remembers all it returned.

Every computation returns other bits, even for the same text, so that a test sees which
computation an answer came from: component 0 and 1 are made of the text, 2 is the number of the
computation, the rest is filled from both.
"""

import asyncio
import hashlib
import struct
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import grpc
import numpy as np

from embedkeep.errors import Internal, InvalidRequest, ModelDrift, NotBuilt, Overloaded
from embedkeep.refusal import refuse
from embedkeep.v1 import embedder_pb2, embedder_pb2_grpc

DIMENSIONS = 8
DEVICE_NS = 1_000_000

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class Call:
    """One call to the model."""

    texts: list[str]
    purpose: int
    flow: bytes
    trace: dict[str, str | bytes] = field(default_factory=dict)
    """What W3C's Trace Context has beside the call."""


@dataclass(eq=False)
class Tap(embedder_pb2_grpc.EmbedderServicer):
    """What the model does, and what it did."""

    fingerprint: str = "tap"
    instance: bytes = b"tap-1"
    canary: float = 1.0
    """Turns the canary by this: 1 is the agreed one."""
    broken: set[str] = field(default_factory=set)
    """Texts that the model cannot embed."""
    overloaded: bool = False
    longest: int | None = None
    """Words that the model reads of a text. None: any number."""
    words: dict[tuple[int, ...], str] | None = None
    """Texts by their token ids. None: there is no tokenizer."""
    steady: bool = False
    """The same text gets the same bits each time, as from a real model on one device."""
    lie: Callable[[embedder_pb2.ComputeResponse], embedder_pb2.ComputeResponse] | None = None
    """Made of each honest answer: its fields that are set replace those. None: all is honest."""
    calls: list[Call] = field(default_factory=list)
    computed: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    """All vectors ever returned for each text."""
    born: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)
    """For each vector: the number of the call that computed it, as calls came, and its flow."""
    delays_s: Iterator[float] = field(default_factory=lambda: repeat(0.0))
    """How long each next call takes, seconds."""
    cancelled: int = 0
    cancellation: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a call was cancelled."""
    count: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Calls wait for it; open unless a test shuts it."""
    entered: asyncio.Queue[Call] = field(default_factory=asyncio.Queue)
    """Calls as they come."""

    def __post_init__(self) -> None:
        self.gate.set()

    def vector(self, text: str) -> bytes:
        """The next computation's vector."""
        self.count += not self.steady
        digest = hashlib.sha256(text.encode()).digest()
        seed = hashlib.sha256(self.instance + digest).digest()
        a, b = struct.unpack_from("<HH", digest)
        row = np.array([a / 65536, b / 65536, self.count], np.float32)
        fill = np.random.default_rng([*seed, self.count]).standard_normal(DIMENSIONS - 3)
        found = np.concatenate([row, fill.astype(np.float32)]).tobytes()
        self.computed[text].append(found)
        return found

    def _compute(self, text: str, number: int, flow: bytes) -> bytes:
        found = self.vector(text)
        self.born[found] = (number, flow)
        return found

    @property
    def texts(self) -> list[str]:
        """Every text computed, in order, with repeats."""
        return [text for call in self.calls for text in call.texts]

    async def Embed(  # noqa: N802 - the wire's name
        self, request: embedder_pb2.ComputeRequest, context: Context
    ) -> embedder_pb2.ComputeResponse:
        """Compute."""
        if request.fingerprint and request.fingerprint != self.fingerprint:
            await refuse(context, ModelDrift(f"this is {self.fingerprint}"))
        if self.overloaded:
            await refuse(context, Overloaded("the queue is full", retry_after_s=0.25))
        if not request.inputs:
            await refuse(context, InvalidRequest("no inputs"))
        metadata = dict(context.invocation_metadata() or ())
        trace = {name: value for name, value in metadata.items() if name.startswith("trace")}
        call = Call(list(request.inputs), request.purpose, request.flow, trace)
        self.calls.append(call)
        number = len(self.calls)
        self.entered.put_nowait(call)
        try:
            await asyncio.sleep(next(self.delays_s))
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            self.cancellation.set()
            raise
        nan = np.full(DIMENSIONS, np.nan, np.float32).tobytes()
        errors = [
            embedder_pb2.ComputeError(
                index=index, code=13, reason=Internal.reason, message="broken"
            )
            for index, text in enumerate(call.texts)
            if text in self.broken
        ]
        honest = embedder_pb2.ComputeResponse(
            vectors=b"".join(
                nan if text in self.broken else self._compute(text, number, call.flow)
                for text in call.texts
            ),
            dimensions=DIMENSIONS,
            tokens=[len(text.split()) + 2 for text in call.texts],
            device_ns=[DEVICE_NS] * len(call.texts),
            truncated=[
                index
                for index, text in enumerate(call.texts)
                if self.longest is not None and len(text.split()) > self.longest
            ],
            errors=errors,
            fingerprint=self.fingerprint,
            instance=self.instance,
        )
        return honest if self.lie is None else told(honest, self.lie(honest))

    async def Detokenize(  # noqa: N802 - the wire's name
        self, request: embedder_pb2.DetokenizeRequest, context: Context
    ) -> embedder_pb2.DetokenizeResponse:
        """Look ids up."""
        if self.words is None:
            await refuse(context, NotBuilt("no tokenizer"))
        assert self.words is not None
        return embedder_pb2.DetokenizeResponse(
            texts=[self.words.get(tuple(row.ids), "") for row in request.inputs]
        )

    async def Describe(  # noqa: N802 - the wire's name
        self, _request: embedder_pb2.DescribeRequest, _context: Context
    ) -> embedder_pb2.DescribeResponse:
        """Describe the counter as a model."""
        canary = np.zeros((1, DIMENSIONS), np.float32)
        canary[0, :2] = self.canary, np.sqrt(1 - self.canary**2)
        return embedder_pb2.DescribeResponse(
            fingerprint=self.fingerprint,
            model="tap",
            dimensions=DIMENSIONS,
            max_tokens=256,
            backend="tap",
            dtype="float32",
            max_inputs=4096,
            canaries=canary.tobytes(),
            min_canary_cosine=0.9999,
            instance=self.instance,
        )


def told(
    honest: embedder_pb2.ComputeResponse, lie: embedder_pb2.ComputeResponse
) -> embedder_pb2.ComputeResponse:
    """*honest* with the fields of *lie* in their place; an empty lie leaves no row."""
    fields = [field.name for field, _ in lie.ListFields()]
    for name in fields or ["vectors", "tokens", "device_ns"]:
        honest.ClearField(name)  # type: ignore[arg-type]  # its type names each field
    honest.MergeFrom(lie)
    return honest


@asynccontextmanager
async def serve_tap(tap: Tap, *, port: int = 0) -> AsyncIterator[int]:
    """Serve *tap*; yields the port."""
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", 64 << 20), ("grpc.so_reuseport", 0)]
    )
    embedder_pb2_grpc.add_EmbedderServicer_to_server(tap, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(None)
