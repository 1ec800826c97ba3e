"""Latency of hits through a real node, beside the least that reading the same bytes can cost.

    python benchmarks/node.py

Starts examples/quickstart.yaml twice: as it is, where L1 answers, and without L1, where Valkey
does. The floor is one MGET of raw float32 over a blocking socket, parsed by hiredis: no keys to
hash, no checksum, no tenants, no gRPC, and no one else to share with. Rounds alternate, so that a
busy moment hits all alike.

Writes benchmarks/results/node.json and the table in docs/benchmarks.md.
"""

import asyncio
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import hiredis
import numpy as np
import uvloop
import yaml

from embedkeep import AsyncClient, Client, Source
from embedkeep_operator.local.replay import sample
from embedkeep_operator.local.runner import Local, Running
from report import ROOT, keep

ROUNDS: Final = 40
CALLS: Final = {1: 50, 128: 10}
"""Calls a round, by texts a call."""
DIMENSIONS: Final = 384


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One way of reading, at one size."""

    way: str
    texts: int
    """A call."""
    p50_us: float
    p99_us: float
    calls: int
    to_floor: float
    """Of the medians."""


class Floor:
    """Reads raw vectors from Valkey, and does nothing else."""

    def __init__(self, port: int, password: str, texts: list[str]) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()
        self._call("AUTH", password)
        rows = np.random.default_rng(0).random((len(texts), DIMENSIONS), np.float32)
        for text, row in zip(texts, rows, strict=True):
            self._call("SET", f"floor:{text}", row.tobytes())

    def read(self, texts: list[str]) -> None:
        """One MGET, to one array."""
        reply = self._call("MGET", *(f"floor:{text}" for text in texts))
        np.frombuffer(b"".join(reply), np.float32).reshape(len(texts), DIMENSIONS)

    def _call(self, *words: str | bytes) -> list[bytes]:
        packed = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub knows tuples of one
        self._socket.sendall(packed)
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(1 << 16))
        if isinstance(reply, hiredis.HiredisError):
            raise reply
        found: list[bytes] = reply
        return found

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def resource(folder: Path, *, l1: str) -> Path:
    """The quickstart under another name and with another L1."""
    written = yaml.safe_load((ROOT / "examples" / "quickstart.yaml").read_text())
    written["metadata"]["name"] = f"bench-{l1.lower()}"
    written["spec"]["nodes"]["memory"]["l1"] = l1
    file = folder / f"{l1}.yaml"
    file.write_text(yaml.safe_dump(written))
    return file


async def filled(running: Running, texts: list[str], wanted: Source) -> None:
    """Embed *texts* until every one is answered by *wanted*."""
    async with AsyncClient(running.address, timeout_s=60) as client:
        for _ in range(20):
            if set((await client.embed_detailed(texts)).sources) == {wanted}:
                return
            await asyncio.sleep(0.5)
    raise SystemExit(f"not all texts are answered by {wanted}")


def timed(call: Callable[[list[str]], object], batches: list[list[str]]) -> list[float]:
    """Seconds of each call."""
    seconds = []
    for batch in batches:
        start = time.perf_counter()
        call(batch)
        seconds.append(time.perf_counter() - start)
    return seconds


async def atimed(client: AsyncClient, batches: list[list[str]]) -> list[float]:
    """Seconds of each call, one after the other."""
    seconds = []
    for batch in batches:
        start = time.perf_counter()
        await client.embed(batch)
        seconds.append(time.perf_counter() - start)
    return seconds


async def measured(folder: Path, texts: list[str]) -> dict[str, dict[int, list[float]]]:
    """Seconds of all calls, by way and size."""
    found: dict[str, dict[int, list[float]]] = {}
    async with (
        Local(resource(folder, l1="64Mi"), state_dir=folder, free_ports=True) as with_l1,
        Local(resource(folder, l1="0"), state_dir=folder, free_ports=True) as without,
    ):
        await filled(with_l1, texts, Source.L1)
        await filled(without, texts, Source.VALKEY)
        password = (with_l1.folder / "valkey-password").read_text()
        floor = Floor(with_l1.ports.nodes[0].valkey, password, texts)
        with Client(with_l1.address) as l1, Client(without.address) as valkey:
            async with (
                AsyncClient(with_l1.address) as l1_async,
                AsyncClient(without.address) as valkey_async,
            ):
                for number in range(ROUNDS):
                    for size, calls in CALLS.items():
                        batches = [
                            [texts[(number + at * size + n) % len(texts)] for n in range(size)]
                            for at in range(calls)
                        ]
                        seconds = {
                            "floor: MGET of raw vectors": await asyncio.to_thread(
                                timed, floor.read, batches
                            ),
                            "L1, Client": await asyncio.to_thread(timed, l1.embed, batches),
                            "L1, AsyncClient": await atimed(l1_async, batches),
                            "Valkey, Client": await asyncio.to_thread(timed, valkey.embed, batches),
                            "Valkey, AsyncClient": await atimed(valkey_async, batches),
                        }
                        if number:  # the first round connects and warms up
                            for way, values in seconds.items():
                                found.setdefault(way, {}).setdefault(size, []).extend(values)
        floor.close()
    return found


def main() -> None:
    """Measure, keep the result, print it."""
    texts = list(dict.fromkeys(sample()))[:1024]
    with (
        tempfile.TemporaryDirectory(prefix="embedkeep-bench-") as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        found = runner.run(measured(Path(folder), texts))
    floors = {size: float(np.median(next(iter(found.values()))[size])) for size in CALLS}
    lines = [
        Line(
            way=way,
            texts=size,
            p50_us=round(float(np.median(seconds)) * 1e6),
            p99_us=round(float(np.quantile(seconds, 0.99)) * 1e6),
            calls=len(seconds),
            to_floor=round(float(np.median(seconds)) / floors[size], 2),
        )
        for way, sizes in found.items()
        for size, seconds in sizes.items()
    ]
    rows = [
        [
            line.way,
            str(line.texts),
            f"{line.p50_us:,.0f}",
            f"{line.p99_us:,.0f}",
            f"{line.to_floor}",
        ]
        for line in sorted(lines, key=lambda line: line.texts)
    ]
    head = ["way", "texts a call", "p50, us", "p99, us", "p50 to the floor's"]
    print(keep("node", [asdict(line) for line in lines], head=head, rows=rows))


if __name__ == "__main__":
    main()
