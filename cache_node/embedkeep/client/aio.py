"""The client for asyncio: only I/O; every decision is in `exchange` and `embedding`."""

import asyncio
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Self, Unpack

import numpy as np
from numpy.typing import NDArray

from embedkeep.channels import CLOSED
from embedkeep.client.core import Core
from embedkeep.client.exchange import Exchange, Metadata, Response, Transmit
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
from embedkeep.client.transports.choosing import (
    AsyncTransport,
    async_transport_to,
    shown,
)
from embedkeep.errors import EmbedKeepError, Unavailable


class AsyncClient:
    """As `Client`, for one event loop: the one that its first call runs in.

    A cancelled call ends what it has in flight. One client is enough for a loop.

    Args:
        target: As for `Client`.
        **options: See `Options`.

    Raises:
        InvalidConfig: As for `Client`.
    """

    def __init__(self, target: str | Sequence[str], **options: Unpack[ClientOptions]) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._target = shown(target)
        self._options = Options(**options)
        self._core = Core(self._options)
        self._transport = async_transport_to(target, self._options.tls)

    async def embed(
        self, texts: Sequence[str] | str, **how: Unpack[EmbedOptions]
    ) -> NDArray[np.float32]:
        """Embed *texts*: shape [n, d], float32, rows in their order; as `Client.embed`."""
        detailed = await self._embed(texts, Ask(**how) if how else PLAIN, strict=True)
        detailed.raise_failures()
        return detailed.vectors

    async def embed_detailed(
        self, texts: Sequence[str] | str, **how: Unpack[EmbedOptions]
    ) -> Embedded:
        """Embed *texts* and tell all about it; as `Client.embed_detailed`."""
        return await self._embed(texts, Ask(**how) if how else PLAIN, strict=False)

    async def invalidate(
        self,
        texts: Sequence[str] | str,
        *,
        prompt: str | None = None,
        model: str | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Forget *texts* under *prompt*; as `Client.invalidate`."""
        return await self._invalidate(texts, Ask(prompt=prompt, model=model, timeout_s=timeout_s))

    async def invalidate_all(
        self, *, model: str | None = None, timeout_s: float | None = None
    ) -> int:
        """Forget all of the caller's entries; as `Client.invalidate_all`."""
        return await self._invalidate(None, Ask(model=model, timeout_s=timeout_s))

    async def import_pairs(
        self, texts: Sequence[str], vectors: NDArray[np.float32], **how: Unpack[ImportOptions]
    ) -> Imported:
        """Have the cache keep *vectors* of *texts*; as `Client.import_pairs`."""
        exchange = self._core.importing(texts, vectors, ImportAsk(**how))
        await self._drive(exchange)
        return exchange.result()

    async def info(self, *, timeout_s: float | None = None) -> CacheInfo:
        """What the cache serves; as `Client.info`."""
        exchange = self._core.info(timeout_s)
        await self._drive(exchange)
        return exchange.result()

    @property
    def stats(self) -> ClientStats:
        """What this client has done so far."""
        return self._core.stats

    async def close(self) -> None:
        """Close the connections; as `Client.close`."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        transport: AsyncTransport | None = getattr(self, "_transport", None)
        if transport is not None and transport.dialled:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"AsyncClient({self._target!r}, {self._options!r})"

    async def _embed(self, texts: Sequence[str] | str, ask: Ask, *, strict: bool) -> Embedded:
        exchange = self._core.embedding(texts, ask, strict=strict, near=not self._transport.closed)
        if isinstance(exchange, Embedded):
            return exchange
        lost: list[int] = []
        try:
            await self._drive(exchange)
            if lost := exchange.unanswered():
                rows = await asyncio.to_thread(self._core.fall_back, exchange.texts(lost), ask)
                exchange.fell_back(lost, rows)
        finally:
            self._core.count(exchange, fallback_inputs=len(lost))
        return exchange.result()

    async def _invalidate(self, texts: Sequence[str] | str | None, ask: Ask) -> int:
        exchange = self._core.invalidating(texts, ask)
        try:
            await self._drive(exchange)
        finally:
            self._core.forget_near(exchange)
        return exchange.result()

    async def _drive(self, exchange: Exchange) -> None:
        """Send what is due and bring back the answers, until the call is done."""
        if self._transport.closed:
            raise RuntimeError(f"{self!r} is closed")
        clock, metadata = self._core.clock, exchange.caller.metadata
        flying: dict[asyncio.Task[Response], int] = {}
        try:
            while True:
                for transmit in exchange.due(clock()):
                    task = asyncio.create_task(
                        self._send(transmit, metadata), name=f"embedkeep request {transmit.ticket}"
                    )
                    flying[task] = transmit.ticket
                if exchange.done:
                    return
                rest_s = exchange.rest_s(clock())
                if not flying:
                    await asyncio.sleep(rest_s or 0)
                    continue
                back, _ = await asyncio.wait(
                    flying, timeout=rest_s, return_when=asyncio.FIRST_COMPLETED
                )
                for task in back:
                    self._take(exchange, flying.pop(task), task)
        finally:
            for task in flying:
                task.cancel()
            await asyncio.gather(*flying, return_exceptions=True)

    def _take(self, exchange: Exchange, ticket: int, task: asyncio.Task[Response]) -> None:
        now = self._core.clock()
        if self._transport.closed and (task.cancelled() or task.exception() is not None):
            raise Unavailable(CLOSED)
        error = task.exception()
        if error is None:
            exchange.answered(ticket, task.result(), now)
        elif isinstance(error, EmbedKeepError):
            exchange.failed(ticket, error, now)
        else:
            raise error

    async def _send(self, transmit: Transmit, metadata: Metadata) -> Response:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if loop is not self._loop:
            raise RuntimeError(f"{self!r} belongs to another event loop: make one a loop")
        return await self._transport.call(transmit.request, metadata, timeout_s=transmit.timeout_s)
