"""The openai SDK, which asks for base64 unless it is told otherwise."""

import base64
from collections.abc import AsyncIterator, Iterator

import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from clients.conftest import Cache, same

TEXTS = ["how do I reset my password?", "Wo ist mein Paket?", "how do I reset my password?"]


@pytest.fixture
def client(cache: Cache) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{cache.url}/v1", api_key="unused") as made:
        yield made


@pytest.fixture
async def async_client(cache: Cache) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{cache.url}/v1", api_key="unused") as made:
        yield made


def test_vectors_are_those_of_grpc_bit_for_bit(client: OpenAI, cache: Cache) -> None:
    answer = client.embeddings.create(model="docs", input=TEXTS)

    assert same([each.embedding for each in answer.data], cache.vectors(*TEXTS))
    assert [each.index for each in answer.data] == [0, 1, 2]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 3 * 5


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_an_encoding_may_be_chosen(client: OpenAI, cache: Cache, encoding: str) -> None:
    answer = client.embeddings.create(model="docs", input=TEXTS[0], encoding_format=encoding)

    found = answer.data[0].embedding
    if isinstance(found, str):
        found = np.frombuffer(base64.b64decode(found), "<f4").tolist()
    assert same([found], cache.vectors(TEXTS[0]))


async def test_the_async_client_does_the_same(async_client: AsyncOpenAI, cache: Cache) -> None:
    answer = await async_client.embeddings.create(model="docs:query", input=TEXTS, dimensions=384)

    assert same([each.embedding for each in answer.data], cache.vectors(*TEXTS, prompt="query"))


def test_headers_say_where_an_answer_came_from(client: OpenAI) -> None:
    client.embeddings.create(model="docs", input="seen")

    raw = client.embeddings.with_raw_response.create(model="docs", input=["seen", "seen"])

    assert raw.headers["x-embedkeep-sources"] == "l1=2"
    assert float(raw.headers["x-embedkeep-saved-device-seconds"]) > 0


def test_errors_are_the_sdks_own(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.embeddings.create(model="gpt-4", input="a")
    with pytest.raises(openai.BadRequestError) as bad:
        client.embeddings.create(model="docs", input=["good", ""])
    with pytest.raises(openai.InternalServerError) as missing:
        client.embeddings.create(
            model="docs", input="never seen", extra_headers={"cache-control": "only-if-cached"}
        )

    assert unknown.value.code == "model_not_found"
    assert bad.value.param == "input[1]"
    assert missing.value.status_code == 504


def test_models_are_listed(client: OpenAI) -> None:
    listed = [each.id for each in client.models.list()]

    assert listed[:3] == ["docs", "docs:query", "docs:document"]
    assert [client.models.retrieve(each).id for each in listed] == listed
