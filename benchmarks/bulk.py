"""Long runs beside plain ones: what `embed --bulk`, `import` and `export` cost and give.

    EMBEDKEEP_DATA=<folder> python benchmarks/bulk.py

20,000 distinct real questions (WikiAnswers, Natural Questions) through a quickstart cache, by the
commands that a user types, each a process of its own, start-up included. Cold: everything was
invalidated before. Warm runs take turns, so that a busy moment hits all alike.

Writes benchmarks/results/bulk.json and the table in docs/benchmarks.md.
"""

import asyncio
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final
from urllib.request import urlopen

import numpy as np
import pyarrow.parquet as pq
import yaml

from embedkeep import Client
from embedkeep_operator.local.runner import Local, Running
from report import ROOT, keep
from traces import folder as data

TEXTS: Final = 20_000
ROUNDS: Final = 3
FILES: Final = ("queries_wikianswers_train.jsonl.gz", "queries_nqopen_dev.jsonl.gz")


Found = dict[tuple[str, str], list[tuple[float, int]]]
"""Seconds and texts computed of each run, by way and state of the cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One way, in one state of the cache."""

    way: str
    state: str
    seconds: float
    """The median of all rounds."""
    texts_per_s: float
    computed: int
    """Texts that the model computed."""
    to_plain: float
    """Texts a second, to plain `embedkeep embed` to .npy in the same state."""


def questions() -> Iterator[str]:
    """Real questions, each once."""
    seen: set[str] = set()
    for name in FILES:
        with gzip.open(data() / name, "rt") as lines:
            for line in lines:
                if (text := json.loads(line)["text"]) not in seen:
                    seen.add(text)
                    yield text


class Bench:
    """A cache, and the commands against it."""

    def __init__(self, running: Running, folder: Path) -> None:
        self._address = running.url
        self._metrics = running.ports.embedder_metrics
        self.folder = folder

    def forget(self) -> None:
        """Make the cache cold."""
        with Client(self._address, timeout_s=60) as client:
            client.invalidate_all()

    def computed(self) -> int:
        """Texts that the model has computed so far."""
        with urlopen(f"http://127.0.0.1:{self._metrics}/metrics", timeout=30) as page:
            lines = page.read().decode().splitlines()
        values = (
            line.rpartition(" ")[2] for line in lines
            if line.startswith("embedkeep_embed_inputs_total{")
        )  # fmt: skip
        return int(sum(map(float, values)))

    def run(self, *command: str) -> tuple[float, int]:
        """Seconds, and texts computed."""
        before, start = self.computed(), time.perf_counter()
        subprocess.run(self._command(*command), check=True, stderr=subprocess.DEVNULL)
        return time.perf_counter() - start, self.computed() - before

    def killed(self, *command: str, checkpoint: Path, done: int) -> tuple[float, int]:
        """As `run`, killed once *checkpoint* says that so many are done."""
        before, start = self.computed(), time.perf_counter()
        with subprocess.Popen(self._command(*command), stderr=subprocess.DEVNULL) as process:
            while not (checkpoint.exists() and json.loads(checkpoint.read_text())["done"] >= done):
                if process.poll() is not None:
                    raise SystemExit("it ended before it was killed")
                time.sleep(0.05)
            process.kill()
        return time.perf_counter() - start, self.computed() - before

    def _command(self, name: str, *more: str) -> list[str]:
        return [sys.executable, "-m", "embedkeep", name, "--address", self._address, *more]


def measured(bench: Bench, texts: list[str]) -> Found:
    """Run everything once, and what is quick in turns."""
    source = bench.folder / "texts.txt"
    source.write_text("\n".join(texts))
    found: Found = {}

    def note(way: str, state: str, *command: str) -> None:
        found.setdefault((way, state), []).append(bench.run(*command))

    def out(name: str) -> str:
        return str(bench.folder / name)

    plain = ("embed", "--file", str(source), "--output")
    bulk = ("embed", "--bulk", "--file", str(source), "--output")
    bench.forget()
    note("embed", "cold", *plain, out("plain.npy"))
    bench.forget()
    note("embed --bulk", "cold", *bulk, out("bulk.parquet"))
    bench.forget()
    half = bench.killed(
        *bulk, out("again.parquet"), checkpoint=bench.folder / "again.parquet.checkpoint",
        done=len(texts) // 2,
    )  # fmt: skip
    rest = bench.run(*bulk, out("again.parquet"))
    both = (half[0] + rest[0], half[1] + rest[1])
    found["embed --bulk, killed half-way, again", "cold"] = [both]
    if pq.read_table(out("again.parquet")) != pq.read_table(out("bulk.parquet")):
        raise SystemExit("a run that was killed gave something else than one that was not")
    for number in range(ROUNDS):
        note("embed", "warm", *plain, out(f"plain{number}.npy"))
        note("embed, to .jsonl", "warm", *plain, out(f"plain{number}.jsonl"))
        note("embed --bulk, to .npy", "warm", *bulk, out(f"bulk{number}.npy"))
        note("embed --bulk, to .parquet", "warm", *bulk, out(f"bulk{number}.parquet"))
        note("embed --bulk, to .jsonl", "warm", *bulk, out(f"bulk{number}.jsonl"))
    note("export, to .parquet", "warm", "export", "--texts", str(source), "-o", out("e.parquet"))
    bench.forget()
    note("import, from .parquet", "cold", "import", out("e.parquet"))
    note("import, again", "warm", "import", out("e.parquet"))
    note("embed", "imported", *plain, out("imported.npy"))
    if np.load(out("imported.npy")).tobytes() != np.load(out("plain.npy")).tobytes():
        raise SystemExit("what was imported is not what was exported")
    return found


async def with_cache(folder: Path, texts: list[str]) -> Found:
    """Run all against a quickstart cache that has room for all and takes imports."""
    resource = yaml.safe_load((ROOT / "examples" / "quickstart.yaml").read_text())
    resource["metadata"]["name"] = "bench-bulk"
    resource["spec"]["security"] = {"imports": True}
    file = folder / "bulk.yaml"
    file.write_text(yaml.safe_dump(resource))
    async with Local(file, state_dir=folder, free_ports=True) as running:
        return await asyncio.to_thread(measured, Bench(running, folder), texts)


def main() -> None:
    """Measure, keep the result, print it."""
    texts = list(questions())[:TEXTS]
    with tempfile.TemporaryDirectory(prefix="embedkeep-bench-") as folder:
        found = asyncio.run(with_cache(Path(folder), texts))
    seconds = {key: median(second for second, _ in runs) for key, runs in found.items()}
    plain = {state: second for (way, state), second in seconds.items() if way == "embed"}
    lines = [
        Line(
            way=way,
            state=state,
            seconds=round(seconds[way, state], 2),
            texts_per_s=round(len(texts) / seconds[way, state]),
            computed=runs[0][1],
            to_plain=round(plain[state] / seconds[way, state], 2),
        )
        for (way, state), runs in found.items()
    ]
    rows = [
        [
            line.way, line.state, f"{line.seconds:,.1f}", f"{line.texts_per_s:,}",
            f"{line.computed:,}", f"{line.to_plain:.2f}",
        ]
        for line in lines
    ]  # fmt: skip
    head = ["way", "cache", "s", "texts a second", "texts computed", "to plain embed"]
    print(keep("bulk", [asdict(line) for line in lines], head=head, rows=rows))


if __name__ == "__main__":
    main()
