"""How long a cache with more shards takes to be ready, and a Valkey of it to serve again.

    python benchmarks/starting.py

Real processes, started in turns, several rounds; the model has been converted before. Writes
benchmarks/results/starting.json and its table in docs/benchmarks.md.
"""

import asyncio
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

from embedkeep_operator.local.runner import Local, Running
from embedkeep_operator.render_valkey import CLUSTER_FILE
from report import keep

EXAMPLE = Path(__file__).parent.parent / "examples" / "shards.yaml"
SHARDS = (1, 2, 3)
ROUNDS = 3


def main() -> None:
    """Measure, keep and print."""
    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for shards in SHARDS:
            for what, seconds in asyncio.run(measured(shards)).items():
                found.setdefault(what, []).append(seconds)
    medians = {what: round(statistics.median(seconds), 2) for what, seconds in found.items()}
    one = medians["1 shard, ready"]
    print(
        keep(
            "starting",
            {"rounds": ROUNDS, "median_s": medians},
            head=("what", "seconds, median", "times one shard's start"),
            rows=[[what, str(s), f"{s / one:.2f}"] for what, s in medians.items()],
        )
    )


async def measured(shards: int) -> dict[str, float]:
    """Seconds of one cache's start; of a killed Valkey's return where there are several."""
    name = f"{shards} shard{'s' if shards > 1 else ''}"
    with tempfile.TemporaryDirectory() as state:
        file = Path(state) / "cache.yaml"
        file.write_text(EXAMPLE.read_text().replace("shards: 3", f"shards: {shards}"))
        began = time.perf_counter()
        async with Local(file, state_dir=Path(state) / "state", free_ports=True) as running:
            seconds = {f"{name}, ready": time.perf_counter() - began}
            if shards == max(SHARDS):
                seconds[f"{name}, whole after SIGKILL of a Valkey"] = await mended(running)
                (running.folder / "valkey-1" / CLUSTER_FILE).unlink()
                seconds[f"{name}, the same where it lost its id"] = await mended(running)
            return seconds


async def mended(running: Running) -> float:
    """Seconds from a Valkey's end until all slots are served again and take writes."""
    board, forming = running.supervisor.board, running.forming
    if forming is None:
        raise SystemExit("one shard has no cluster to be mended")
    began = time.perf_counter()
    os.kill(running.pid("valkey-1"), signal.SIGKILL)
    await board.until(lambda: not forming.whole)
    await board.until(lambda: forming.whole)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
