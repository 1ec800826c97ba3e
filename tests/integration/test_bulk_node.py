"""A bulk run through a real node: beside people, beyond its bounds, and over its restart."""

import asyncio
from itertools import repeat
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from embedkeep.cli.embed import embed
from embedkeep.v1 import embedder_pb2
from support.node import Node, node_config, running, sources, tapped, until
from support.tap import Tap, serve_tap
from support.valkey import Valkey, free_port


def bulk(node: Node, source: Path, output: Path) -> list[str]:
    """What a user types."""
    address = f"127.0.0.1:{node.port}"
    files = ["-f", str(source), "-o", str(output)]
    return ["-a", address, "--bulk", *files, "--timeout", "60"]


async def test_people_are_answered_while_a_bulk_run_fills_the_embedder(
    tap: Tap, node: Node, tmp_path: Path
) -> None:
    """All that the run may have under way waits at the embedder; a person's text does not."""
    texts = [f"text {number}" for number in range(2000)]
    source, output = tmp_path / "in.txt", tmp_path / "out.npy"
    source.write_text("\n".join(texts))
    arguments = bulk(node, source, output)
    tap.gate.clear()
    pending = asyncio.create_task(asyncio.to_thread(CliRunner().invoke, embed, arguments))
    for _ in range(4):
        call = await tap.entered.get()
        assert call.purpose == embedder_pb2.PURPOSE_BULK

    asked = asyncio.create_task(node.embed("a person's"))
    call = await tap.entered.get()
    assert (call.texts, call.purpose) == (["a person's"], embedder_pb2.PURPOSE_DEMAND)
    tap.gate.set()

    assert sources(await asked) == ["embedder"]
    result = await pending
    assert result.exit_code == 0, result.output


async def test_a_bulk_run_is_slowed_down_and_people_are_not_refused(
    store: Valkey, tmp_path: Path
) -> None:
    """Bulk stops at three quarters of what may wait: the rest is kept for people.

    Its batches grow to more than there is room for, and are answered in parts.
    """
    tap = Tap()
    source, output = tmp_path / "in.txt", tmp_path / "out.npy"
    source.write_text("\n".join(f"text {number}" for number in range(500)))
    limits = {"max_pending_inputs": 80}
    async with tapped(tap, tmp_path, valkey={"port": store.port}, limits=limits) as node:
        tap.gate.clear()
        arguments = bulk(node, source, output)
        pending = asyncio.create_task(asyncio.to_thread(CliRunner().invoke, embed, arguments))
        await tap.entered.get()

        async def refused() -> bool:
            return await node.metric("embedkeep_refused_total") > 0

        await until(refused)
        asked = asyncio.create_task(node.embed("a person's", "another's"))
        while (call := await tap.entered.get()).purpose != embedder_pb2.PURPOSE_DEMAND:
            pass
        tap.gate.set()

        assert call.texts == ["a person's", "another's"]
        assert sources(await asked) == ["embedder", "embedder"]
        result = await pending
        assert result.exit_code == 0, result.output


async def test_a_run_survives_that_its_node_is_restarted(store: Valkey, tmp_path: Path) -> None:
    tap = Tap(delays_s=repeat(0.02))
    texts = [f"text {number}" for number in range(3000)]
    source, output = tmp_path / "in.txt", tmp_path / "out.npy"
    source.write_text("\n".join(texts))
    async with serve_tap(tap) as port:
        config = node_config(
            tmp_path, port, grpc={"port": free_port()}, valkey={"port": store.port}
        )
        async with running(config) as node:
            arguments = bulk(node, source, output)
            pending = asyncio.create_task(asyncio.to_thread(CliRunner().invoke, embed, arguments))
            for _ in range(3):
                await tap.entered.get()
        assert not pending.done()
        async with running(config):
            result = await pending

    assert result.exit_code == 0, result.output
    rows = [row.tobytes() for row in np.load(output)]
    assert all(row in tap.computed[text] for text, row in zip(texts, rows, strict=True))
