"""What a hit costs on the node's own path: from the request in its own terms to the answer's bytes.

    python benchmarks/path.py

No transport: `Calls.answer` and `render` are called in this process, one call after the other, on
the loop that a node runs on. What stands in the table is CPU of that loop's thread a call; Valkey
is a process of its own, asked over TCP. Three ways to hit: from L1, from Valkey with no L1, and
from Valkey with an L1 that has lost everything and keeps it again.

Writes benchmarks/results/path.json and the table in docs/performance.md.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

import numpy as np
import uvloop

from embedkeep import views
from embedkeep.config import NodeConfig
from embedkeep.keys import Key
from embedkeep.node.agreement import Agreement
from embedkeep.node.cache import Cache
from embedkeep.node.calls import Calls
from embedkeep.node.embedders import Embedders
from embedkeep.node.exchange import Request
from embedkeep.node.metrics import Metrics
from embedkeep.node.space import Space, agreement_key
from embedkeep.node.tenants import Partition, open_tenants
from embedkeep.node.tier import ValkeyTier
from embedkeep.node.unary import render
from embedkeep.records import Entry
from embedkeep.serving import keep_freed_memory
from embedkeep_operator.local.replay import sample
from report import COMMITTED, ROOT, draft, table
from rig import Rig

SIZES: Final = (1, 8, 32, 128)
TEXTS: Final = 1024
DIMS: Final = 384
ROUNDS: Final = 7
PASSES: Final = 2
"""Over all texts, in each round."""
PLACE: Final = replace(COMMITTED, page=ROOT / "docs" / "performance.md")
SPACE: Final = Space(
    fingerprint="a" * 64,
    dimensions=DIMS,
    max_tokens=256,
    normalized=True,
    min_canary_cosine=0.9999,
    canaries=np.eye(1, DIMS, dtype=np.float32),
)
L1_BYTES: Final = {"L1": 64 << 20, "Valkey, no L1": 0, "Valkey, kept in L1": 64 << 20}


class Path:
    """A node without a way in.

    Args:
        forget: L1 loses everything before each pass over the texts.
    """

    def __init__(self, cache: Cache, calls: Calls, tenant: Partition, *, forget: bool) -> None:
        self.cache = cache
        self._calls = calls
        self.tenant = tenant
        self._forget = forget

    async def passed(self, texts: Sequence[str], size: int) -> float:
        """CPU of this thread for a call with *size* texts, us: the mean of one pass."""
        if self._forget:
            self.cache.epoch_moved(self.tenant)
        parts = [texts[at : at + size] for at in range(0, len(texts), size)]
        started = time.thread_time_ns()
        for part in parts:
            request = Request(texts=part, prompt="", view=views.View())
            answer = await self._calls.answer(request, self.tenant, timeout_s=10)
            render(answer, request.view)
        return (time.thread_time_ns() - started) / len(parts) / 1000


@asynccontextmanager
async def opened(port: int, texts: Sequence[str], name: str) -> AsyncIterator[Path]:
    """A node that holds all of *texts*."""
    config = NodeConfig.model_validate(
        {
            "name": "bench",
            "model": {"name": "bench-model", "source": {"path": "/nowhere"}},
            "l1_bytes": L1_BYTES[name],
            "valkey": {"port": port, "read_timeout_s": 5.0},
            "embedder": {"address": "127.0.0.1:1"},
        }
    )
    tenants, metrics = open_tenants(config), Metrics()
    async with Embedders(config.embedder, on_drift=lambda _why: None) as embedders:
        cache = Cache(
            tenants=tenants,
            embedders=embedders,
            metrics=metrics,
            config=config,
            clock_ms=lambda: time.time_ns() // 1_000_000,
        )
        agreement = Agreement(
            key=agreement_key(config),
            tenants=tenants,
            on_space=cache.adopt,
            on_epoch=lambda _: None,
        )
        assert config.valkey is not None  # noqa: S101  # it was given
        tier = ValkeyTier(config.valkey, shared=agreement, metrics=metrics, poll_s=600)
        cache.connect(tier, None)
        cache.adopt(SPACE)
        calls = Calls(config=config, cache=cache, tenants=tenants, embedders=embedders)
        running = asyncio.create_task(tier.run(), name="valkey")
        await tier.tried.wait()
        (tenant,) = tenants.partitions
        await tier.store(entries(texts, tenant), overwrite=True)
        path = Path(cache, calls, tenant, forget=name == "Valkey, kept in L1")
        await path.passed(texts, 128)
        try:
            yield path
        finally:
            running.cancel()
            await asyncio.wait([running])
            await cache.close()


def entries(texts: Sequence[str], tenant: Partition) -> dict[Key, Entry]:
    """Random vectors for *texts*."""
    rows = np.random.default_rng(7).standard_normal((len(texts), DIMS), np.float32)
    keys = tenant.keys(fingerprint=SPACE.fingerprint, prompt="").keys(texts)
    return {
        key: Entry(vector=row, tokens=12, truncated=False, device_ns=5_000_000, born_s=1)
        for key, row in zip(keys, rows, strict=True)
    }


async def measured(port: int, texts: Sequence[str], rounds: int) -> dict[str, dict[int, float]]:
    """CPU a call, us, by way and size: the median of the rounds, all ways in turns."""
    found: dict[tuple[str, int], list[float]] = {}
    for number in range(-1, rounds):
        for name in L1_BYTES:
            async with opened(port, texts, name) as path:
                for size in SIZES:
                    for _ in range(PASSES):
                        us = await path.passed(texts, size)
                        if number >= 0:  # the first round warms up
                            found.setdefault((name, size), []).append(us)
    return {
        name: {size: round(statistics.median(found[name, size]), 1) for size in SIZES}
        for name in L1_BYTES
    }


async def profiled(port: int, texts: Sequence[str], name: str, size: int, seconds: float) -> None:
    """Do one thing again and again, for whoever looks with a profiler."""
    async with opened(port, texts, name) as path:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await path.passed(texts, size)


def main() -> None:
    """Measure, keep, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="results go to .bench/")
    parser.add_argument("--only", metavar="WAY", choices=L1_BYTES, help="loop over one, to profile")
    parser.add_argument("--size", type=int, default=128, help="texts a call, with --only")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long, with --only")
    asked = parser.parse_args()
    keep_freed_memory()  # as a node does
    texts = list(dict.fromkeys(sample()))[:TEXTS]
    with Rig() as rig, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        port = rig.valkey().port
        if asked.only is not None:
            runner.run(profiled(port, texts, asked.only, asked.size, asked.seconds))
            return
        found = runner.run(measured(port, texts, 2 if asked.quick else ROUNDS))
    place = draft() if asked.quick else PLACE
    place.save("path", cpu_us=found)
    text = table(
        ("CPU a call, us", *(f"{size} text{'s' if size > 1 else ''}" for size in SIZES)),
        [(name, *(f"{us:,.0f}" for us in row.values())) for name, row in found.items()],
    )
    if not asked.quick:
        place.write("path", text)
    print(text)


if __name__ == "__main__":
    main()
