"""TEI's API, over real HTTP to a real node."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from support.http import Http, over_grpc, talking
from support.node import Node, node_config, running, tapped
from support.tap import DIMENSIONS, Tap


@pytest.fixture
async def http(node: Node) -> AsyncIterator[Http]:
    async with talking(node) as client:
        yield client


def float32(rows: list[list[float]]) -> list[bytes]:
    return [np.array(row, np.float32).tobytes() for row in rows]


@pytest.mark.parametrize("path", ["/embed", "/"])
@pytest.mark.parametrize("given", ["a", ["a"], ["a", "b", "a"]])
async def test_vectors_come_as_plain_lists_of_the_same_float32(
    http: Http, node: Node, path: str, given: str | list[str]
) -> None:
    texts = [given] if isinstance(given, str) else given

    reply = await http.ask("POST", path, {"inputs": given, "normalize": False})

    assert reply.status == 200
    assert float32(reply.json) == await over_grpc(node, *texts, view={"normalize": False})


async def test_vectors_have_length_1_unless_told_otherwise(http: Http, node: Node) -> None:
    scaled = await over_grpc(node, "a", view={"normalize": True})

    assert float32((await http.tei(inputs="a")).json) == scaled
    assert float32((await http.tei(inputs="a", normalize=True)).json) == scaled


async def test_dimensions_and_prompt_name_are_what_they_are_over_grpc(
    http: Http, node: Node, tap: Tap
) -> None:
    reply = await http.tei(inputs="a", prompt_name="query", dimensions=3, normalize=False)

    assert tap.texts == ["query: a"]
    assert float32(reply.json) == await over_grpc(
        node, "a", prompt="query", view={"dimensions": 3, "normalize": False}
    )


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        pytest.param(
            {"inputs": ["a", ""]}, 413, "inputs[1]: the input is empty", id="an empty text"
        ),
        pytest.param({"inputs": "a", "prompt_name": "x"}, 422, "'x' is unknown", id="no prompt"),
        pytest.param({"inputs": "a", "dimensions": 99}, 422, "has 8", id="too many dimensions"),
        pytest.param({"inputs": ["a", 3]}, 422, "inputs[1]", id="a number among texts"),
        pytest.param({"inputs": []}, 422, "inputs: must not be empty", id="no input"),
        pytest.param({}, 422, "inputs: is missing", id="no field"),
        pytest.param(
            {"inputs": "a", "truncation_direction": "Left"}, 422, "'Right'", id="the other end"
        ),
        pytest.param({"inputs": ["x"] * 2049}, 422, "at most 2048", id="too many inputs"),
    ],
)
async def test_what_cannot_be_embedded_is_said_in_teis_shape(
    http: Http, body: dict[str, object], status: int, error: str
) -> None:
    reply = await http.ask("POST", "/embed", body)

    assert reply.status == status
    assert reply.json.keys() == {"error", "error_type"}
    assert reply.json["error_type"] == "validation"
    assert error in reply.json["error"]


async def test_a_text_longer_than_the_model_reads_is_cut_unless_the_caller_forbids_it(
    http: Http, tap: Tap
) -> None:
    tap.longest = 3

    assert (await http.tei(inputs=["one", "one two three four"])).status == 200
    assert (await http.tei(inputs="one two", truncate=False)).status == 200
    refused = await http.tei(inputs=["one", "one two three four"], truncate=False)

    assert refused.status == 413
    assert refused.json["error_type"] == "validation"
    assert "inputs[1]: the input is longer than the 256 tokens" in refused.json["error"]


async def test_token_ids_without_a_tokenizer_are_teis_tokenizer_error(http: Http) -> None:
    reply = await http.tei(inputs=[101, 7592, 102])

    assert (reply.status, reply.json["error_type"]) == (422, "tokenizer")


async def test_info_says_what_is_served(http: Http) -> None:
    info = (await http.ask("GET", "/info")).json

    assert info["model_id"] == "acme/counter"
    assert info["max_input_length"] == 256
    assert info["max_client_batch_size"] == 2048
    assert info["auto_truncate"] is True
    assert (info["fingerprint"], info["dimensions"]) == ("tap", DIMENSIONS)


async def test_health_is_503_until_the_node_can_answer(tmp_path: Path, tap: Tap) -> None:
    async with (
        running(node_config(tmp_path, 1, embedder={"address": "127.0.0.1:1"}), ready=False) as node,
        talking(node) as http,
    ):
        before = await http.ask("GET", "/health")
        embed = await http.tei(inputs="a")
        info = await http.ask("GET", "/info")

    assert (before.status, before.json["error_type"]) == (503, "unhealthy")
    assert (embed.status, embed.json["error_type"]) == (503, "unhealthy")
    assert (embed.headers["retry-after"], embed.headers["retry-after-ms"]) == ("1", "1000")
    assert info.json["dimensions"] is None
    async with (
        tapped(tap, tmp_path) as node,
        talking(node) as http,
    ):
        assert (await http.ask("GET", "/health")).status == 200
        assert (await http.ask("HEAD", "/health")).status == 200
