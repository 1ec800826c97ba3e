"""How long the steps of the end-to-end tests take, kept for docs/e2e.md.

Lines of `.e2e/steps.tsv`: a step, a tab, seconds. `make images` appends to it as well; of a step
that was done several times the last one counts.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
KEPT: Final = ROOT / ".e2e" / "steps.tsv"
PAGE: Final = ROOT / "docs" / "e2e.md"
BEGIN: Final = "<!-- times: written by make e2e-times -->"
END: Final = "<!-- end of times -->"


@contextmanager
def step(name: str) -> Iterator[None]:
    """Measure one step. What fails is not kept."""
    began = time.monotonic()
    yield
    KEPT.parent.mkdir(exist_ok=True)
    with KEPT.open("a") as kept:
        kept.write(f"{name}\t{time.monotonic() - began:.1f}\n")


def table(lines: str) -> str:
    """What was kept, as Markdown, in the order in which steps were first done."""
    seconds = dict(line.split("\t") for line in lines.splitlines())
    rows = [f"| {name} | {float(took):,.1f} |" for name, took in seconds.items()]
    return "\n".join(["| step | seconds |", "| --- | ---: |", *rows])


def write() -> None:
    """Put the table between its marks on docs/e2e.md."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(KEPT.read_text())}\n\n{END}{after}")


if __name__ == "__main__":
    write()
