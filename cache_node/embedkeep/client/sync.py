"""The client for threads: only I/O; every decision is in `exchange` and `embedding`."""

import queue
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self, Unpack, cast

import grpc
import numpy as np
from numpy.typing import NDArray

from embedkeep.channels import CLOSED, Line, Lines
from embedkeep.client.core import Core
from embedkeep.client.dialling import channel_options, credentials, target_of
from embedkeep.client.exchange import Exchange, Metadata, Request, Response, Transmit
from embedkeep.client.options import (
    PLAIN,
    Ask,
    ClientOptions,
    EmbedOptions,
    ImportAsk,
    ImportOptions,
    Options,
)
from embedkeep.client.results import CacheInfo, ClientStats, Embedded, Imported
from embedkeep.client.wire import error_of
from embedkeep.errors import Unavailable
from embedkeep.v1 import cache_pb2, cache_pb2_grpc

if TYPE_CHECKING:
    from embedkeep.config import ClientTls  # see options


class _Pending(Protocol):
    """What is used of a gRPC future, whose own type takes no parameter at run time."""

    def add_done_callback(self, fn: Callable[[object], None]) -> None: ...
    def cancel(self) -> bool: ...
    def exception(self) -> Exception | None: ...
    def result(self) -> Response: ...


class _Method(Protocol):
    """One of the stub's methods; each is only given the request it is for."""

    def __call__(self, request: Request, *, timeout: float, metadata: Metadata) -> Response: ...
    def future(self, request: Request, *, timeout: float, metadata: Metadata) -> _Pending: ...


_Line = Line[grpc.Channel, cache_pb2_grpc.EmbeddingCacheStub]


class _Flying(NamedTuple):
    """A request under way, and what it goes over."""

    call: _Pending
    line: _Line


class Client:
    """Embeds texts through a cache. Safe between threads; one is enough for a process.

    It connects with the first call and keeps one connection to each node. gRPC does not survive
    a fork: let each worker make its own client, or at least make no call before forking.

    Args:
        target: ``host:port``; ``dns:///name:port``, balanced over all nodes behind the name; or
            several addresses of the same IP version, as a list or with commas between them.
        **options: See `Options`.

    Raises:
        InvalidConfig: The target is no address, an option is out of range, the API key or a
            certificate cannot be read.
    """

    def __init__(self, target: str | Sequence[str], **options: Unpack[ClientOptions]) -> None:
        self._target = target_of(target)
        self._options = Options(**options)
        self._core = Core(self._options)
        tls = self._options.tls
        self._lines = Lines(partial(_dial, self._target, tls), credentials(tls))

    def embed(self, texts: Sequence[str] | str, **how: Unpack[EmbedOptions]) -> NDArray[np.float32]:
        """Embed *texts*: shape [n, d], float32, rows in their order. One string is a batch of one.

        Calls of any length are cut into requests that the node takes.

        Args:
            texts: Sent exactly as they are: nothing is trimmed or normalized.
            **how: See `Ask`.

        Raises:
            InvalidRequest: No texts, or an option out of range.
            InvalidInput: A text that no request can carry; carries its index. Nothing was sent.
            PartialFailure: Some texts failed; carries their errors and the other rows.
            EmbedKeepError: The call failed, or all texts did: see `embedkeep.errors`.
        """
        detailed = self._embed(texts, Ask(**how) if how else PLAIN, strict=True)
        detailed.raise_failures()
        return detailed.vectors

    def embed_detailed(self, texts: Sequence[str] | str, **how: Unpack[EmbedOptions]) -> Embedded:
        """Embed *texts* and tell all about it; texts that fail stand in the result.

        Raises:
            InvalidRequest: No texts, or an option out of range.
            EmbedKeepError: The call failed as a whole.
        """
        return self._embed(texts, Ask(**how) if how else PLAIN, strict=False)

    def invalidate(
        self,
        texts: Sequence[str] | str,
        *,
        prompt: str | None = None,
        model: str | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Forget *texts* under *prompt*; returns the tenant's epoch. Also empties the near cache.

        Raises:
            EmbedKeepError: It is not known to be done.
        """
        return self._invalidate(texts, Ask(prompt=prompt, model=model, timeout_s=timeout_s))

    def invalidate_all(self, *, model: str | None = None, timeout_s: float | None = None) -> int:
        """Forget all of the caller's entries; returns the new epoch. Also empties the near cache.

        Raises:
            EmbedKeepError: It is not known to be done.
        """
        return self._invalidate(None, Ask(model=model, timeout_s=timeout_s))

    def import_pairs(
        self, texts: Sequence[str], vectors: NDArray[np.float32], **how: Unpack[ImportOptions]
    ) -> Imported:
        """Have the cache keep *vectors* that the model has returned for *texts* elsewhere.

        Each request's rows are checked by the node: by themselves, and against the model by a
        random sample. Where one is refused, nothing of its request is kept; of a longer call,
        which is cut into requests, others may be.

        Args:
            texts: Exactly as they were embedded, without their prompt.
            vectors: Shape [n, d], float32: the model's full output, not cut or scaled.
            **how: See `ImportAsk`.

        Raises:
            InvalidRequest: Shapes do not fit, or the cache takes no imports.
            InvalidInput: A text that the model does not take; carries its index.
            InvalidVector: A vector that is not what the model returns; carries its index.
            ModelDrift: The cache's model is not the one asked for.
            EmbedKeepError: Not all is known to be stored; the same call again finds what is.
        """
        exchange = self._core.importing(texts, vectors, ImportAsk(**how))
        self._drive(exchange)
        return exchange.result()

    def info(self, *, timeout_s: float | None = None) -> CacheInfo:
        """What the cache serves, and how the node that answers is doing.

        Raises:
            EmbedKeepError: No answer.
        """
        exchange = self._core.info(timeout_s)
        self._drive(exchange)
        return exchange.result()

    @property
    def stats(self) -> ClientStats:
        """What this client has done so far."""
        return self._core.stats

    def close(self) -> None:
        """Close the connections; a second close does nothing.

        Calls under way raise Unavailable, those begun later RuntimeError.
        """
        for channel in self._lines.close():
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if (lines := getattr(self, "_lines", None)) is not None and lines.dialled:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        return f"Client({self._target!r}, {self._options!r})"

    def _embed(self, texts: Sequence[str] | str, ask: Ask, *, strict: bool) -> Embedded:
        exchange = self._core.embedding(texts, ask, strict=strict, near=not self._lines.closed)
        if isinstance(exchange, Embedded):
            return exchange
        lost: list[int] = []
        try:
            self._drive(exchange)
            if lost := exchange.unanswered():
                rows = self._core.fall_back(exchange.texts(lost), ask)
                exchange.fell_back(lost, rows)
        finally:
            self._core.count(exchange, fallback_inputs=len(lost))
        return exchange.result()

    def _invalidate(self, texts: Sequence[str] | str | None, ask: Ask) -> int:
        exchange = self._core.invalidating(texts, ask)
        try:
            self._drive(exchange)
        finally:
            self._core.forget_near(exchange)
        return exchange.result()

    def _drive(self, exchange: Exchange) -> None:
        """Send what is due and bring back the answers, until the call is done."""
        if self._lines.closed:
            raise RuntimeError(f"{self!r} is closed")
        clock, metadata = self._core.clock, exchange.caller.metadata
        back: queue.SimpleQueue[int] = queue.SimpleQueue()
        flying: dict[int, _Flying] = {}
        try:
            while True:
                due = exchange.due(clock())
                if len(due) == 1 and not flying and exchange.rest_s(clock()) is None:
                    # The usual call is one request: it needs no future, which costs a thread's hop.
                    self._call(exchange, due[0], metadata)
                    continue
                for transmit in due:
                    sent = flying[transmit.ticket] = self._send(transmit, metadata)
                    sent.call.add_done_callback(partial(_put, back, transmit.ticket))
                if exchange.done:
                    return
                try:
                    ticket = back.get(timeout=exchange.rest_s(clock()))
                except queue.Empty:
                    continue
                self._take(exchange, ticket, flying.pop(ticket))
        finally:
            for sent in flying.values():
                sent.call.cancel()
                self._give_back(sent.line)

    def _call(self, exchange: Exchange, transmit: Transmit, metadata: Metadata) -> None:
        line = self._lines.take()
        try:
            response = _method(line.stub, transmit.request)(
                transmit.request, timeout=transmit.timeout_s, metadata=metadata
            )
        except (grpc.RpcError, ValueError) as error:
            self._fail(exchange, transmit.ticket, error)
        else:
            exchange.answered(transmit.ticket, response, self._core.clock())
        finally:
            self._give_back(line)

    def _send(self, transmit: Transmit, metadata: Metadata) -> _Flying:
        line = self._lines.take()
        try:
            call = _method(line.stub, transmit.request).future(
                transmit.request, timeout=transmit.timeout_s, metadata=metadata
            )
        except BaseException as error:
            self._give_back(line)
            if isinstance(error, ValueError) and self._lines.closed:
                raise Unavailable(CLOSED) from error
            raise
        return _Flying(call, line)

    def _take(self, exchange: Exchange, ticket: int, sent: _Flying) -> None:
        self._give_back(sent.line)
        try:
            error = sent.call.exception()
        except grpc.FutureCancelledError as cancelled:
            error = cancelled
        if error is None:
            exchange.answered(ticket, sent.call.result(), self._core.clock())
        else:
            self._fail(exchange, ticket, error)

    def _fail(self, exchange: Exchange, ticket: int, error: Exception) -> None:
        if self._lines.closed:
            raise Unavailable(CLOSED) from error
        if not isinstance(error, grpc.RpcError):
            raise error
        ours = error_of(error, target=self._target)
        if isinstance(ours, Unavailable):
            self._lines.doubt()
        exchange.failed(ticket, ours, self._core.clock())

    def _give_back(self, line: _Line) -> None:
        for channel in self._lines.give_back(line):
            channel.close()


def _dial(
    target: str, tls: "ClientTls | None", trusted: grpc.ChannelCredentials | None
) -> tuple[grpc.Channel, cache_pb2_grpc.EmbeddingCacheStub]:
    options = channel_options(target, tls)
    channel = (
        grpc.insecure_channel(target, options)
        if trusted is None
        else grpc.secure_channel(target, trusted, options)
    )
    return channel, cache_pb2_grpc.EmbeddingCacheStub(channel)


def _method(stub: cache_pb2_grpc.EmbeddingCacheStub, request: Request) -> _Method:
    if isinstance(request, cache_pb2.EmbedRequest):
        return cast("_Method", stub.Embed)
    if isinstance(request, cache_pb2.ImportRequest):
        return cast("_Method", stub.Import)
    if isinstance(request, cache_pb2.InfoRequest):
        return cast("_Method", stub.Info)
    return cast("_Method", stub.Invalidate)


def _put(back: queue.SimpleQueue[int], ticket: int, call: object) -> None:
    del call
    back.put(ticket)
