"""LlamaIndex: `EmbedKeepEmbedding` is a `BaseEmbedding`."""

from typing import Any, Final

from embedkeep.adapters.asking import DOCUMENT, QUERY, Asking
from embedkeep.client import AsyncClient, Client

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import PrivateAttr
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name} is not installed: pip install 'embedkeep[llama-index]'", name=error.name
    ) from error

BATCH_TEXTS: Final = 2048
"""Texts a call. LlamaIndex's own 10 would cost a round trip for each ten; the client splits."""


class EmbedKeepEmbedding(BaseEmbedding):  # type: ignore[misc]  # checked without the framework too
    """Embeds through a cache.

        with Client("http://127.0.0.1:8080") as client:
            Settings.embed_model = EmbedKeepEmbedding(client)

    Args:
        client: For the plain methods. None: only the async ones work.
        async_client: For the async methods. None: they use *client* in a thread.
        **fields: Of `BaseEmbedding`, such as ``model_name``.
    """

    _asking: Asking = PrivateAttr()

    def __init__(
        self,
        client: Client | None = None,
        *,
        async_client: AsyncClient | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(**{"embed_batch_size": BATCH_TEXTS, "model_name": "embedkeep", **fields})
        self._asking = Asking(client, async_client)

    @classmethod
    def class_name(cls) -> str:
        """For LlamaIndex's own records."""
        return "EmbedKeepEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._asking.embed([query], QUERY)[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._asking.embed([text], DOCUMENT)[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._asking.embed(texts, DOCUMENT)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return (await self._asking.aembed([query], QUERY))[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._asking.aembed([text], DOCUMENT))[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await self._asking.aembed(texts, DOCUMENT)
