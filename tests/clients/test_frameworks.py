"""LangChain, LlamaIndex and huggingface_hub, through what each has for OpenAI and TEI."""

import os
from pathlib import Path

import litellm
import openai
import pytest
import tiktoken
from huggingface_hub import AsyncInferenceClient, InferenceClient
from hypothesis import given
from hypothesis import strategies as st
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

from clients.conftest import Cache, same
from embedkeep.config import Backend, ModelSpec
from embedkeep.embedder import folder, source
from embedkeep.embedder.tokens import Tokenize
from support.embedder import PACKAGE

TEXTS = ["how do I reset my password?", "Wo ist mein Paket?"]

# LiteLLM brings the vocabulary that tiktoken would download.
os.environ["TIKTOKEN_CACHE_DIR"] = str(
    Path(litellm.__file__).parent / "litellm_core_utils" / "tokenizers"
)


async def test_langchain_openai_sends_texts_when_told_so(cache: Cache) -> None:
    embeddings = OpenAIEmbeddings(
        model="docs",
        base_url=f"{cache.url}/v1",
        api_key="unused",
        check_embedding_ctx_length=False,
    )

    assert same(embeddings.embed_documents(TEXTS), cache.vectors(*TEXTS))
    assert same([embeddings.embed_query(TEXTS[0])], cache.vectors(TEXTS[0]))
    assert same(await embeddings.aembed_documents(TEXTS), cache.vectors(*TEXTS))


@pytest.mark.parametrize("text", ["hello", "I", "Hello world", TEXTS[0]])
def test_langchain_openais_token_ids_are_refused_with_what_to_do(cache: Cache, text: str) -> None:
    """It sends ids by OpenAI's vocabulary, which would be other words in this model's."""
    embeddings = OpenAIEmbeddings(
        model="docs", base_url=f"{cache.url}/v1", api_key="unused", max_retries=0
    )

    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        embeddings.embed_documents([text])


def test_the_models_own_token_ids_are_answered(cache: Cache) -> None:
    tokenize = _tokenize()
    ids = [list(tokens.ids) for tokens in tokenize(["where is my parcel?", "hello world"])]

    with openai.OpenAI(base_url=f"{cache.url}/v1", api_key="unused") as client:
        answer = client.embeddings.create(model="docs", input=ids)

    expected = cache.vectors("where is my parcel?", "hello world")
    assert same([each.embedding for each in answer.data], expected)


def _tokenize() -> Tokenize:
    spec = ModelSpec.model_validate({"name": "MiniLM", "source": {"package": PACKAGE}})
    return Tokenize(folder.read(source.resolve(spec, backend=Backend.ONNX), max_tokens=256))


TOKENIZE = _tokenize()


@given(text=st.text(min_size=1), special=st.booleans())
def test_no_text_by_openais_vocabulary_is_taken_for_the_models(text: str, *, special: bool) -> None:
    encoding = tiktoken.get_encoding("cl100k_base")

    ids = encoding.encode(text, disallowed_special=()) + ([102] if special else [])

    assert TOKENIZE.texts_of([ids]) == [""]


async def test_llama_index_through_openai(cache: Cache) -> None:
    model = OpenAIEmbedding(model_name="docs", api_base=f"{cache.url}/v1", api_key="unused")

    assert same(model.get_text_embedding_batch(TEXTS), cache.vectors(*TEXTS))
    assert same([await model.aget_query_embedding(TEXTS[0])], cache.vectors(TEXTS[0]))


async def test_llama_index_through_tei(cache: Cache) -> None:
    model = TextEmbeddingsInference(model_name="docs", base_url=cache.url)

    assert same(model.get_text_embedding_batch(TEXTS), cache.vectors(*TEXTS))
    assert same([await model.aget_query_embedding(TEXTS[0])], cache.vectors(TEXTS[0]))


@pytest.mark.parametrize("path", ["", "/embed"])
async def test_huggingface_hub_through_tei(cache: Cache, path: str) -> None:
    client = InferenceClient(f"{cache.url}{path}")

    one = client.feature_extraction(TEXTS[0])
    two = client.feature_extraction(TEXTS, prompt_name="query", truncate=True, normalize=True)
    async with AsyncInferenceClient(f"{cache.url}{path}") as asynchronous:
        again = await asynchronous.feature_extraction(TEXTS)

    assert same(one, cache.vectors(TEXTS[0]))
    assert same(two, cache.vectors(*TEXTS, prompt="query"))
    assert same(again, cache.vectors(*TEXTS))
