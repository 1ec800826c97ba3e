"""Callers that vanish, crawl, crowd or flood: others are served, and refusals are cheap."""

import asyncio
import itertools
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from embedkeep import serving
from embedkeep.v1 import cache_pb2, cache_pb2_grpc
from support.line import line_to
from support.node import WAIT_S, Node, node_config, rows, running, sources, until
from support.tap import DIMENSIONS, Tap, serve_tap
from support.valkey import Valkey

CROWD = 1_000
MAX_CALLS = 64
MAX_PENDING = 256
FLOOD = 1_000
SILENT = 200
ROW_BYTES = 4 * DIMENSIONS + 4
"""Of an answer."""
MAX_BUFFERED_BYTES = 64 << 20
"""What one stream's answers may fill, in the node and in gRPC's windows; it asks without end."""


@pytest.fixture
async def small(tap: Tap, store: Valkey, tmp_path: Path) -> AsyncIterator[Node]:
    """A node that takes few calls at once."""
    limits = {"max_concurrent_calls": MAX_CALLS, "max_pending_inputs": MAX_PENDING}
    config = {"valkey": {"port": store.port}, "limits": limits}
    async with serve_tap(tap) as port, running(node_config(tmp_path, port, **config)) as node:
        await node.until_tier("valkey", serving=True)
        yield node


def own_channel(port: int) -> grpc.aio.Channel:
    """A connection that no other channel shares."""
    return grpc.aio.insecure_channel(
        f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]
    )


def stub_on(channel: grpc.aio.Channel) -> "cache_pb2_grpc.EmbeddingCacheAsyncStub":
    """The node's methods."""
    stub: cache_pb2_grpc.EmbeddingCacheAsyncStub = cache_pb2_grpc.EmbeddingCacheStub(channel)
    return stub


async def idle(node: Node) -> None:
    """Wait until nobody's input waits for the embedder any more."""

    async def nothing_waits() -> bool:
        return await node.metric("embedkeep_pending_inputs") == 0

    await until(nothing_waits)


async def test_a_caller_whose_cable_was_pulled_holds_nothing_for_long(
    tap: Tap, store: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells a server of such an end: it has to ask."""
    monkeypatch.setattr(serving, "KEEPALIVE_MS", 200)
    monkeypatch.setattr(serving, "KEEPALIVE_TIMEOUT_MS", 200)
    tap.gate.clear()
    config = node_config(tmp_path, 0, valkey={"port": store.port})
    async with serve_tap(tap) as embedder, line_to(0) as line:
        target = config.embedder.model_copy(update={"address": f"127.0.0.1:{embedder}"})
        async with running(config.model_copy(update={"embedder": target})) as node:
            line.target = node.port
            async with own_channel(line.port) as channel:
                stub = stub_on(channel)
                call = stub.Embed(cache_pb2.EmbedRequest(inputs=["a"]), timeout=WAIT_S)
                await tap.entered.get()

                line.hush()
                async with asyncio.timeout(WAIT_S / 2):
                    await tap.cancellation.wait()
                await idle(node)
                call.cancel()


async def test_a_caller_that_leaves_a_stream_takes_its_requests_along(
    small: Node, tap: Tap
) -> None:
    tap.gate.clear()
    async with own_channel(small.port) as channel:
        stub = stub_on(channel)
        stream = stub.EmbedStream(timeout=WAIT_S)
        for number in range(8):
            await stream.write(asked(number, f"text {number}"))
        for _ in range(8):
            await tap.entered.get()

        stream.cancel()
        await until(lambda: _cancelled(tap, 8))
    await idle(small)
    tap.gate.set()

    assert sources(await small.embed("text 0")) == ["embedder"], "what was cancelled left no trace"


async def _cancelled(tap: Tap, count: int) -> bool:
    return tap.cancelled >= count


def asked(number: int, *texts: str) -> cache_pb2.EmbedStreamRequest:
    """One message of a stream."""
    return cache_pb2.EmbedStreamRequest(id=number, request=cache_pb2.EmbedRequest(inputs=texts))


async def test_a_stream_that_reads_nothing_is_read_no_further(node: Node) -> None:
    """Else the answers to a slow reader would pile up in the node."""
    big = [f"text {number}" for number in range(2_000)]
    await node.embed(*big)
    answered = await node.metric("embedkeep_lookups_total", result="l1")
    async with own_channel(node.port) as channel:
        stub = stub_on(channel)
        crawling = stub.EmbedStream(timeout=WAIT_S)

        async def write_for_ever() -> None:
            number = 0
            while True:
                await crawling.write(asked(number, *big))
                number += 1

        writing = asyncio.create_task(write_for_ever())
        held = [-1.0]

        async def settled() -> bool:
            await asyncio.sleep(0.2)
            held.append(await node.metric("embedkeep_lookups_total", result="l1"))
            return held[-1] == held[-2] > answered

        await until(settled)
        others = await asyncio.gather(*(node.embed("text 1") for _ in range(20)))
        writing.cancel()
        crawling.cancel()

    assert (held[-1] - answered) * ROW_BYTES < MAX_BUFFERED_BYTES
    assert [sources(other) for other in others] == [["l1"]] * 20


async def test_a_thousand_callers_at_once_are_each_answered_or_refused_at_once(
    small: Node, tap: Tap
) -> None:
    async def ask(number: int) -> str:
        async with own_channel(small.port) as channel:
            stub = stub_on(channel)
            text = f"text {number % 10}"
            try:
                answer = await stub.Embed(
                    cache_pb2.EmbedRequest(inputs=[text]), timeout=WAIT_S, wait_for_ready=True
                )
            except grpc.aio.AioRpcError as error:
                return error.code().name
            assert rows(answer)[0] in tap.computed[text]
            return "answered"

    outcomes = await asyncio.gather(*(ask(number) for number in range(CROWD)))

    assert set(outcomes) <= {"answered", "RESOURCE_EXHAUSTED"}
    assert outcomes.count("answered") >= MAX_CALLS / 2
    assert len(tap.texts) == len(set(tap.texts)), "one miss, one forward pass"
    assert sources(await small.embed("text 1")) == ["l1"]


async def test_beyond_the_bound_callers_are_refused_while_the_others_still_wait(
    small: Node, tap: Tap
) -> None:
    """The flood's end does not depend on the embedder: it is shut the whole time."""
    tap.gate.clear()
    calls = [asyncio.create_task(small.embed(f"text {number}")) for number in range(FLOOD)]

    ends = asyncio.as_completed(calls, timeout=WAIT_S)
    for end in itertools.islice(ends, FLOOD - MAX_CALLS // 2):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await end
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    waiting = [call for call in calls if not call.done()]
    tap.gate.set()
    answers = await asyncio.gather(*waiting)

    assert len(waiting) == MAX_CALLS // 2, "a tenant alone gets half"
    assert [sources(answer) for answer in answers] == [["embedder"]] * len(waiting)
    assert len(tap.texts) == len(waiting), "what was refused has started nothing"
    await idle(small)


async def test_connections_that_say_nothing_are_in_nobodys_way(small: Node) -> None:
    """Half-open ones, and such as begin HTTP/2 and stop in the middle of a frame."""
    begun = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">IBI", 6 << 8 | 4, 0, 0)
    silent = [await asyncio.open_connection("127.0.0.1", small.port) for _ in range(SILENT)]
    for number, (_, writer) in enumerate(silent):
        writer.write(begun[: number % (len(begun) + 1)])
        await writer.drain()

    answers = await asyncio.gather(*(small.embed(f"text {number}") for number in range(30)))

    for _, writer in silent:
        writer.close()
    assert [sources(answer) for answer in answers] == [["embedder"]] * 30
