"""How latency, memory, start-up and throughput move as work grows.

    make .venv-peers/ready
    .venv-peers/bin/python benchmarks/curves.py [--quick]

Entries: one node and one Valkey are filled through the node to 10,000, 100,000 and 1,000,000
entries of 384 dimensions. At each size hits are measured in L1 and, through a node without L1 on
the same Valkey, in Valkey; and a new node is started in front of that Valkey, until it has answered
one text from there. The largest size takes about 6 GiB.

Clients: 1 to 256 calls in flight, from at most 16 processes with one connection each, 8 texts a
call, without retries, so that a refusal is seen. Shards: see shards.py.

Writes benchmarks/results/curves.json and its tables in docs/benchmarks.md.
"""

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final

import numpy as np
import uvloop

import shards
from callers import Asking, Callers
from embedkeep import AsyncClient, CacheControl, Client, Source
from report import COMMITTED, draft, made_on, table
from rig import Node, Rig, Upstream, Valkey
from systems import Embedkeep, EmbedkeepAsync
from turns import arguments, say, thousands

DIMS: Final = 384
ENTRIES: Final = (10_000, 100_000, 1_000_000)
QUICK_ENTRIES: Final = (2_000, 10_000)
BATCHES: Final = (1, 32)
ASKED: Final = 20_000
"""Texts that hits are drawn from, spread over all that are kept."""
FILL: Final = 512
"""Texts a call while it is filled."""
FILLERS: Final = 4
"""Calls in flight meanwhile: far below what a node takes."""
SLOT_BYTES: Final = 2048
"""Room in L1 for an entry, with what keeping it costs."""
SETTLED_S: Final = 10.0
"""How long Valkey may get no new key while some are still missing."""
STARTS: Final = 3
CLIENTS: Final = (1, 4, 16, 64, 256)
PROCESSES: Final = 16
CLIENTS_BATCH: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Hits of one tier at one size, one client."""

    entries: int
    tier: str
    batch: int
    p50_us: float
    p99_us: float
    n: int
    misses: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a number of entries takes."""

    entries: int
    fill_texts_per_s: float
    """Through the node, misses all, with a model that costs nothing."""
    node_rss_mib: float
    """Of the node with all of them in L1."""
    valkey_mib: float
    """Its used_memory."""
    start_s: float
    """From starting a node's process to its first answer from that Valkey."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Calls in flight on one node."""

    tier: str
    clients: int
    processes: int
    batch: int
    vectors_per_s: float
    p50_us: float
    p99_us: float
    refused: int
    n: int


def text(number: int) -> str:
    """Of a question's usual length, and never twice the same."""
    return f"what would you answer to somebody who asks for parcel number {number}?"


async def fill(url: str, numbers: range) -> float:
    """Ask for *numbers* through the node. Returns texts a second."""
    starts = iter(range(numbers.start, numbers.stop, FILL))
    began = time.perf_counter()
    async with AsyncClient(url, timeout_s=120.0) as client:

        async def filler() -> None:
            for start in starts:
                await client.embed([text(n) for n in numbers[start - numbers.start :][:FILL]])

        async with asyncio.TaskGroup() as group:
            for _ in range(FILLERS):
                group.create_task(filler())
    return len(numbers) / (time.perf_counter() - began)


def settled(valkey: Valkey, wanted: int) -> None:
    """Wait until Valkey holds *wanted* keys.

    Raises:
        SystemExit: Some never came.
    """
    keys, since = -1, time.monotonic()
    while keys < wanted:
        if (now := int(str(valkey.run("DBSIZE")))) != keys:
            keys, since = now, time.monotonic()
        elif time.monotonic() - since > SETTLED_S:
            raise SystemExit(f"{keys} of {wanted} entries came to Valkey")
        time.sleep(0.05)


def start_s(rig: Rig, upstream: Upstream, valkey: Valkey, entries: int) -> float:
    """Seconds from starting a node's process until it has answered from that Valkey."""
    began = time.perf_counter()
    node = rig.node(upstream.grpc_port, valkey)
    with Client(node.url) as client:
        only = CacheControl(only_if_cached=True)
        while True:
            answer = client.embed_detailed(text(random.randrange(entries)), cache=only)
            if answer.sources == (Source.VALKEY,):
                break
    seconds = time.perf_counter() - began
    node.process.stop()
    return seconds


def latencies(
    nodes: dict[str, Node], upstream: Upstream, entries: int, *, quick: bool
) -> Iterator[Latency]:
    """Hits in turns, of texts spread over all that are kept."""
    asked = [text(n) for n in random.Random(0).sample(range(entries), min(entries, ASKED))]
    openers = {tier: partial(Embedkeep, node.url) for tier, node in nodes.items()}
    found: dict[tuple[str, int], list[float]] = {}
    misses: dict[tuple[str, int], int] = {}
    with Callers(1, openers, asked) as callers:
        for tier in nodes:
            callers.open(tier)
        for number, tier, batch in itertools.product(range(2 if quick else 6), nodes, BATCHES):
            upstream.reset()
            window = callers.window(
                tier, Asking(batch=batch, seconds=0.1 if quick else 0.5, callers=1)
            )
            if number:  # the first round connects and warms up
                found.setdefault((tier, batch), []).extend(window.seconds)
                misses[tier, batch] = misses.get((tier, batch), 0) + upstream.texts()
    for (tier, batch), seconds in found.items():
        yield Latency(
            entries=entries,
            tier=tier,
            batch=batch,
            p50_us=_us(seconds, 0.5),
            p99_us=_us(seconds, 0.99),
            n=len(seconds),
            misses=misses[tier, batch],
        )


def sizes(rig: Rig, *, quick: bool) -> tuple[list[Size], list[Latency], dict[str, str]]:
    """Fill one Valkey and one node further and further."""
    counts = QUICK_ENTRIES if quick else ENTRIES
    valkey, upstream = rig.valkey(), rig.upstream(dims=DIMS)
    full = rig.node(upstream.grpc_port, valkey, l1_bytes=counts[-1] * SLOT_BYTES)
    nodes = {"L1": full, "Valkey": rig.node(upstream.grpc_port, valkey, l1_bytes=0)}
    reached: list[Size] = []
    hits: list[Latency] = []
    kept = int(str(valkey.run("DBSIZE")))  # what the nodes agree on
    for before, entries in itertools.pairwise((0, *counts)):
        say(f"filling to {entries:,} entries")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            rate = runner.run(fill(full.url, range(before, entries)))
        settled(valkey, kept + entries)
        say("measuring hits")
        hits += latencies(nodes, upstream, entries, quick=quick)
        say("starting nodes")
        starts = [start_s(rig, upstream, valkey, entries) for _ in range(1 if quick else STARTS)]
        reached.append(
            Size(
                entries=entries,
                fill_texts_per_s=round(rate),
                node_rss_mib=round(full.process.rss_mib()),
                valkey_mib=round(int(valkey.info()["used_memory"]) / 2**20),
                start_s=round(statistics.median(starts), 2),
            )
        )
    return reached, hits, valkey.described()


def loads(rig: Rig, *, quick: bool) -> Iterator[Load]:
    """More and more calls in flight on one node, on L1 and on Valkey."""
    valkey, upstream = rig.valkey(), rig.upstream(dims=DIMS)
    nodes = {
        "L1": rig.node(upstream.grpc_port, valkey),
        "Valkey": rig.node(upstream.grpc_port, valkey, l1_bytes=0),
    }
    texts = [text(n) for n in range(1024)]
    with Client(nodes["L1"].url) as client:
        client.embed(texts)
    openers = {t: partial(EmbedkeepAsync, node.url, attempts=1) for t, node in nodes.items()}
    rounds = 2 if quick else 4
    found: dict[tuple[str, int], list[tuple[float, list[float], int]]] = {}
    with Callers(PROCESSES, openers, texts) as callers:
        for tier in nodes:
            callers.open(tier)
        for number, tier, clients in itertools.product(range(rounds), nodes, CLIENTS):
            asking = Asking(
                batch=CLIENTS_BATCH,
                seconds=0.2 if quick else 1.0,
                callers=min(clients, PROCESSES),
                parallel=max(1, clients // PROCESSES),
                may_fail=True,
            )
            window = callers.window(tier, asking)
            if number:  # the first round connects and warms up
                cell = found.setdefault((tier, clients), [])
                cell.append((window.vectors_per_s, window.seconds, window.failed))
    for (tier, clients), cells in found.items():
        seconds = [second for _, part, _ in cells for second in part]
        yield Load(
            tier=tier,
            clients=clients,
            processes=min(clients, PROCESSES),
            batch=CLIENTS_BATCH,
            vectors_per_s=round(statistics.median(rate for rate, _, _ in cells)),
            p50_us=_us(seconds, 0.5),
            p99_us=_us(seconds, 0.99),
            refused=sum(failed for _, _, failed in cells),
            n=len(seconds),
        )


def _us(seconds: Sequence[float], quantile: float) -> float:
    return round(float(np.quantile(seconds, quantile)) * 1e6, 1)


def size_table(reached: Sequence[Size], hits: Sequence[Latency]) -> str:
    """One row a size."""
    at = {(hit.entries, hit.tier, hit.batch): hit for hit in hits}
    ways = list(itertools.product(("L1", "Valkey"), BATCHES))
    head = (
        "entries",
        *(f"{tier} b{batch}: p50 (p99), us" for tier, batch in ways),
        "node, MiB",
        "Valkey, MiB",
        "start, s",
        "filled, texts/s",
    )
    return table(
        head,
        (
            [
                thousands(size.entries),
                *(
                    f"{thousands(hit.p50_us)} ({thousands(hit.p99_us)})"
                    for hit in (at[size.entries, *way] for way in ways)
                ),
                thousands(size.node_rss_mib),
                thousands(size.valkey_mib),
                f"{size.start_s:.2f}",
                thousands(size.fill_texts_per_s),
            ]
            for size in reached
        ),
    )


def load_table(rows: Sequence[Load]) -> str:
    """One row a tier and number of clients."""
    return table(
        ("tier", "calls in flight", "vectors/s", "p50, us", "p99, us", "refused", "calls"),
        (
            [
                row.tier,
                str(row.clients),
                thousands(row.vectors_per_s),
                thousands(row.p50_us),
                thousands(row.p99_us),
                str(row.refused),
                f"{row.n:,}",
            ]
            for row in rows
        ),
    )


def shard_table(rows: Sequence[shards.Sharded], left_out: dict[str, str]) -> str:
    """One row a tier, size of call and number of shards; then what was left out."""
    ordered = sorted(rows, key=lambda row: (row.tier, row.batch, row.shards))
    text = table(
        ("tier", "texts a call", "shards", "vectors/s", "p50, us", "p99, us"),
        (
            [
                row.tier,
                str(row.batch),
                str(row.shards),
                thousands(row.vectors_per_s),
                thousands(row.p50_us),
                thousands(row.p99_us),
            ]
            for row in ordered
        ),
    )
    out = [f"Left out: {name}: {why.splitlines()[0]}" for name, why in left_out.items()]
    return "\n\n".join([text, *out])


def main() -> None:
    """Measure, keep, and print."""
    quick = arguments(__doc__).quick
    place = draft() if quick else COMMITTED
    with Rig() as rig:
        under_load = list(loads(rig, quick=quick))
    with Rig() as rig:
        reached, hits, server = sizes(rig, quick=quick)
    left_out: dict[str, str] = {}
    sharded = list(shards.measured(left_out, quick=quick))
    place.save(
        "curves",
        server,
        sizes=[asdict(row) for row in reached],
        hits=[asdict(row) for row in hits],
        clients=[asdict(row) for row in under_load],
        shards=[asdict(row) for row in sharded],
        left_out=left_out,
    )
    for block, text in (
        ("sizes", size_table(reached, hits)),
        ("clients", load_table(under_load)),
        ("shards", shard_table(sharded, left_out)),
    ):
        whole = f"{text}\n\n{made_on(server)}"
        place.write(block, whole, script="curves")
        print(whole)


if __name__ == "__main__":
    main()
