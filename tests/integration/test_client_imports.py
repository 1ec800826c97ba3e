"""Both clients' `import_pairs`, against a real node and against one with faults."""

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from embedkeep.errors import InvalidInput, InvalidRequest, InvalidVector, ModelDrift, Unavailable
from support.clients import KINDS, Kind
from support.fake_node import DIMENSIONS, FakeNode, Refusal
from support.fake_node import running as running_fake
from support.node import Node
from support.tap import Tap

pytestmark = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def tap() -> Tap:
    return Tap(steady=True)


@pytest.fixture
def node_fields() -> dict[str, object]:
    return {"imports": True}


def made(texts: list[str]) -> NDArray[np.float32]:
    elsewhere = Tap(steady=True)
    return np.frombuffer(b"".join(map(elsewhere.vector, texts)), np.float32).reshape(-1, DIMENSIONS)


async def test_a_long_call_is_cut_and_every_row_finds_its_text(kind: Kind, node: Node) -> None:
    texts = [f"text {number} {'x' * (number % 50)}" for number in range(5000)]

    async with kind(f"127.0.0.1:{node.port}", timeout_s=60) as client:
        taken = await client.import_pairs(texts, made(texts), tokens=range(5000), truncated=[4999])
        answer = await client.embed_detailed(texts)

    assert (taken.stored, taken.present, taken.withdrawn) == (5000, 0, 0)
    assert taken.sampled > 4
    assert answer.vectors.tobytes() == made(texts).tobytes()
    assert answer.imported == tuple(range(5000))
    assert {"valkey"} == set(answer.sources)


async def test_a_refused_row_is_named_by_its_place_in_the_call(kind: Kind) -> None:
    fake = FakeNode(max_inputs=3, bad_texts={"bad": (3, "InvalidVector")})
    texts = ["a", "b", "c", "d", "bad", "e"]
    with running_fake(fake) as (address,):
        async with kind(address, parallel=1) as client:
            with pytest.raises(InvalidVector, match=r"input 4: planted") as caught:
                await client.import_pairs(texts, np.ones((6, DIMENSIONS), np.float32))

    assert caught.value.index == 4
    assert [list(request.inputs) for request in fake.imports] == [texts[:3], texts[3:]]


async def test_what_does_not_fit_is_refused_before_anything_is_sent(kind: Kind) -> None:
    fake = FakeNode(max_input_bytes=10)
    ones = np.ones((1, DIMENSIONS), np.float32)
    with running_fake(fake) as (address,):
        async with kind(address) as client:
            with pytest.raises(InvalidRequest, match=r"\[2, d\] is needed"):
                await client.import_pairs(["a", "b"], ones)
            with pytest.raises(InvalidRequest, match="tokens has 2 counts for 1 texts"):
                await client.import_pairs(["a"], ones, tokens=[1, 2])
            with pytest.raises(InvalidInput, match="lone surrogate"):
                await client.import_pairs(["\ud800"], ones)
            with pytest.raises(InvalidInput, match="at most 10 are taken"):
                await client.import_pairs(["x" * 11], ones)

    assert fake.imports == []


async def test_a_busy_node_is_waited_for_and_one_of_another_model_is_not(kind: Kind) -> None:
    fake = FakeNode()
    ones = np.ones((1, DIMENSIONS), np.float32)
    with running_fake(fake) as (address,):
        async with kind(address) as client:
            await client.info()
            busy, gone = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE
            fake.refusals.append(Refusal(code=busy, reason="Overloaded", retry_after_ms=1))
            fake.refusals.append(Refusal(code=gone, reason="Unavailable"))
            assert (await client.import_pairs(["a"], ones)).stored == 1

            fake.refusals.append(Refusal(code=grpc.StatusCode.FAILED_PRECONDITION))
            with pytest.raises(ModelDrift):
                await client.import_pairs(["a"], ones, fingerprint="another")
            assert fake.imports[-1].fingerprint == ""


async def test_without_an_embedder_there_is_nothing_to_compare_with(kind: Kind) -> None:
    with running_fake(FakeNode(dimensions=0)) as (address,):
        async with kind(address, timeout_s=0.3) as client:
            with pytest.raises(Unavailable, match="no embedder was seen yet"):
                await client.import_pairs(["a"], np.ones((1, DIMENSIONS), np.float32))
