"""LangChain: `EmbedKeepEmbeddings` is an `Embeddings`."""

from embedkeep.adapters.asking import DOCUMENT, QUERY, Asking
from embedkeep.client import AsyncClient, Client

try:
    from langchain_core.embeddings import Embeddings
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name} is not installed: pip install 'embedkeep[langchain]'", name=error.name
    ) from error


class EmbedKeepEmbeddings(Embeddings):  # type: ignore[misc]  # checked without the framework too
    """Embeds through a cache.

        with Client("http://127.0.0.1:8080") as client:
            store = InMemoryVectorStore(EmbedKeepEmbeddings(client))

    Args:
        client: For the plain methods. None: only the async ones work.
        async_client: For the async methods. None: they use *client* in a thread.
    """

    def __init__(
        self, client: Client | None = None, *, async_client: AsyncClient | None = None
    ) -> None:
        self._asking = Asking(client, async_client)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector for each text."""
        return self._asking.embed(texts, DOCUMENT)

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return self._asking.embed([text], QUERY)[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector for each text."""
        return await self._asking.aembed(texts, DOCUMENT)

    async def aembed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return (await self._asking.aembed([text], QUERY))[0]
