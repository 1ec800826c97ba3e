"""The client for threads: only I/O; every decision is in `exchange` and `embedding`."""

import queue
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Protocol, Self, Unpack

import numpy as np
from numpy.typing import NDArray

from embedkeep.channels import CLOSED
from embedkeep.client.core import Core
from embedkeep.client.exchange import Exchange, Response
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
from embedkeep.client.transports.choosing import Transport, shown, transport_to
from embedkeep.errors import EmbedKeepError, Unavailable


class _Flight(Protocol):
    """A request under way, over either transport."""

    def result(self) -> Response: ...
    def cancel(self) -> None: ...


class Client:
    """Embeds texts through a cache. Safe between threads; one is enough for a process.

    It connects with the first call. Over HTTP it keeps a connection for each call under way, to
    each node; over gRPC one to each node. gRPC does not survive a fork: let each worker make its
    own client, or at least make no call before forking.

    Args:
        target: ``http://host:port`` or ``https://host:port``: over HTTP/1.1, which takes a node and
            its callers least, and balanced over all nodes behind the name. ``host:port``, and
            ``dns:///name:port`` for all behind a name: over gRPC. Several addresses, as a list or
            with commas between them, are balanced too.
        **options: See `Options`.

    Raises:
        InvalidConfig: The target is no address, an option is out of range, the API key or a
            certificate cannot be read.
    """

    def __init__(self, target: str | Sequence[str], **options: Unpack[ClientOptions]) -> None:
        self._target = shown(target)
        self._options = Options(**options)
        self._core = Core(self._options)
        self._transport = transport_to(target, self._options.tls)

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
        self._transport.close()

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
        transport: Transport | None = getattr(self, "_transport", None)
        if transport is not None and transport.dialled:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        return f"Client({self._target!r}, {self._options!r})"

    def _embed(self, texts: Sequence[str] | str, ask: Ask, *, strict: bool) -> Embedded:
        exchange = self._core.embedding(texts, ask, strict=strict, near=not self._transport.closed)
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
        if self._transport.closed:
            raise RuntimeError(f"{self!r} is closed")
        clock, metadata = self._core.clock, exchange.caller.metadata
        back: queue.SimpleQueue[int] = queue.SimpleQueue()
        flying: dict[int, _Flight] = {}
        try:
            while True:
                due = exchange.due(clock())
                if len(due) == 1 and not flying and exchange.rest_s(clock()) is None:
                    # The usual call is one request: nothing else is to be done meanwhile.
                    one = due[0]
                    call = partial(
                        self._transport.call, one.request, metadata, timeout_s=one.timeout_s
                    )
                    self._take(exchange, one.ticket, call)
                    continue
                for transmit in due:
                    flying[transmit.ticket] = self._transport.begin(
                        transmit.request,
                        metadata,
                        timeout_s=transmit.timeout_s,
                        landed=partial(back.put, transmit.ticket),
                    )
                if exchange.done:
                    return
                try:
                    ticket = back.get(timeout=exchange.rest_s(clock()))
                except queue.Empty:
                    continue
                self._take(exchange, ticket, flying.pop(ticket).result)
        finally:
            for flight in flying.values():
                flight.cancel()

    def _take(self, exchange: Exchange, ticket: int, answer: Callable[[], Response]) -> None:
        try:
            response = answer()
        except EmbedKeepError as error:
            if self._transport.closed:
                raise Unavailable(CLOSED) from error
            exchange.failed(ticket, error, self._core.clock())
        else:
            exchange.answered(ticket, response, self._core.clock())
