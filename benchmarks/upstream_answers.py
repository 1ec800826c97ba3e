"""How long an upstream's answer takes to be read: base64 and decimals, by rows and dimensions.

    .venv-peers/bin/python benchmarks/upstream_answers.py [--quick]

Decimals hold the interpreter for themselves while they are read, so an embedder asks for no more at
once than `MOST_DECIMALS`; what more would cost is the last line.

Writes benchmarks/results/upstream_answers.json and its table in docs/benchmarks.md.
"""

import base64
import json
import time
from dataclasses import asdict, dataclass

import numpy as np

from embedkeep.embedder.upstream.wires import MOST_DECIMALS, Answer, OpenAI, read
from report import COMMITTED, draft, made_on, table
from turns import arguments, thousands

TRIES = 5
"""The best of so many counts: it is the same work each time, and others only add to it."""
SIZES = ((32, 384), (32, 1024), (MOST_DECIMALS // 1536, 1536), (2048, 1536))
"""Rows and dimensions; the third is the largest answer of decimals that is asked for."""
WIRE = OpenAI(model="any", dimensions=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One size of answer, in both encodings."""

    rows: int
    dimensions: int
    base64_ms: float
    decimals_ms: float


def best_ms(rows: int, dimensions: int, *, decimals: bool) -> float:
    """The best of some tries, ms."""
    drawn = np.random.default_rng(1).standard_normal((rows, dimensions)).astype(np.float32)
    data = [
        {
            "index": index,
            "embedding": row.tolist() if decimals else base64.b64encode(row.tobytes()).decode(),
        }
        for index, row in enumerate(drawn)
    ]
    body = json.dumps({"data": data, "usage": {"total_tokens": rows}}).encode()
    times = []
    for _ in range(TRIES):
        started = time.perf_counter()
        found = read(WIRE, {}, body, inputs=rows, dimensions=dimensions)
        times.append(time.perf_counter() - started)
        if not isinstance(found, Answer) or (found.vectors != drawn).any():
            raise AssertionError("it was read wrong")
    return round(1000 * min(times), 2)


def main() -> None:
    """Measure, keep, and print."""
    place = draft() if arguments(__doc__).quick else COMMITTED
    rows = [
        Row(
            rows=count,
            dimensions=dimensions,
            base64_ms=best_ms(count, dimensions, decimals=False),
            decimals_ms=best_ms(count, dimensions, decimals=True),
        )
        for count, dimensions in SIZES
    ]
    place.save("upstream_answers", rows=[asdict(row) for row in rows])
    head = ("rows", "dimensions", "base64, ms", "decimals, ms", "decimals to base64")
    lines = (
        [
            thousands(row.rows),
            str(row.dimensions),
            f"{row.base64_ms:.1f}",
            f"{row.decimals_ms:.1f}",
            f"{row.decimals_ms / row.base64_ms:.0f}",
        ]
        for row in rows
    )
    text = "\n\n".join([table(head, lines), made_on({})])
    place.write("upstream_answers", text)
    print(text)


if __name__ == "__main__":
    main()
