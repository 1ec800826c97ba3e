"""What frameworks ask for: vectors of documents and of queries, for threads and for asyncio."""

import asyncio
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedkeep.client import AsyncClient, CacheInfo, Client
from embedkeep.errors import InvalidConfig

QUERY: Final = "query"
DOCUMENT: Final = "document"


class Asking:
    """Asks one cache, through whichever client fits.

    Args:
        client: For threads. None: *async_client* must be there, and only asyncio works.
        async_client: For asyncio, on the loop it is used on. None: *client*, in a thread.

    Raises:
        InvalidConfig: Neither is given.
    """

    def __init__(self, client: Client | None, async_client: AsyncClient | None) -> None:
        if client is None and async_client is None:
            raise InvalidConfig("give one, or async_client", field="client")
        self._client = client
        self._async_client = async_client
        self._prompts: frozenset[str] | None = None

    def embed(self, texts: Sequence[str], kind: str) -> list[list[float]]:
        """A vector for each text, under the prompt *kind* where the cache has it.

        Raises:
            InvalidConfig: There is no client for threads.
            EmbedKeepError: As `Client.embed`.
        """
        if self._client is None:
            raise InvalidConfig("only an async_client was given: use asyncio", field="client")
        if not texts:
            return []
        if self._prompts is None:
            self._learn(self._client.info())
        return _lists(self._client.embed(texts, prompt=self._prompt(kind)))

    async def aembed(self, texts: Sequence[str], kind: str) -> list[list[float]]:
        """The same for asyncio."""
        if self._async_client is None:
            return await asyncio.to_thread(self.embed, texts, kind)
        if not texts:
            return []
        if self._prompts is None:
            self._learn(await self._async_client.info())
        return _lists(await self._async_client.embed(texts, prompt=self._prompt(kind)))

    def _learn(self, info: CacheInfo) -> None:
        self._prompts = frozenset(info.prompts)

    def _prompt(self, kind: str) -> str | None:
        return kind if self._prompts is not None and kind in self._prompts else None


def _lists(vectors: NDArray[np.float32]) -> list[list[float]]:
    found: list[list[float]] = vectors.tolist()
    return found
