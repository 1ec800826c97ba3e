"""A stand-in for a node at the wire, for what a real one does only by accident: faults, counts.

Its vectors are made from the text alone, so that a test knows each row's right value. Tests of
what a node really answers are in tests/integration/test_client_node.py.
"""

import hashlib
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer

import grpc
import numpy as np
from numpy.typing import NDArray

from embedkeep.errors import REASON_KEY, RETRY_KEY
from embedkeep.v1 import cache_pb2, cache_pb2_grpc
from support.clients import At
from support.fake_http import serve_http

DIMENSIONS = 8


def vector_of(text: str, *, model: str = "model-a") -> NDArray[np.float32]:
    """The right row for *text*, shape (8,)."""
    digest = hashlib.blake2b(f"{model}\0{text}".encode(), digest_size=DIMENSIONS).digest()
    return np.frombuffer(digest, dtype=np.uint8).astype(np.float32) - 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """How a call is refused."""

    code: grpc.StatusCode
    reason: str = ""
    retry_after_ms: int | None = None


@dataclass
class FakeNode(cache_pb2_grpc.EmbeddingCacheServicer):
    """Answers at once, unless told otherwise; counts what it sees."""

    max_inputs: int = 100
    max_input_bytes: int = 1000
    max_message_bytes: int = 64 << 10
    dimensions: int = DIMENSIONS
    """That Info tells; 0: no embedder was seen yet."""
    model: str = "model-a"
    epoch: int = 1
    refusals: deque[Refusal] = field(default_factory=deque)
    """Taken one a call, before anything else."""
    bad_texts: dict[str, tuple[int, str]] = field(default_factory=dict)
    """google.rpc.Code and reason of the row, by text; a Counter below bounds how often."""
    bad_times: Counter[str] = field(default_factory=Counter)
    """How often a bad text fails still; absent: always."""
    spoil: Callable[[cache_pb2.EmbedResponse], object] | None = None
    hold: threading.Event | None = None
    """Answers wait for it."""
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    requests: list[cache_pb2.EmbedRequest] = field(default_factory=list)
    invalidated: list[cache_pb2.InvalidateRequest] = field(default_factory=list)
    imports: list[cache_pb2.ImportRequest] = field(default_factory=list)
    infos: int = 0
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def Embed(  # noqa: N802  # the wire's name
        self, request: cache_pb2.EmbedRequest, context: grpc.ServicerContext
    ) -> cache_pb2.EmbedResponse:
        """Rows for all but the bad texts."""
        with self.lock:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            self.entered.release()
            if self.hold is not None:
                self.hold.wait(60)
            self._admit(context)
            self.requests.append(request)
            return self.answer(request)
        finally:
            with self.lock:
                self.in_flight -= 1

    def Info(  # noqa: N802
        self, request: cache_pb2.InfoRequest, context: grpc.ServicerContext
    ) -> cache_pb2.InfoResponse:
        """Limits and model."""
        del request
        self._admit(context)
        self.infos += 1
        return self.described()

    def Import(  # noqa: N802
        self, request: cache_pb2.ImportRequest, context: grpc.ServicerContext
    ) -> cache_pb2.ImportResponse:
        """Take all but the bad texts."""
        self._admit(context)
        self.imports.append(request)
        return self.took(request)

    def Invalidate(  # noqa: N802
        self, request: cache_pb2.InvalidateRequest, context: grpc.ServicerContext
    ) -> cache_pb2.InvalidateResponse:
        """Start another epoch for everything."""
        self._admit(context)
        self.invalidated.append(request)
        self.epoch += request.everything
        return cache_pb2.InvalidateResponse(epoch=self.epoch)

    def EmbedStream(  # noqa: N802
        self,
        request_iterator: Iterator[cache_pb2.EmbedStreamRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[cache_pb2.EmbedStreamResponse]:
        """The client does not use it."""
        del request_iterator
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "not by this stand-in")

    @property
    def texts(self) -> list[str]:
        """All texts that were asked for, in the order they came."""
        return [text for request in self.requests for text in request.inputs]

    def _admit(self, context: grpc.ServicerContext) -> None:
        self.metadata.append(dict(context.invocation_metadata()))
        with self.lock:
            refusal = self.refusals.popleft() if self.refusals else None
        if refusal is not None:
            trailing = [(REASON_KEY, refusal.reason)] if refusal.reason else []
            if refusal.retry_after_ms is not None:
                trailing.append((RETRY_KEY, str(refusal.retry_after_ms)))
            context.set_trailing_metadata(tuple(trailing))
            context.abort(refusal.code, f"planted {refusal.code.name}")

    def described(self) -> cache_pb2.InfoResponse:
        """What Info answers."""
        return cache_pb2.InfoResponse(
            version="0", model=f"org/{self.model}", aliases=["docs", "docs:query"],
            prompts=["query"], fingerprint=self.model, dimensions=self.dimensions, max_tokens=256,
            epoch=self.epoch, max_inputs=self.max_inputs, max_input_bytes=self.max_input_bytes,
            max_message_bytes=self.max_message_bytes, imports=True, min_cosine=0.9999,
            tiers=[cache_pb2.Tier(name="valkey", serving=False, message="paused")],
        )  # fmt: skip

    def answer(self, request: cache_pb2.EmbedRequest) -> cache_pb2.EmbedResponse:
        """What Embed answers."""
        size = request.view.dimensions or DIMENSIONS
        half = request.view.encoding == cache_pb2.ENCODING_FLOAT16
        response = cache_pb2.EmbedResponse(
            dimensions=size, fingerprint=self.model, epoch=self.epoch,
            encoding=cache_pb2.ENCODING_FLOAT16 if half else cache_pb2.ENCODING_FLOAT32,
            saved_device_seconds=0.25, spent_device_seconds=0.5,
        )  # fmt: skip
        rows = np.full((len(request.inputs), size), np.nan, dtype=np.float32)
        for index, text in enumerate(request.inputs):
            status, reason = self._verdict(text)
            response.statuses.append(status)
            if status:
                response.sources.append(cache_pb2.SOURCE_UNSPECIFIED)
                response.tokens.append(0)
                response.errors.add(index=index, code=status, reason=reason, message="planted")
                continue
            rows[index] = vector_of(text, model=self.model)[:size]
            response.sources.append(cache_pb2.SOURCE_L1)
            response.tokens.append(len(text))
            if len(text) > 500:
                response.truncated.append(index)
        response.vectors = rows.astype("<f2" if half else "<f4").tobytes()
        if self.spoil is not None:
            self.spoil(response)
        return response

    def took(self, request: cache_pb2.ImportRequest) -> cache_pb2.ImportResponse:
        """What Import answers."""
        verdicts = enumerate(map(self._verdict, request.inputs))
        errors = [
            cache_pb2.InputError(index=index, code=status, reason=reason, message="planted")
            for index, (status, reason) in verdicts
            if status
        ]
        count = len(request.inputs)
        return cache_pb2.ImportResponse(
            errors=errors, stored=0 if errors else count, sampled=1, worst_cosine=0.99995,
            fingerprint=self.model, epoch=self.epoch,
        )  # fmt: skip

    def _verdict(self, text: str) -> tuple[int, str]:
        if text not in self.bad_texts:
            return 0, ""
        if text in self.bad_times:
            self.bad_times[text] -= 1
            if self.bad_times[text] < 0:
                return 0, ""
        return self.bad_texts[text]


@contextmanager
def running(*nodes: FakeNode, again: Sequence[At] = ()) -> Iterator[list[At]]:
    """Serve *nodes* on loopback while the block runs; yields their places.

    Args:
        again: Where others were served before.
    """
    servers: list[grpc.Server] = []
    web: list[ThreadingHTTPServer] = []
    places: list[At] = []
    try:
        for number, node in enumerate(nodes):
            before = again[number] if again else At("0:0", http="0:0")
            server = grpc.server(ThreadPoolExecutor(16, "fake-node"), options=_SERVER_OPTIONS)
            cache_pb2_grpc.add_EmbeddingCacheServicer_to_server(node, server)
            port = server.add_insecure_port(f"127.0.0.1:{_port(before)}")
            server.start()
            servers.append(server)
            over_http = serve_http(node, _port(before.http))
            web.append(over_http)
            places.append(
                At(f"127.0.0.1:{port}", http=f"http://127.0.0.1:{over_http.server_address[1]}")
            )
        yield places
    finally:
        for node in nodes:
            if node.hold is not None:
                node.hold.set()
        for server in servers:
            server.stop(None).wait()
        for each in web:
            each.shutdown()
            each.server_close()


def _port(place: str) -> int:
    return int(place.rpartition(":")[2])


_SERVER_OPTIONS = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 1 << 20)]
