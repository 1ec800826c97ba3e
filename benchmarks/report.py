"""Keeps what a benchmark measured: the numbers as JSON, its tables in docs/benchmarks.md.

A script names its blocks on the page; what stands between a block's marks is written by it alone.
Runs that are too short to be believed go to a copy of all this in .bench/, which is not committed.
"""

import json
import os
import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
LIBRARIES: Final = (
    "aiohttp",
    "grpcio",
    "hiredis",
    "langchain-core",
    "litellm",
    "numpy",
    "onnxruntime",
    "redis",
    "redisvl",
    "torch",
    "uvloop",
)
"""Whose versions stand in each result, where they are installed."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where results, page and charts go."""

    results: Path
    page: Path
    """docs/benchmarks.md."""
    readme: Path
    images: Path

    def save(
        self, name: str, made_with: Mapping[str, object] | None = None, **parts: object
    ) -> None:
        """Write results/NAME.json: *parts* beside what they were made with.

        Args:
            name: Of the file.
            made_with: What only the script knows, such as the server's version.
            parts: The rows, and whatever else belongs to them.
        """
        self.results.mkdir(parents=True, exist_ok=True)
        whole = {"made_with": {**machine(), **(made_with or {})}, **parts}
        (self.results / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")

    def load(self, name: str) -> dict[str, object] | None:
        """What `save` wrote. None: that was not measured yet."""
        file = self.results / f"{name}.json"
        if not file.exists():
            return None
        found: dict[str, object] = json.loads(file.read_text())
        return found

    def write(
        self, block: str, text: str, *, script: str | None = None, page: Path | None = None
    ) -> None:
        """Replace what stands between *block*'s marks on a page.

        Args:
            block: Name in the marks.
            text: Markdown.
            script: Whose marks they are. None: of the script named as the block.
            page: None: docs/benchmarks.md.

        Raises:
            SystemExit: The page has no such marks.
        """
        page = page or self.page
        start = f"<!-- {block}: written by benchmarks/{script or block}.py -->\n"
        end = f"\n<!-- end of {block} -->"
        now = page.read_text()
        if start not in now or end not in now:
            raise SystemExit(f"{page} has no marks {start.strip()} ... {end.strip()}")
        before, _, rest = now.partition(start)
        _, _, after = rest.partition(end)
        page.write_text(f"{before}{start}\n{text}\n{end}{after}")


COMMITTED: Final = Place(
    ROOT / "benchmarks" / "results",
    ROOT / "docs" / "benchmarks.md",
    ROOT / "README.md",
    ROOT / "docs" / "images",
)


def draft() -> Place:
    """Copies of the pages and room for results, for runs too short to be believed."""
    folder = ROOT / ".bench"
    place = Place(
        folder / "results", folder / "benchmarks.md", folder / "README.md", folder / "images"
    )
    place.images.mkdir(parents=True, exist_ok=True)
    for page, copy in ((COMMITTED.page, place.page), (COMMITTED.readme, place.readme)):
        if not copy.exists() or copy.stat().st_mtime < page.stat().st_mtime:
            shutil.copy(page, copy)
    return place


def keep(
    name: str,
    result: object,
    *,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    place: Place = COMMITTED,
) -> str:
    """Write results/NAME.json, and the table between NAME's marks on the page.

    Returns:
        The table, in Markdown.
    """
    place.save(name, result=result)
    text = table(head, rows)
    place.write(name, text)
    return text


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> dict[str, object]:
    """What the numbers depend on besides the code."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": _first("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "libraries": {name: found for name in LIBRARIES if (found := _version(name)) is not None},
    }


def made_on(more: Mapping[str, str]) -> str:
    """The machine and *more* in one line, for a page."""
    made_with = machine()
    words = [
        f"{made_with['cpu']}, {made_with['cores']} cores",
        f"{made_with['memory_gib']} GiB",
        f"Python {made_with['python']}",
        *(f"{name.replace('_', ' ')} {value}" for name, value in more.items()),
    ]
    return f"Measured on {', '.join(words)}; all processes share the cores."


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _first(file: str, field: str) -> str | None:
    """The first value of *field* in a file of `field : value` lines."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), None)
