"""One to three shards on this machine, asked by 16 processes; `curves.py` runs it.

Each shard is a Valkey and a node, as `embedkeep up` starts them; clients balance over the nodes.
All share this machine's cores with each other and with the clients, so this shows what more shards
cost where there is no more machine, not what they bring where there is.
"""

import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import uvloop
import yaml

from callers import Asking, CallerFailed, Callers
from embedkeep import Client, EmbedKeepError, Source
from embedkeep_operator.local.replay import sample
from embedkeep_operator.local.runner import Local
from report import ROOT
from systems import Embedkeep
from turns import say

SHARDS: Final = (1, 2, 3)
BATCHES: Final = (8, 128)
CLIENTS: Final = 16
TEXTS: Final = 1024
TIERS: Final = {"L1": ("64Mi", {Source.L1}), "Valkey": ("0", {Source.VALKEY})}
"""What L1 gets, and where all answers must then come from."""
FILLED_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharded:
    """Hits over a number of shards."""

    shards: int
    tier: str
    batch: int
    clients: int
    vectors_per_s: float
    p50_us: float
    p99_us: float
    n: int


def measured(left_out: dict[str, str], *, quick: bool) -> Iterator[Sharded]:
    """All numbers of shards, on each tier. What cannot run is left out, with its reason."""
    for tier, shards in itertools.product(TIERS, SHARDS):
        say(f"{shards} shards, {tier}")
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                rows = runner.run(_one(tier, shards, quick=quick))
        except (EmbedKeepError, CallerFailed, OSError) as error:
            left_out[f"{shards} shards, {tier}"] = str(error)
            say(f"left out: {error}")
        else:
            yield from rows


async def _one(tier: str, shards: int, *, quick: bool) -> list[Sharded]:
    with tempfile.TemporaryDirectory(prefix="embedkeep-bench-") as folder:
        written = yaml.safe_load((ROOT / "examples" / "quickstart.yaml").read_text())
        written["metadata"]["name"] = "bench"
        written["spec"]["nodes"]["shards"] = shards
        written["spec"]["nodes"]["memory"]["l1"] = TIERS[tier][0]
        file = Path(folder) / "bench.yaml"
        file.write_text(yaml.safe_dump(written))
        async with Local(file, state_dir=Path(folder), free_ports=True) as running:
            return await asyncio.to_thread(_asked, running.url, tier, shards, quick=quick)


def _asked(address: str, tier: str, shards: int, *, quick: bool) -> list[Sharded]:
    texts = list(dict.fromkeys(sample()))[:TEXTS]
    _fill(address, texts, TIERS[tier][1], shards)
    found: dict[int, list[tuple[float, list[float]]]] = {}
    with Callers(CLIENTS, {tier: partial(Embedkeep, address)}, texts) as callers:
        callers.open(tier)
        for number, batch in itertools.product(range(2 if quick else 5), BATCHES):
            seconds = 0.2 if quick else 0.8
            window = callers.window(tier, Asking(batch=batch, seconds=seconds, callers=CLIENTS))
            if number:  # the first round connects and warms up
                cell = (window.vectors_per_s, window.seconds)
                found.setdefault(batch, []).append(cell)
    rows = []
    for batch, cells in found.items():
        seconds_of = [second for _, part in cells for second in part]
        p50, p99 = (round(float(np.quantile(seconds_of, q)) * 1e6, 1) for q in (0.5, 0.99))
        rows.append(
            Sharded(
                shards=shards,
                tier=tier,
                batch=batch,
                clients=CLIENTS,
                vectors_per_s=round(statistics.median(rate for rate, _ in cells)),
                p50_us=p50,
                p99_us=p99,
                n=len(seconds_of),
            )
        )
    return rows


def _fill(address: str, texts: list[str], wanted: set[Source], shards: int) -> None:
    """Ask until every node has answered everything from *wanted*.

    Raises:
        CallerFailed: They never do.
    """
    end, in_a_row = time.monotonic() + FILLED_S, 0
    with Client(address, timeout_s=60.0) as client:
        while in_a_row < 2 * shards:  # calls go round over the nodes
            if time.monotonic() > end:
                raise CallerFailed(f"not all answers come from {wanted} within {FILLED_S:g} s")
            sources = {
                source
                for at in range(0, len(texts), 128)
                for source in client.embed_detailed(texts[at : at + 128]).sources
            }
            in_a_row = in_a_row + 1 if sources <= wanted else 0
