"""One cache before another: the inner one's HTTP APIs are an upstream like any other."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from embedkeep.config import ModelSpec, Upstream
from embedkeep.embedder.upstream.service import UpstreamService
from embedkeep.v1 import embedder_pb2_grpc
from support.http import talking
from support.node import Node, floats, node_config, rows, running, sources
from support.tap import Tap, serve_tap
from support.upstream import FakeUpstream, refused, serve

LIMIT = {"max_input_bytes": 512}
"""Above the canaries."""


@asynccontextmanager
async def asking(url: str, protocol: str, **fields: object) -> AsyncIterator[int]:
    """A service that asks what is at *url*; its port."""
    upstream = {"url": url, "protocol": protocol, **fields}
    service = UpstreamService(ModelSpec(name="acme/counter"), Upstream.model_validate(upstream))
    server = grpc.aio.server()
    embedder_pb2_grpc.add_EmbedderServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        await service.start()
        yield port
    finally:
        await server.stop(None)
        await service.close()


@asynccontextmanager
async def two_caches(tmp_path: Path, tap: Tap, protocol: str) -> AsyncIterator[tuple[Node, Node]]:
    """The inner one before *tap*, the outer one before the inner one."""
    for name in ("inner", "outer"):
        (tmp_path / name).mkdir()
    async with (
        serve_tap(tap) as embedder,
        running(node_config(tmp_path / "inner", embedder, limits=LIMIT)) as inner,
        asking(f"http://127.0.0.1:{inner.http_port}", protocol) as port,
        running(node_config(tmp_path / "outer", port)) as outer,
    ):
        tap.calls.clear()
        yield inner, outer


@pytest.mark.parametrize("protocol", ["openai", "tei"])
async def test_a_cache_before_a_cache_hands_on_and_keeps(
    tmp_path: Path, tap: Tap, protocol: str
) -> None:
    async with two_caches(tmp_path, tap, protocol) as (inner, outer):
        first = await outer.embed("a", "b", "a")
        again = await outer.embed("b", "a")
        within = await inner.embed("a", "b")

    assert sources(again) == ["l1", "l1"]
    assert rows(again) == [rows(first)[1], rows(first)[0]]
    assert sorted(tap.texts) == ["a", "b"], "computed once, for both"
    assert sources(within) == ["l1", "l1"]
    if protocol == "openai":
        assert rows(within) == rows(first)[:2], "base64 hands on every bit"
    else:
        lengths = (floats(first) ** 2).sum(axis=1)
        assert lengths == pytest.approx([1.0] * 3, abs=1e-5), "TEI is asked to normalize"


@pytest.mark.parametrize("protocol", ["openai", "tei"])
async def test_an_input_that_the_inner_cache_refuses_fails_alone_in_the_outer_one(
    tmp_path: Path, tap: Tap, protocol: str
) -> None:
    long = "too long " * 99
    async with two_caches(tmp_path, tap, protocol) as (_, outer):
        answer = await outer.embed("a", long, "b", "c")

    assert [(error.index, error.reason) for error in answer.errors] == [(1, "InvalidInput")]
    assert "at most 512" in answer.errors[0].message, "in the inner one's words"
    assert sources(answer) == ["embedder", "unspecified", "embedder", "embedder"]


async def test_a_pause_that_an_upstream_asks_for_reaches_the_http_client(tmp_path: Path) -> None:
    fake = FakeUpstream()
    async with (
        serve(fake),
        asking(fake.url, "openai") as port,
        running(node_config(tmp_path, port)) as node,
        talking(node) as http,
    ):
        fake.next = [refused(429, "slow down", None, headers={"retry-after": "300"})]
        openai = await http.openai(input="a")
        tei = await http.tei(inputs="b")

    assert (openai.status, tei.status) == (429, 429)
    assert 290 < int(openai.headers["retry-after"]) <= 300
    assert "the upstream is overloaded" in openai.error["message"]


async def test_an_account_without_quota_is_said_to_the_http_client(tmp_path: Path) -> None:
    fake = FakeUpstream()
    async with (
        serve(fake),
        asking(fake.url, "openai") as port,
        running(node_config(tmp_path, port)) as node,
        talking(node) as http,
    ):
        fake.next = [refused(429, "no money", "insufficient_quota")]
        reply = await http.openai(input="a")

    assert reply.status == 503
    assert reply.error["message"].startswith("the upstream's account has no quota left")
