"""How long an upstream's answer takes to be read: base64 and decimals, by rows and dimensions.

.venv/bin/python benchmarks/upstream_answers.py
"""

import base64
import json
import time

import numpy as np

from embedkeep.embedder.upstream.wires import MOST_DECIMALS, Answer, OpenAI, read

REPEATS = 5
WIRE = OpenAI(model="any", dimensions=None)


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
    for _ in range(REPEATS):
        started = time.perf_counter()
        found = read(WIRE, {}, body, inputs=rows, dimensions=dimensions)
        times.append(time.perf_counter() - started)
        if not isinstance(found, Answer) or (found.vectors != drawn).any():
            raise AssertionError("it was read wrong")
    return 1000 * min(times)


if __name__ == "__main__":
    print(f"at most {MOST_DECIMALS} decimals are asked for in one request")
    for rows, dimensions in ((32, 384), (32, 1024), (MOST_DECIMALS // 1536, 1536), (2048, 1536)):
        plain, slow = (best_ms(rows, dimensions, decimals=each) for each in (False, True))
        print(f"{rows:5} x {dimensions:4}: base64 {plain:7.1f} ms, decimals {slow:7.1f} ms")
