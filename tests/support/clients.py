"""Both clients over both wires under one face: a test of what they share is written once."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self, Unpack

import numpy as np
from numpy.typing import NDArray

from embedkeep import AsyncClient, CacheInfo, Client, ClientStats, Embedded, Imported
from embedkeep.client.options import ClientOptions, EmbedOptions, ImportOptions


class Threaded:
    """`Client`, each call in a thread, with the methods of `AsyncClient`."""

    def __init__(self, target: str | Sequence[str], **options: Unpack[ClientOptions]) -> None:
        self.client = Client(target, **options)

    async def embed(
        self, texts: Sequence[str] | str, **how: Unpack[EmbedOptions]
    ) -> NDArray[np.float32]:
        return await asyncio.to_thread(lambda: self.client.embed(texts, **how))

    async def embed_detailed(
        self, texts: Sequence[str] | str, **how: Unpack[EmbedOptions]
    ) -> Embedded:
        return await asyncio.to_thread(lambda: self.client.embed_detailed(texts, **how))

    async def invalidate(self, texts: Sequence[str] | str, *, prompt: str | None = None) -> int:
        return await asyncio.to_thread(lambda: self.client.invalidate(texts, prompt=prompt))

    async def invalidate_all(self) -> int:
        return await asyncio.to_thread(self.client.invalidate_all)

    async def import_pairs(
        self, texts: Sequence[str], vectors: NDArray[np.float32], **how: Unpack[ImportOptions]
    ) -> Imported:
        return await asyncio.to_thread(lambda: self.client.import_pairs(texts, vectors, **how))

    async def info(self) -> CacheInfo:
        return await asyncio.to_thread(self.client.info)

    @property
    def stats(self) -> ClientStats:
        return self.client.stats

    async def close(self) -> None:
        await asyncio.to_thread(self.client.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class At(str):
    """Where a node answers gRPC, and where HTTP."""

    __slots__ = ("http",)

    http: str

    def __new__(cls, grpc: str, *, http: str) -> Self:
        made = super().__new__(cls, grpc)
        made.http = http
        return made


class AsyncOverHttp(AsyncClient):
    """`AsyncClient` over HTTP, wherever it is told a node's place."""

    def __init__(self, target: str | Sequence[str], **options: Unpack[ClientOptions]) -> None:
        super().__init__(over_http(target), **options)


class ThreadedOverHttp(Threaded):
    """`Threaded` over HTTP, wherever it is told a node's place."""

    def __init__(self, target: str | Sequence[str], **options: Unpack[ClientOptions]) -> None:
        super().__init__(over_http(target), **options)


def over_http(target: str | Sequence[str]) -> str | list[str]:
    """The same place, by its URL."""
    if isinstance(target, str):
        return target.http if isinstance(target, At) else target
    return [each.http if isinstance(each, At) else each for each in target]


AnyClient = AsyncClient | Threaded
Kind = type[AsyncClient] | type[Threaded]
KINDS: tuple[Kind, ...] = (AsyncClient, Threaded, AsyncOverHttp, ThreadedOverHttp)
