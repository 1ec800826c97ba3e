"""Where a node's time goes while L1 answers: a table of shares, and a flame graph.

    make profile

py-spy (which .venv-peers has) looks at the node's process while it answers calls of 1 and of
128 texts over HTTP as fast as sixteen connections ask for them. For the table each stack of the
event loop counts for the part of the program that its innermost known frame belongs to; pictures
show whoever held the interpreter's lock. Needs the right to trace a process.

Writes the table in docs/performance.md and the pictures docs/images/node-{1,128}.svg.
"""

import asyncio
import re
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

import uvloop

from node_cpu import CLIENTS, Call, connect_http, node, requests
from report import COMMITTED, ROOT, table

PLACE: Final = replace(COMMITTED, page=ROOT / "docs" / "performance.md")
SIZES: Final = (1, 128)
SECONDS: Final = 8
RATE: Final = 500
"""Looks a second."""

LOOP: Final = "Runner.run"
"""A frame of the event loop's thread; the others wait, or serve /metrics."""
PARTS: Final = {
    "keys: a BLAKE2b of each text": ("embedkeep/keys.py",),
    "L1: finding, ranking and copying": (
        "node/memory.py", "node/arena.py", "node/keytable.py", "node/eviction.py",
    ),
    "making the answer's message": ("render (", "views.py", "node/exchange.py"),
    "counting": ("metrics.py", "_count ("),
    "reading and checking the request": (
        "_parse (", "node/trace.py", "http/headers.py", "calls.py", "admission.py", "tenants.py",
    ),
    "the rest of the path": ("node/cache.py", "node/unary.py"),
}  # fmt: skip
"""By what a frame's text contains; the first that fits."""
WIRE: Final = "HTTP and the event loop, with the messages' bytes"


def part_of(stack: str) -> str:
    """What a stack counts for; its frames stand outermost first."""
    for frame in reversed(stack.split(";")):
        for part, marks in PARTS.items():
            if any(mark in frame for mark in marks):
                return part
    return WIRE


def shares(raw: str) -> dict[str, float]:
    """Each part's share of all samples, 0..1, from lines of stack and count."""
    counts: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        if LOOP in stack:
            counts[part_of(stack)] += int(count)
    return {part: counts[part] / counts.total() for part in (WIRE, *PARTS)}


async def spied(pid: int, calls: list[Call], request: bytes, file: Path, kind: str) -> None:
    """Have py-spy look at *pid* while it is asked; it writes *file*."""
    spy = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("py-spy")), "record", "--pid", str(pid),
        "--format", kind, "--output", str(file), "--duration", str(SECONDS), "--rate", str(RATE),
        *(("--gil",) if kind == "flamegraph" else ()),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + SECONDS + 1

    async def ask(call: Call) -> None:
        while time.monotonic() < until:
            await call(request)

    await asyncio.gather(*(ask(call) for call in calls))
    if await spy.wait():
        raise SystemExit("py-spy failed: may it trace the node?")


def entitled(picture: str, size: int) -> str:
    """*picture* under a title that says what it shows: py-spy's is its own command line."""
    said = f"A node that answers calls with {size} text{'' if size == 1 else 's'} from L1"
    return re.sub(r'(<text id="title"[^>]*>)[^<]*', rf"\g<1>{said}", picture)


async def measured(folder: Path) -> dict[int, dict[str, float]]:
    """Shares by size; draws the pictures on the way."""
    found: dict[int, dict[str, float]] = {}
    asked = dict(requests())
    async with AsyncExitStack() as stack:
        ports, pid = await stack.enter_async_context(node(folder))
        calls = (await connect_http(stack, ports.http))[: max(CLIENTS)]
        for size in SIZES:
            for _ in range(2):
                await calls[0](asked[size])
            raw = folder / f"{size}.raw"
            await spied(pid, calls, asked[size], raw, "raw")
            found[size] = shares(raw.read_text())
            picture = PLACE.images / f"node-{size}.svg"
            await spied(pid, calls, asked[size], picture, "flamegraph")
            picture.write_text(entitled(picture.read_text(), size))
    return found


def main() -> None:
    """Measure, and write the table."""
    with (
        tempfile.TemporaryDirectory(prefix="embedkeep-bench-") as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        found = runner.run(measured(Path(folder)))
    PLACE.save("profile", shares=found)
    text = table(
        ("part", "of a call with 1 text", "with 128"),
        [(part, *(f"{found[size][part]:.0%}" for size in SIZES)) for part in (WIRE, *PARTS)],
    )
    PLACE.write("profile", text, script="node_profile")
    print(text)


if __name__ == "__main__":
    main()
