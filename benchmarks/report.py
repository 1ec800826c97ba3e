"""Keeps what a benchmark measured: the numbers as JSON, the table in docs/benchmarks.md."""

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results"


def keep(name: str, result: object, *, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write results/NAME.json, and the table between NAME's marks on the page.

    Returns:
        The table, in Markdown.
    """
    made_with = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"made_with": made_with, "result": result}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    start, end = f"<!-- {name}: written by benchmarks/{name}.py -->\n", f"\n<!-- end of {name} -->"
    before, _, rest = PAGE.read_text().partition(start)
    _, _, after = rest.partition(end)
    PAGE.write_text(f"{before}{start}\n{table}\n{end}{after}")
    return table
