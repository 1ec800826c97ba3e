"""Tenants never meet, and their keys come and go without touching what they have stored."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from embedkeep.config import NodeConfig
from support.node import Node, node_config, rows, running, scrape, sources, until, until_serving
from support.tap import Tap, serve_tap
from support.valkey import Valkey

RED, BLUE = "red-key", "blue-key"


MAX_CALLS = 8


def two_tenants(folder: Path, embedder_port: int, store: Valkey) -> NodeConfig:
    """A node's config with its secrets."""
    (folder / "red").write_text(RED)
    (folder / "blue").write_text(BLUE)
    (folder / "secret").write_bytes(b"s" * 32)
    return node_config(
        folder,
        embedder_port,
        valkey={"port": store.port},
        cluster_secret_file=str(folder / "secret"),
        tenants=[{"name": name, "api_key_file": str(folder / name)} for name in ("red", "blue")],
        limits={"max_concurrent_calls": MAX_CALLS},
    )


@pytest.fixture
async def shared(tap: Tap, store: Valkey, tmp_path: Path) -> AsyncIterator[Node]:
    """A node with two tenants."""
    async with serve_tap(tap) as port, running(two_tenants(tmp_path, port, store)) as node:
        await node.until_tier("valkey", serving=True, api_key=RED)
        yield node


async def test_one_tenant_never_gets_anothers_entry(shared: Node) -> None:
    red = await shared.embed("a", api_key=RED)

    blue = await shared.embed("a", api_key=BLUE)
    probed = await shared.embed("b", api_key=BLUE, cache_control={"only_if_cached": True})

    assert sources(blue) == ["embedder"]
    assert rows(red) != rows(blue)
    assert rows(await shared.embed("a", api_key=RED)) == rows(red)
    assert list(probed.statuses) == [grpc.StatusCode.NOT_FOUND.value[0]]


async def test_concurrent_misses_of_two_tenants_are_not_coalesced(shared: Node, tap: Tap) -> None:
    """Joining another's computation would tell by its speed what the other asked."""
    tap.gate.clear()
    red = asyncio.create_task(shared.embed("a", api_key=RED))
    await tap.entered.get()
    blue = asyncio.create_task(shared.embed("a", api_key=BLUE))
    await tap.entered.get()
    tap.gate.set()

    assert rows(await red) != rows(await blue)
    assert len({call.flow for call in tap.calls}) == 2


@pytest.mark.parametrize(
    ("api_key", "named"), [(None, "send your API key"), ("green-key", "belongs to no tenant")]
)
async def test_a_missing_or_wrong_api_key_is_refused_before_anything_is_done(
    shared: Node, tap: Tap, api_key: str | None, named: str
) -> None:
    for call in (
        shared.embed("a", api_key=api_key),
        shared.invalidate(api_key=api_key),
        shared.info(api_key=api_key),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert named in (refused.value.details() or "")

    assert tap.calls == []


async def test_a_rotated_api_key_keeps_its_tenants_entries(shared: Node, tmp_path: Path) -> None:
    first = await shared.embed("a", api_key=RED)
    (tmp_path / "red").write_text(f"{RED}\nnew-red-key\n")

    async def accepted() -> bool:
        try:
            await shared.info(api_key="new-red-key")
        except grpc.aio.AioRpcError:
            return False
        return True

    await until(accepted)
    both = [await shared.embed("a", api_key=key) for key in (RED, "new-red-key")]
    (tmp_path / "red").write_text("new-red-key\n")

    async def withdrawn() -> bool:
        try:
            await shared.info(api_key=RED)
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.UNAUTHENTICATED
        return False

    await until(withdrawn)
    last = await shared.embed("a", api_key="new-red-key")

    assert [sources(answer) for answer in (*both, last)] == [["l1"]] * 3
    assert {rows(answer)[0] for answer in (*both, last)} == set(rows(first))


async def test_invalidating_one_tenant_leaves_the_other_alone(shared: Node) -> None:
    red = await shared.embed("a", api_key=RED)
    blue = await shared.embed("a", api_key=BLUE)

    await shared.invalidate(api_key=RED)

    assert rows(await shared.embed("a", api_key=BLUE)) == rows(blue)
    assert rows(await shared.embed("a", api_key=RED)) != rows(red)


async def test_no_tenants_name_and_no_text_stands_in_the_metrics_or_in_valkey(
    shared: Node, store: Valkey
) -> None:
    await shared.embed("a telling text", api_key=RED)

    async def stored() -> bool:
        (size,) = store.run(("DBSIZE",))
        return isinstance(size, int) and size >= 2

    await until(stored)
    (keys,) = store.run(("KEYS", "*"))
    page = scrape(shared.metrics_port)

    assert isinstance(keys, list)
    for word in ("red", "blue", "telling"):
        assert f'"{word}' not in page
        assert not any(word.encode() in key for key in keys)


async def test_the_keys_of_a_tenant_can_be_found_by_its_tag(shared: Node, store: Valkey) -> None:
    """What docs/operations.md tells an admin to purge by."""
    await shared.embed("a", "b", api_key=RED)
    await shared.embed("a", api_key=BLUE)

    async def stored() -> bool:
        (keys,) = store.run(("KEYS", "*"))
        assert isinstance(keys, list)
        return sorted(keys.count(key) for key in keys if len(key) == 24) == [1, 1, 1]

    await until(stored)
    (keys,) = store.run(("KEYS", "*"))
    assert isinstance(keys, list)
    tags = [key[4:8] for key in keys if len(key) == 24]

    assert sorted(tags.count(tag) for tag in set(tags)) == [1, 2]
    assert len({key[:4] for key in keys if len(key) == 24}) == 1


async def test_strangers_and_one_tenants_calls_shut_out_nobody_and_not_the_health_check(
    tap: Tap, store: Valkey, tmp_path: Path
) -> None:
    async with serve_tap(tap) as port, running(two_tenants(tmp_path, port, store)) as node:
        stranger = node.stub.EmbedStream(timeout=30)
        refused = await stranger.code()
        tap.gate.clear()
        flood = [
            asyncio.create_task(node.embed(f"text {n}", api_key=RED)) for n in range(MAX_CALLS)
        ]
        for _ in range(MAX_CALLS // 2):
            await tap.entered.get()

        await until_serving(node.channel)
        blue = asyncio.create_task(node.embed("a", api_key=BLUE))
        await tap.entered.get()
        tap.gate.set()
        answers = await asyncio.gather(*flood, return_exceptions=True)

        assert refused is grpc.StatusCode.UNAUTHENTICATED
        assert sources(await blue) == ["embedder"]
        failed = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
        assert len(failed) == MAX_CALLS - MAX_CALLS // 2
        assert {error.code() for error in failed} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
