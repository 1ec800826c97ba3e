"""What a miss costs over the embedder alone.

    python benchmarks/miss.py

The quickstart's node and embedder: texts that nobody asked for before go through the node, as many
others straight to the embedder's own gRPC, in turns. What lies between is what the node adds: keys,
two tiers that miss, the way there and back, and storing what came. The embedder is the real one on
the CPU, so single calls vary by far more than the node costs: texts are alike in length, and each
round is one of each, so that the difference of the medians holds.

Writes benchmarks/results/miss.json and the table in docs/benchmarks.md.
"""

import asyncio
import itertools
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import grpc
import numpy as np
import uvloop

from embedkeep import AsyncClient
from embedkeep.v1 import embedder_pb2, embedder_pb2_grpc
from embedkeep_operator.local.runner import Local
from report import ROOT, keep

TIMEOUT_S: Final = 60.0
ROUNDS: Final = {1: 300, 32: 40}
"""By texts a call."""
WORDS: Final = (
    "bank", "card", "payment", "transfer", "account", "balance", "cash", "rate", "fee", "refund",
)  # fmt: skip


def texts() -> Iterator[str]:
    """New ones without end, each of eight words and a number of six digits."""
    draw = np.random.default_rng(7)
    for number in itertools.count(100_000):
        yield f"{' '.join(draw.choice(WORDS, 8))} {number}"


async def seconds(call: Callable[[], Awaitable[object]]) -> float:
    """Of one call."""
    started = time.perf_counter()
    await call()
    return time.perf_counter() - started


async def measured(folder: Path) -> list[dict[str, object]]:
    """Both ways in turns."""
    source, rows = texts(), list[dict[str, object]]()
    quickstart = ROOT / "examples" / "quickstart.yaml"
    async with (
        Local(quickstart, state_dir=folder, free_ports=True) as running,
        AsyncClient(running.url, timeout_s=TIMEOUT_S) as node,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.ports.embedder_grpc}") as to_embedder,
    ):
        embedder: embedder_pb2_grpc.EmbedderAsyncStub = embedder_pb2_grpc.EmbedderStub(to_embedder)
        for size, rounds in ROUNDS.items():
            through, straight = list[float](), list[float]()
            for number in range(-3, rounds):
                asked = list(itertools.islice(source, size))
                bare = embedder_pb2.ComputeRequest(inputs=itertools.islice(source, size))
                by_node = await seconds(lambda asked=asked: node.embed(asked))  # type: ignore[misc]  # a lambda's default has no type
                alone = await seconds(lambda bare=bare: embedder.Embed(bare))  # type: ignore[misc]  # as above
                if number >= 0:  # the first connect and warm up
                    through.append(by_node)
                    straight.append(alone)
            rows.append(row(size, through, straight))
    return rows


def row(size: int, through: list[float], straight: list[float]) -> dict[str, object]:
    """Medians, ms."""
    node_ms, alone_ms = (float(np.median(found)) * 1e3 for found in (through, straight))
    return {
        "texts": size,
        "calls": len(through),
        "node_p50_ms": round(node_ms, 2),
        "embedder_p50_ms": round(alone_ms, 2),
        "over_ms": round(node_ms - alone_ms, 2),
    }


def main() -> None:
    """Measure, keep the result, print it."""
    with (
        tempfile.TemporaryDirectory(prefix="embedkeep-bench-") as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        found = runner.run(measured(Path(folder)))
    head = ["texts a call", "calls", "node p50, ms", "embedder p50, ms", "over it, ms"]
    print(keep("miss", found, head=head, rows=[[str(each) for each in r.values()] for r in found]))


if __name__ == "__main__":
    main()
