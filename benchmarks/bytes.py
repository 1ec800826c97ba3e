"""What an entry takes in Valkey, beside the peers' entries.

    make .venv-peers/ready
    .venv-peers/bin/python benchmarks/bytes.py [--quick]

Each system fills an empty Valkey of its own with the same 20,000 texts and vectors; counted is what
INFO's used_memory grows by. EMBEDKEEP_VALKEY names another server, for another allocator.

Writes benchmarks/results/bytes.json and its table in docs/benchmarks.md.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final

import systems
from callers import CallerFailed, Callers, Opener, System
from report import COMMITTED, draft, made_on, table
from rig import DidNotStart, Rig, Upstream, Valkey
from turns import arguments, say, thousands

DIMS: Final = (384, 1024)
ENTRIES: Final = 20_000
CALL: Final = 128
SETTLED_S: Final = 0.5
"""Writes that come after the answer are over when the number of keys has stood for so long."""
WANTED: Final = 1.30
"""What embedkeep's entry may take at most, in vectors of float32, on jemalloc."""
OURS: Final = "embedkeep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one system's entries take."""

    system: str
    dims: int
    entries: int
    bytes_an_entry: float
    times_the_vector: float


def openers(rig: Rig, upstream: Upstream, valkey: Valkey) -> dict[str, Callable[[], Opener]]:
    """How each system is set up in front of *valkey*."""

    def ours() -> Opener:
        return partial(systems.Embedkeep, rig.node(upstream.grpc_port, valkey).url)

    def peer(system: Callable[[int, Upstream], System]) -> Callable[[], Opener]:
        return lambda: partial(system, valkey.port, upstream)

    return {
        OURS: ours,
        "raw float32": peer(systems.RawMget),
        "RedisVL": peer(systems.RedisVL),
        "LangChain": peer(systems.LangChain),
        "LiteLLM": peer(systems.SettledLiteLLM),
    }


class NotAllThere(Exception):
    """What was stored is not what is measured."""


def measured(system: str, *, dims: int, entries: int) -> tuple[Row, dict[str, str]]:
    """Fill an empty Valkey; also returns what it is.

    Raises:
        CallerFailed, DidNotStart: It cannot be asked, or started.
        NotAllThere: Entries are missing.
    """
    with Rig() as rig:
        valkey, upstream = rig.valkey(), rig.upstream(dims=dims)
        opener = openers(rig, upstream, valkey)[system]()
        texts = [f"how many bytes does entry number {n} take in Valkey?" for n in range(entries)]
        with Callers(1, {system: opener}, []) as callers:
            callers.open(system)
            callers.once(system, [["the first text brings what is there only once"]])
            keys, before = settled(valkey)
            for at in range(0, entries, CALL):
                callers.once(system, [texts[at : at + CALL]])
            more, after = settled(valkey)
        if more - keys < entries:
            raise NotAllThere(f"{more - keys} of {entries} entries were there at the end")
        per = (after - before) / (more - keys)
        row = Row(
            system=system,
            dims=dims,
            entries=more - keys,
            bytes_an_entry=round(per),
            times_the_vector=round(per / (4 * dims), 3),
        )
        return row, valkey.described()


def settled(valkey: Valkey) -> tuple[int, int]:
    """Keys and used memory, once no more keys come."""
    keys, since = -1, time.monotonic()
    while time.monotonic() - since < SETTLED_S:
        now = int(str(valkey.run("DBSIZE")))
        if now != keys:
            keys, since = now, time.monotonic()
        time.sleep(0.05)
    return keys, int(valkey.info()["used_memory"])


def main() -> None:
    """Measure, keep, and print."""
    quick = arguments(__doc__).quick
    place = draft() if quick else COMMITTED
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    server: dict[str, str] = {}
    for dims in DIMS:
        for system in (OURS, "raw float32", "RedisVL", "LangChain", "LiteLLM"):
            say(f"{system}, {dims}")
            try:
                row, server = measured(system, dims=dims, entries=1000 if quick else ENTRIES)
            except (CallerFailed, DidNotStart, NotAllThere, OSError) as error:
                left_out[f"{system}, {dims}"] = str(error)
                say(f"left out: {system}: {error}")
            else:
                rows.append(row)
    place.save("bytes", server, rows=[asdict(row) for row in rows], left_out=left_out)
    head = ("system", "dimensions", "entries", "bytes an entry", "times the vector")
    lines = (
        [
            row.system,
            str(row.dims),
            thousands(row.entries),
            thousands(row.bytes_an_entry),
            f"{row.times_the_vector:.2f}",
        ]
        for row in rows
    )
    checked = [
        f"embedkeep at {row.dims}: at most {WANTED:g} wanted (on jemalloc), "
        f"{row.times_the_vector:.2f} on {server.get('valkey_allocator')}: "
        f"{'met' if row.times_the_vector <= WANTED else '**missed**'}."
        for row in rows
        if row.system == OURS
    ]
    out = [f"Left out: {name}: {why.splitlines()[0]}" for name, why in left_out.items()]
    text = "\n\n".join([table(head, lines), *out, *checked, made_on(server)])
    place.write("bytes", text)
    print(text)


if __name__ == "__main__":
    main()
