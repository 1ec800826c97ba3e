"""What warming by popularity saves after a cache has lost its entries, beside a cache that is cold.

    EMBEDKEEP_DATA=<folder> python benchmarks/warming.py [--quick]

One node before the real all-MiniLM-L6-v2 on the CPU. Questions of NQ-open and WikiAnswers are asked
in the order of the cache2k trace web07: 6,000 requests that a history is kept of, one plan made
from it, and then the next 1,500, one after the other. Before these all entries are lost and the
node starts anew, which is what a change of the model does, too. In half of the rounds, in turns
with the others, the node carries the plan out before they come. Device seconds are the embedder's
own, by purpose.

A round that was warmed spends device time on the plan and saves some on demand; both are written
down.
"""

import argparse
import asyncio
import gzip
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import uvloop

import traces
from embedkeep import AsyncClient
from embedkeep.config import PredictorConfig
from embedkeep.history import plan_name
from embedkeep.keys import tenant_salt, tenant_tag
from embedkeep.predictor.main import predict
from embedkeep_operator.counts import Counts
from embedkeep_operator.local.observe import read
from report import COMMITTED, draft, table
from rig import Embedder, Node, Rig, Valkey

TRACE: Final = "cache2k web07"
FIRST: Final = 60_000
"""Of the trace: warm, as a cache sees traffic on any day but its first."""
BEFORE: Final = 6000
AFTER: Final = 1500
ROUNDS: Final = 3
"""Of each kind."""
HISTORY: Final = {"flush_s": 0.5}
WARMUP: Final = {
    "poll_s": 0.1,
    "recheck_s": 3600.0,
    "budget": {"initial": 600.0, "max": 600.0},
}
"""A budget that is no bound here: what the plan takes is what is measured."""
WAIT_S: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What became of the requests after the loss."""

    warmed: bool
    p50_ms: float
    p99_ms: float
    mean_ms: float
    hit_ratio: float
    demand_s: float
    """Device time of the requests."""
    warm_s: float
    """Device time of the plan."""
    warmed_texts: int
    first_hits: int
    """Of them, that were asked for."""


def order(folder: Path, count: int) -> list[str]:
    """The first *count* requests, each a question."""
    texts: list[str] = []
    for name in ("queries_nqopen_dev", "queries_wikianswers_train"):
        with gzip.open(folder / f"{name}.jsonl.gz", "rt") as lines:
            texts += [json.loads(line)["text"] for line in lines]
    texts = list(dict.fromkeys(texts))
    numbers: dict[int, int] = {}
    keys = traces.keys(folder / traces.SEQUENCES[TRACE])[FIRST : FIRST + count]
    return [texts[numbers.setdefault(key, len(numbers))] for key in keys]


async def ask(node: Node, texts: Sequence[str]) -> list[float]:
    """Ask for each alone, one after the other; how long each took, seconds."""
    took: list[float] = []
    async with AsyncClient(node.url) as client:
        for text in texts:
            began = time.perf_counter()
            await client.embed([text])
            took.append(time.perf_counter() - began)
    return took


async def counted(node: Node, embedder: Embedder) -> tuple[Counts, Counts]:
    """What node and embedder have counted."""
    ports = {"node": node.announced["metrics"], "embedder": embedder.metrics_port}
    found = await read({name: f"http://127.0.0.1:{port}/metrics" for name, port in ports.items()})
    return found["node"], found["embedder"]


async def until_warm(node: Node, embedder: Embedder) -> None:
    """Wait until the plan is held, and nothing more was warmed for a second."""
    before, same = -1.0, 0
    async with asyncio.timeout(WAIT_S):
        while same < 10:
            await asyncio.sleep(0.1)
            counts, _ = await counted(node, embedder)
            same = same + 1 if counts.plan_texts and counts.warmed == before else 0
            before = counts.warmed


def lose_entries(valkey: Valkey) -> None:
    """Delete all but what nodes and predictor keep for themselves."""
    keys = valkey.run("KEYS", "*")
    assert isinstance(keys, list)  # noqa: S101  # narrows the type
    lost = [key for key in keys if not key.startswith(b"embedkeep:")]
    for start in range(0, len(lost), 1000):
        valkey.run("DEL", *lost[start : start + 1000])


async def after_a_loss(
    rig: Rig, valkey: Valkey, embedder: Embedder, texts: Sequence[str], *, warmed: bool
) -> Round:
    """A node that starts without entries, and is asked."""
    lose_entries(valkey)
    node = rig.node(embedder.grpc_port, valkey, history=HISTORY, warmup=WARMUP if warmed else None)
    _, before = await counted(node, embedder)
    if warmed:
        await until_warm(node, embedder)
    took_ms = np.array(await ask(node, texts)) * 1e3
    await asyncio.sleep(3)  # first hits are counted after the answers
    counts, after = await counted(node, embedder)
    node.process.stop()

    def spent_s(purpose: str) -> float:
        return after.spent_device_s[purpose] - before.spent_device_s[purpose]

    return Round(
        warmed=warmed,
        p50_ms=float(np.percentile(took_ms, 50)),
        p99_ms=float(np.percentile(took_ms, 99)),
        mean_ms=float(took_ms.mean()),
        hit_ratio=counts.hit_ratio or 0.0,
        demand_s=spent_s("demand"),
        warm_s=spent_s("warm"),
        warmed_texts=int(counts.warmed),
        first_hits=int(counts.warmed_hits),
    )


async def measured(*, quick: bool) -> tuple[list[Round], int]:
    """All rounds, and how many texts the plan names."""
    before, after = (600, 150) if quick else (BEFORE, AFTER)
    requests = order(traces.folder(), before + after)
    with Rig() as rig:
        valkey, embedder = rig.valkey(), rig.minilm()
        node = rig.node(embedder.grpc_port, valkey, history=HISTORY)
        await ask(node, requests[:before])
        await asyncio.sleep(2)
        node.process.stop()
        config = PredictorConfig.model_validate(
            {"name": "bench", "valkeys": [{"port": valkey.port}]}
        )
        report = await predict(config, now_s=time.time())
        name = plan_name(tenant_tag(tenant_salt(b"", "")))
        plan = valkey.run("GET", name)
        assert isinstance(plan, bytes)  # noqa: S101  # narrows the type
        rounds: list[Round] = []
        for number in range(2 if quick else 2 * ROUNDS):
            valkey.run("SET", name, plan)
            rounds.append(
                await after_a_loss(rig, valkey, embedder, requests[before:], warmed=number % 2 == 1)
            )
            print(rounds[-1], flush=True)
        return rounds, report.planned


def rows(rounds: Sequence[Round]) -> list[list[str]]:
    """Medians of each kind, beside the cold one's."""
    found: list[list[str]] = []
    kinds = [[each for each in rounds if each.warmed is warmed] for warmed in (False, True)]
    cold = [asdict(each) for each in kinds[0]]

    def middle(of: Sequence[dict[str, float]], field: str) -> float:
        return float(np.median([each[field] for each in of]))

    for name, kind in zip(("cold", "warmed"), kinds, strict=True):
        these = [asdict(each) for each in kind]
        cells = [name]
        for field in ("p50_ms", "p99_ms", "mean_ms"):
            value = middle(these, field)
            cells.append(f"{value:.2f} ({value / middle(cold, field):.2f})")
        cells += [f"{middle(these, 'hit_ratio'):.1%}"]
        cells += [f"{middle(these, field):.2f}" for field in ("demand_s", "warm_s")]
        cells += [f"{middle(these, field):.0f}" for field in ("warmed_texts", "first_hits")]
        found.append(cells)
    return found


def main() -> None:
    """Measure, keep the result, print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="short, and not to be believed")
    quick = parser.parse_args().quick
    place = draft() if quick else COMMITTED
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rounds, planned = runner.run(measured(quick=quick))
    head = [
        "after the loss", "p50, ms (to cold)", "p99, ms (to cold)", "mean, ms (to cold)", "hits",
        "device s, demand", "device s, warm", "texts warmed", "of them asked for",
    ]  # fmt: skip
    place.save("warming", planned=planned, result=[asdict(each) for each in rounds])
    text = table(head, rows(rounds))
    place.write("warming", text)
    print(text)


if __name__ == "__main__":
    main()
