"""What an entry takes, in a node's L1 and in Valkey, beside its vector.

    python benchmarks/memory.py

L1: how much a process's resident memory grows by an arena that was filled and then evicted as many
entries again. Valkey: how much its `used_memory` grows. Valkey's own count knows the allocator's
size classes, so it depends on the allocator; the wheel's server is built on libc's. Where
EMBEDKEEP_JEMALLOC names a libjemalloc.so.2, that is preloaded into the same server and measured
beside it: Valkey's packages and images use jemalloc.

Writes benchmarks/results/memory.json and the table in docs/benchmarks.md.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from embedkeep.keys import KEY_BYTES, Key
from embedkeep.node.arena import OVERHEAD_BYTES, Arena
from embedkeep.records import Entry, encode
from report import ROOT, keep

sys.path.insert(0, str(ROOT / "tests"))
from support.valkey import Valkey, valkey

L1: tuple[tuple[int, int], ...] = ((384, 100_000), (384, 1_000_000), (1024, 100_000))
"""Dimensions and entries."""
VALKEY = ((384, 100_000), (1024, 50_000))
TENANT = b"one."
PIPELINE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One store at one size of vectors."""

    store: str
    dimensions: int
    entries: int
    bytes_an_entry: float

    @property
    def to_vector(self) -> float:
        """Times the vector's own bytes."""
        return self.bytes_an_entry / (4 * self.dimensions)


def keys(count: int, *, seed: int) -> Iterator[Key]:
    """Keys of one tenant, as uniform as digests are."""
    draw = np.random.default_rng(seed)
    for _ in range(count):
        yield Key(b"spac" + TENANT + draw.bytes(KEY_BYTES - 8))


def entry(dimensions: int) -> Entry:
    """Any vector: no store looks at it."""
    vector = np.random.default_rng(0).random(dimensions, np.float32)
    return Entry(vector=vector, tokens=9, truncated=False, device_ns=1_000_000, born_s=1)


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def l1_growth(dimensions: int, entries: int) -> float:
    """Bytes an entry of a full arena in this process, which should be new."""
    one = entry(dimensions)
    nbytes = entries * (4 * dimensions + OVERHEAD_BYTES)
    before = resident_bytes()
    arena = Arena(nbytes=nbytes, dimensions=dimensions, tenants=[TENANT])
    for number, key in enumerate(keys(2 * entries, seed=1)):
        arena.put(key, one, TENANT)
        if number % 3 == 0:
            arena.find([key, key])
    if (len(arena), arena.evictions) != (entries, entries):
        raise SystemExit(f"{len(arena)} entries, {arena.evictions} evictions")
    return (resident_bytes() - before) / entries


def l1(dimensions: int, entries: int) -> Line:
    """Measured in a process of its own."""
    called = subprocess.run(
        [sys.executable, __file__, str(dimensions), str(entries)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return Line(
        store="L1", dimensions=dimensions, entries=entries, bytes_an_entry=float(called.stdout)
    )


def valkey_growth(server: Valkey, *, store: str, dimensions: int, entries: int) -> Line:
    """Of *server*, emptied before."""
    server.run(("FLUSHALL", "SYNC"))
    one, before = entry(dimensions), used_memory(server)
    commands = [("SET", key, encode(key, one)) for key in keys(entries, seed=2)]
    for start in range(0, entries, PIPELINE):
        server.run(*commands[start : start + PIPELINE])
    grown = (used_memory(server) - before) / entries
    return Line(store=store, dimensions=dimensions, entries=entries, bytes_an_entry=grown)


def used_memory(server: Valkey) -> int:
    """As Valkey counts it."""
    return int(info(server, "memory")["used_memory"])


def info(server: Valkey, section: str) -> dict[str, str]:
    """One section of INFO."""
    (text,) = server.run(("INFO", section))
    assert isinstance(text, bytes)  # noqa: S101  # INFO's reply is text
    return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)


def in_valkey(preload: str | None) -> list[Line]:
    """All sizes, on one allocator."""
    if preload is not None:
        os.environ["LD_PRELOAD"] = preload
    try:
        with tempfile.TemporaryDirectory() as folder, valkey(Path(folder)) as server:
            about = info(server, "server")
            allocator = "jemalloc" if preload else info(server, "memory")["mem_allocator"]
            version = about.get("valkey_version", about["redis_version"])
            store = f"Valkey {version}, {allocator}"
            return [
                valkey_growth(server, store=store, dimensions=dimensions, entries=entries)
                for dimensions, entries in VALKEY
            ]
    finally:
        os.environ.pop("LD_PRELOAD", None)


def main() -> None:
    """Measure all, keep the result, print it."""
    lines = [l1(dimensions, entries) for dimensions, entries in L1]
    lines += in_valkey(None)
    if preload := os.environ.get("EMBEDKEEP_JEMALLOC"):
        lines += in_valkey(preload)
    rows = [
        [
            line.store, str(line.dimensions), f"{line.entries:,}",
            f"{line.bytes_an_entry:,.0f}", f"{line.to_vector:.2f}",
        ]
        for line in lines
    ]  # fmt: skip
    head = ["store", "dimensions", "entries", "bytes an entry", "times its vector"]
    print(keep("memory", [asdict(line) for line in lines], head=head, rows=rows))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(l1_growth(int(sys.argv[1]), int(sys.argv[2])))
    else:
        main()
