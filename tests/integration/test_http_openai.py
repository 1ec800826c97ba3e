"""OpenAI's API, over real HTTP to a real node."""

from collections.abc import AsyncIterator

import numpy as np
import pytest

from support.http import Http, decoded, over_grpc, talking
from support.node import Node
from support.tap import DEVICE_NS, DIMENSIONS, Tap


@pytest.fixture
async def http(node: Node) -> AsyncIterator[Http]:
    async with talking(node) as client:
        yield client


@pytest.mark.parametrize("given", ["a", ["a"], ["a", "b", "a"]])
async def test_base64_holds_the_very_bytes_that_grpc_answers(
    http: Http, node: Node, given: str | list[str]
) -> None:
    texts = [given] if isinstance(given, str) else given

    reply = await http.openai(input=given, encoding_format="base64")

    assert reply.status == 200
    assert decoded(reply) == await over_grpc(node, *texts)


async def test_decimals_are_the_same_float32_bit_for_bit(http: Http, node: Node) -> None:
    reply = await http.openai(input=["a", "b"])

    vectors = [np.array(each["embedding"], np.float32).tobytes() for each in reply.json["data"]]
    assert vectors == await over_grpc(node, "a", "b")


async def test_an_answer_has_openais_shape_and_counts_the_models_tokens(http: Http) -> None:
    reply = await http.openai(
        input=["one two", "three"], model="docs:query", user="x", unknown={"a": 1}
    )

    body = reply.json
    vectors = [each.pop("embedding") for each in body["data"]]
    assert [len(vector) for vector in vectors] == [DIMENSIONS] * 2
    assert body == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0}, {"object": "embedding", "index": 1}],
        "model": "docs:query",
        "usage": {"prompt_tokens": 5 + 4, "total_tokens": 5 + 4},
    }


@pytest.mark.parametrize(
    ("model", "read"),
    [
        ("docs", "a"),
        ("docs:query", "query: a"),
        ("docs:document", "a"),
        ("acme/counter", "a"),
        ("acme/counter:query", "query: a"),
    ],
)
async def test_the_models_name_chooses_the_prompt(
    http: Http, tap: Tap, model: str, read: str
) -> None:
    assert (await http.openai(input="a", model=model)).status == 200

    assert tap.texts == [read]


async def test_an_unknown_model_is_openais_404(http: Http, tap: Tap) -> None:
    reply = await http.openai(input="a", model="gpt-4")

    assert reply.status == 404
    assert reply.error == {
        "message": "model: 'gpt-4' is not served here; this cache has 'docs' (acme/counter)",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    assert tap.calls == []


async def test_more_dimensions_than_there_are_is_an_error_of_that_field(http: Http) -> None:
    reply = await http.openai(input="a", dimensions=DIMENSIONS + 1)

    assert (reply.status, reply.error["param"]) == (400, "dimensions")
    assert f"1 to {DIMENSIONS}" in str(reply.error["message"])


async def test_a_bad_input_fails_the_request_with_its_index_and_the_good_ones_are_cached(
    http: Http, tap: Tap
) -> None:
    reply = await http.openai(input=["good", "", "fine"])

    assert reply.status == 400
    assert reply.error == {
        "message": "the input is empty: there is nothing to embed",
        "type": "invalid_request_error",
        "param": "input[1]",
        "code": None,
    }
    again = await http.openai(input=["good", "fine"])
    assert again.headers["x-embedkeep-sources"] == "l1=2"
    assert tap.texts == ["good", "fine"]


async def test_dimensions_are_a_view_of_the_same_entry(http: Http, node: Node, tap: Tap) -> None:
    await http.openai(input="a")

    reply = await http.openai(input="a", dimensions=3, encoding_format="base64")

    assert decoded(reply) == await over_grpc(node, "a", view={"dimensions": 3})
    assert tap.texts == ["a"]


async def test_the_models_that_are_listed_can_be_looked_up_and_asked(http: Http) -> None:
    listed = [each["id"] for each in (await http.ask("GET", "/v1/models")).json["data"]]

    assert listed == ["docs", "docs:query", "docs:document", "acme/counter"]
    for name in listed:
        assert (await http.ask("GET", f"/v1/models/{name}")).json["id"] == name
        assert (await http.openai(input="a", model=name)).status == 200
    assert (await http.ask("GET", "/v1/models/gpt-4")).error["code"] == "model_not_found"


async def test_an_answer_says_where_it_came_from_and_what_it_saved(http: Http) -> None:
    await http.openai(input="a")

    one = (await http.openai(input="a")).headers
    both = (await http.openai(input=["a", "b"])).headers

    assert one["x-embedkeep-sources"] == "l1=1"
    assert one["cache-status"] == "docs; hit; detail=l1"
    assert float(one["x-embedkeep-saved-device-seconds"]) == DEVICE_NS / 1e9
    assert both["x-embedkeep-sources"] == "l1=1, embedder=1"
    assert both["cache-status"] == "docs; fwd=partial"
    assert float(both["x-embedkeep-spent-device-seconds"]) == DEVICE_NS / 1e9
    assert both["x-embedkeep-fingerprint"] == "tap"


async def test_token_ids_are_answered_as_the_text_that_has_them(
    http: Http, node: Node, tap: Tap
) -> None:
    tap.words = {(101, 7592, 102): "hello", (101, 2088, 102): "world"}

    one = await http.openai(input=[101, 7592, 102], encoding_format="base64")
    two = await http.openai(input=[[101, 2088, 102], [101, 7592, 102]], encoding_format="base64")

    assert decoded(one) == await over_grpc(node, "hello")
    assert decoded(two) == await over_grpc(node, "world", "hello")
    assert tap.texts == ["hello", "world"]


@pytest.mark.parametrize("words", [None, {(101, 7592, 102): "hello"}], ids=["none", "others"])
async def test_token_ids_in_doubt_are_refused_with_what_to_do(
    http: Http, tap: Tap, words: dict[tuple[int, ...], str] | None
) -> None:
    tap.words = words

    reply = await http.openai(input=[[101, 7592, 102], [9906, 1917]])

    assert reply.status == 400
    assert "check_embedding_ctx_length=False" in reply.error["message"]
    assert reply.error["param"] == ("input[1]" if words else None)
    assert tap.calls == []


async def test_token_ids_behind_a_prompt_are_refused(http: Http, tap: Tap) -> None:
    """The prompt's text and the ids' text may have other ids together than one by one."""
    tap.words = {(101, 7592, 102): "hello"}

    reply = await http.openai(input=[101, 7592, 102], model="docs:query")

    assert reply.status == 400
    assert "prompt" in reply.error["message"]
