"""Both clients against a real node; only the model is a stand-in."""

from pathlib import Path

import numpy as np
import pytest

from embedkeep import CacheControl, NearCache, Source
from embedkeep.errors import (
    EmbedderUnavailable,
    InvalidInput,
    InvalidRequest,
    NotCached,
    Overloaded,
    PartialFailure,
    Unauthenticated,
    UnknownModel,
)
from support.clients import KINDS, At, Kind
from support.node import Node, node_config, running
from support.tap import DIMENSIONS, Tap, serve_tap
from support.valkey import free_port

pytestmark = pytest.mark.parametrize("kind", KINDS)


def at(node: Node) -> At:
    return At(f"127.0.0.1:{node.port}", http=f"http://127.0.0.1:{node.http_port}")


async def test_repeats_are_bit_for_bit_what_the_model_returned(
    kind: Kind, tap: Tap, node: Node
) -> None:
    async with kind(at(node)) as client:
        first = await client.embed_detailed(["a", "b", "a"])
        second = await client.embed_detailed(["b", "a"])

    assert [row.tobytes() for row in first.vectors] == [
        *tap.computed["a"], *tap.computed["b"], *tap.computed["a"],
    ]  # fmt: skip
    assert [row.tobytes() for row in second.vectors] == [*tap.computed["b"], *tap.computed["a"]]
    assert first.sources == (Source.EMBEDDER, Source.EMBEDDER, Source.COALESCED)
    assert second.sources == (Source.L1, Source.L1)
    assert second.saved_device_s == pytest.approx(0.002)
    assert second.fingerprint == first.fingerprint != ""


async def test_a_hundred_thousand_texts_come_back_whole(kind: Kind, tap: Tap, node: Node) -> None:
    texts = [f"text {number % 700}" for number in range(100_000)]
    async with kind(at(node), timeout_s=100) as client:
        vectors = await client.embed(texts)

        assert vectors.shape == (100_000, DIMENSIONS)
        assert client.stats.requests > 40
    assert all(
        row.tobytes() in tap.computed[text] for text, row in zip(texts, vectors, strict=True)
    )


async def test_a_node_that_comes_back_with_lower_limits_is_asked_in_smaller_parts(
    kind: Kind, tap: Tap, tmp_path: Path
) -> None:
    texts = [f"text {number}" for number in range(100)]
    async with serve_tap(tap) as embedder_port:
        grpc, http = {"port": free_port()}, {"port": free_port()}
        high, low = (
            node_config(tmp_path, embedder_port, grpc=grpc, http=http, limits={"max_inputs": most})
            for most in (80, 30)
        )
        place = At(f"127.0.0.1:{grpc['port']}", http=f"http://127.0.0.1:{http['port']}")
        async with kind(place, timeout_s=30) as client:
            async with running(high):
                await client.embed(texts)
            async with running(low):
                vectors = await client.embed(texts)

    assert [row.tobytes() for row in vectors] == [tap.computed[text][-1] for text in texts]


async def test_bad_inputs_fail_alone_and_say_why(kind: Kind, node: Node) -> None:
    async with kind(at(node)) as client:
        with pytest.raises(PartialFailure) as raised:
            await client.embed(["fine", "nul \0", "x" * (1 << 20), "fine too"])

    failures = raised.value.failures
    assert list(failures) == [1, 2]
    assert all(isinstance(error, InvalidInput) for error in failures.values())
    assert not np.isnan(raised.value.vectors[[0, 3]]).any()
    assert np.isnan(raised.value.vectors[[1, 2]]).all()


async def test_what_is_not_cached_is_said_by_its_own_error(kind: Kind, node: Node) -> None:
    only = CacheControl(only_if_cached=True)
    async with kind(at(node)) as client:
        with pytest.raises(NotCached):
            await client.embed(["new"], cache=only)
        await client.embed(["new"])
        result = await client.embed_detailed(["new", "newer"], cache=only)

    assert result.sources == (Source.L1, Source.NONE)
    assert isinstance(result.failed[0].error, NotCached)


async def test_names_that_the_cache_does_not_know_are_refused(kind: Kind, node: Node) -> None:
    async with kind(at(node)) as client:
        with pytest.raises(UnknownModel, match="'other' is not served here"):
            await client.embed(["a"], model="other")
        with pytest.raises(InvalidRequest, match="'passage' is unknown"):
            await client.embed(["a"], prompt="passage")
        with pytest.raises(InvalidRequest, match="this model has 8"):
            await client.embed(["a"], dimensions=9)


async def test_a_prompt_makes_another_entry(kind: Kind, tap: Tap, node: Node) -> None:
    async with kind(at(node)) as client:
        plain = await client.embed("a")
        by_field = await client.embed("a", prompt="query")
        by_alias = await client.embed("a", model="docs:query")

    assert tap.texts == ["a", "query: a"]
    np.testing.assert_array_equal(by_field, by_alias)
    assert not np.array_equal(plain, by_field)


async def test_what_is_invalidated_is_computed_anew(kind: Kind, tap: Tap, node: Node) -> None:
    async with kind(at(node), near_cache=NearCache(max_bytes=1 << 20)) as client:
        await client.embed(["a", "b"])
        await client.invalidate(["a"])
        await client.embed(["a", "b"])
        await client.invalidate_all()
        last = await client.embed(["a"])

    assert tap.texts == ["a", "b", "a", "a"]
    assert last.tobytes() == tap.computed["a"][-1]


async def test_hits_are_served_beside_misses_that_a_busy_embedder_refuses(
    kind: Kind, tap: Tap, node: Node
) -> None:
    async with kind(at(node)) as client:
        hit = await client.embed("hit")
        tap.overloaded = True
        result = await client.embed_detailed(["hit", "miss"])

    np.testing.assert_array_equal(hit[0], result.vectors[0])
    assert isinstance(result.failed[0].error, Overloaded)


async def test_a_node_that_never_saw_an_embedder_says_so(kind: Kind, tmp_path: Path) -> None:
    config = node_config(tmp_path, 1)
    async with running(config, ready=False) as node, kind(at(node), timeout_s=0.5) as client:
        with pytest.raises(EmbedderUnavailable, match="no embedder"):
            await client.embed(["a"])


async def test_only_a_tenants_key_opens_the_cache(kind: Kind, tap: Tap, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("right-key\n")
    (tmp_path / "secret").write_bytes(bytes(range(32)))
    fields = {
        "cluster_secret_file": str(tmp_path / "secret"),
        "tenants": [{"name": "acme", "api_key_file": str(tmp_path / "key")}],
    }
    async with (
        serve_tap(tap) as port,
        running(node_config(tmp_path, port, **fields)) as node,
        kind(at(node)) as nobody,
        kind(at(node), api_key="wrong-key") as stranger,
        kind(at(node), api_key=tmp_path / "key") as tenant,
    ):
        with pytest.raises(Unauthenticated):
            await nobody.embed(["a"])
        with pytest.raises(Unauthenticated) as raised:
            await stranger.embed(["a"])
        assert "wrong-key" not in str(raised.value)
        assert (await tenant.embed(["a"])).shape == (1, DIMENSIONS)
