"""The adapters, through their frameworks."""

import pytest
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding

from clients.conftest import Cache, same
from embedkeep import AsyncClient, Client
from embedkeep.adapters.langchain import EmbedKeepEmbeddings
from embedkeep.adapters.llama_index import EmbedKeepEmbedding
from embedkeep.errors import InvalidConfig

TEXTS = ["how do I reset my password?", "where is my parcel?", "which cards do you accept?"]
QUERY = "my package has not arrived"


async def test_langchain_asks_with_the_caches_prompts(cache: Cache) -> None:
    documents, query = (
        cache.vectors(*TEXTS, prompt="document"),
        cache.vectors(QUERY, prompt="query"),
    )
    with Client(cache.address) as client:
        embeddings = EmbedKeepEmbeddings(client)
        assert same(embeddings.embed_documents(TEXTS), documents)
        assert same([embeddings.embed_query(QUERY)], query)
        assert same(await embeddings.aembed_documents(TEXTS), documents)
        assert embeddings.embed_documents([]) == []
    async with AsyncClient(cache.address) as async_client:
        embeddings = EmbedKeepEmbeddings(async_client=async_client)
        assert same(await embeddings.aembed_documents(TEXTS), documents)
        assert same([await embeddings.aembed_query(QUERY)], query)
        with pytest.raises(InvalidConfig, match="only an async_client was given"):
            embeddings.embed_query(QUERY)
    with pytest.raises(InvalidConfig, match="client: give one"):
        EmbedKeepEmbeddings()


def test_a_langchain_store_finds_by_meaning(cache: Cache) -> None:
    with Client(cache.address) as client:
        store = InMemoryVectorStore(EmbedKeepEmbeddings(client))
        store.add_texts(TEXTS)

        (found,) = store.similarity_search(QUERY, k=1)

    assert found.page_content == "where is my parcel?"


async def test_llama_index_asks_with_the_caches_prompts(cache: Cache) -> None:
    documents, query = (
        cache.vectors(*TEXTS, prompt="document"),
        cache.vectors(QUERY, prompt="query"),
    )
    with Client(cache.address) as client:
        model: BaseEmbedding = EmbedKeepEmbedding(client, model_name="minilm")
        assert model.model_name == "minilm"
        assert same(model.get_text_embedding_batch(TEXTS), documents)
        assert same([model.get_text_embedding(TEXTS[0])], documents[:1])
        assert same([model.get_query_embedding(QUERY)], query)
    async with AsyncClient(cache.address) as async_client:
        model = EmbedKeepEmbedding(async_client=async_client)
        assert same(await model.aget_text_embedding_batch(TEXTS), documents)
        assert same([await model.aget_text_embedding(TEXTS[0])], documents[:1])
        assert same([await model.aget_query_embedding(QUERY)], query)


def test_a_llama_index_finds_by_meaning(cache: Cache) -> None:
    with Client(cache.address) as client:
        index = VectorStoreIndex.from_documents(
            [Document(text=text) for text in TEXTS], embed_model=EmbedKeepEmbedding(client)
        )

        (found,) = index.as_retriever(similarity_top_k=1).retrieve(QUERY)

    assert found.text == "where is my parcel?"
