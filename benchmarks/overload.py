"""What a flood of one tenant costs another, and how quickly the flood is refused.

    python benchmarks/overload.py

Two tenants ask a node; every text is new, so each is a miss. The victim asks for one text twenty
times a second. The other one asks at half of what the embedder can do in calm windows, and at four
times as much in a flood, whatever it is answered: 256 callers share that rate. What the embedder
can do is measured first. Windows alternate; each tenant asks from a process of its own, and all
share the machine, and ask over HTTP.

First in front of the real all-MiniLM-L6-v2, which takes whatever the cores have left; then in front
of an embedder that sleeps as long as a device would compute, so that cores are not what is short.
Beside the victim a third process calls a bare gRPC server as often: what a call costs on this
machine at that moment, whoever answers it.
"""

import asyncio
import itertools
import multiprocessing
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, Final, Self

import grpc
import numpy as np
import uvloop

from embedkeep import AsyncClient, Retries
from embedkeep.errors import EmbedKeepError, Overloaded
from embedkeep.v1 import cache_pb2, cache_pb2_grpc
from report import COMMITTED, draft, table
from rig import Node, Rig
from turns import arguments, say

VICTIM_EVERY_S: Final = 0.05
CALM: Final = 0.5
FLOOD: Final = 4.0
"""What the flooding tenant asks for a second, to what the embedder can do."""
CALLERS: Final = 256
CAPACITY_CALLERS: Final = 24
"""Who keep the embedder busy while its capacity is measured; few enough that none is refused."""
CLIENTS: Final = 4
"""Of the flood; each keeps at most 128 connections."""
TIMEOUT_S: Final = 10.0
WARM_S: Final = 2.0
MAX_CALLS: Final = 64
MAX_PENDING: Final = 256
VICTIM: Final = "victim"
FLOODING: Final = "flood"
BARE: Final = "bare call"
"""Who asks."""


@dataclass(frozen=True, slots=True)
class Asking:
    """What one tenant does in one window."""

    callers: int
    every_s: float
    """Between two of a caller's calls, from start to start, unless an answer takes longer."""
    until: float
    """Unix time, seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one tenant saw in one window."""

    answered_s: Sequence[float]
    refused_s: Sequence[float]
    failed: int
    """Neither answered nor refused for overload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Medians over the windows of one kind."""

    model: str
    window: str
    tenant: str
    asked_per_s: float
    answered_p50_ms: float
    answered_p99_ms: float
    answered: int
    refused_p50_ms: float | None
    refused_p99_ms: float | None
    refused: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What became of all with one model behind the node."""

    rows: Sequence[Row]
    rose: Sequence[float]
    """The victim's p99 in each flood, to that in the calm window before it."""
    bare_rose: Sequence[float]
    """The same of a bare call."""
    rss_mib: Mapping[str, float]
    """Of the node: before, and at most."""


Call = Callable[[str], Awaitable[object]]
"""Asks for one text."""

Parts = dict[tuple[str, str, float], list[Part]]
"""By window, tenant and calls a second."""


def main() -> None:
    """Measure, and write results/overload.json and the page's table."""
    quick = arguments(__doc__).quick
    place = draft() if quick else COMMITTED
    rounds, seconds = (1, 4.0) if quick else (5, 10.0)
    found: dict[str, Found] = {}
    for model in ("all-MiniLM-L6-v2", "sleeping"):
        with Rig() as rig:
            real = model != "sleeping"
            port = rig.minilm().grpc_port if real else rig.sleeping()
            found[model] = measured(rig, port, model, rounds=rounds, seconds=seconds)
    place.save("overload", found={model: asdict(each) for model, each in found.items()})
    text = page(found)
    place.write("overload", text)
    print(text)


def measured(rig: Rig, embedder_port: int, model: str, *, rounds: int, seconds: float) -> Found:
    """Calm and flood in turns, in front of one embedder."""
    keys = {name: secrets.token_hex(16) for name in (VICTIM, FLOODING)}
    for name, key in keys.items():
        (rig.folder / name).write_text(key)
    (rig.folder / "secret").write_bytes(secrets.token_bytes(32))
    node = rig.node(
        embedder_port,
        rig.valkey(),
        cluster_secret_file=rig.folder / "secret",
        tenants=[{"name": name, "api_key_file": rig.folder / name} for name in keys],
        limits={"max_concurrent_calls": MAX_CALLS, "max_pending_inputs": MAX_PENDING},
    )
    before = node.process.rss_mib()
    asked = {name: (node.url, key) for name, key in keys.items()}
    asked[BARE] = (f"127.0.0.1:{rig.sleeping(bare=True)}", "none")
    with Tenants(asked) as tenants:
        capacity = tenants.capacity(seconds)
        parts, most = windows(node, tenants, capacity, rounds=rounds, seconds=seconds)
    return Found(
        rows=[row(model, *kind, each) for kind, each in parts.items()],
        rose=ratios(parts, VICTIM),
        bare_rose=ratios(parts, BARE),
        rss_mib={"before": before, "most": most},
    )


class Tenants:
    """A process for each tenant, which asks as it is told.

    Args:
        asked: By tenant, the address that it asks and its key.
    """

    def __init__(self, asked: Mapping[str, tuple[str, str]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._links: dict[str, Connection] = {}
        self._processes: list[multiprocessing.process.BaseProcess] = []
        for name, (address, key) in asked.items():
            self._links[name], theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, address, key), daemon=True)
            process.start()
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def begin(self, tenant: str, asking: Asking) -> None:
        """Let *tenant* ask."""
        self._links[tenant].send(asking)

    def end(self, tenant: str) -> Part:
        """Wait until its window is over; what it saw."""
        part: Part = self._links[tenant].recv()
        return part

    def capacity(self, seconds: float) -> float:
        """Texts a second that the node answers where all are new."""
        self.begin(FLOODING, Asking(CAPACITY_CALLERS, 0.0, time.time() + WARM_S))
        self.end(FLOODING)
        self.begin(FLOODING, Asking(CAPACITY_CALLERS, 0.0, time.time() + seconds))
        found = len(self.end(FLOODING).answered_s) / seconds
        say(f"capacity: {found:.0f} texts a second")
        return found


def windows(
    node: Node, tenants: Tenants, capacity: float, *, rounds: int, seconds: float
) -> tuple[Parts, float]:
    """All windows, and the node's most memory, MiB."""
    parts: Parts = {}
    most = 0.0
    for number in range(rounds + 1):
        for window, load in (("calm", CALM), ("flood", FLOOD)):
            say(f"round {number} of {rounds}: {window}")
            rate = load * capacity
            until = time.time() + seconds
            tenants.begin(FLOODING, Asking(CALLERS, CALLERS / rate, until))
            for name in (VICTIM, BARE):
                tenants.begin(name, Asking(1, VICTIM_EVERY_S, until))
            while time.time() < until:
                time.sleep(0.2)
                most = max(most, node.process.rss_mib())
            once = 1 / VICTIM_EVERY_S
            for name, asked in ((VICTIM, once), (FLOODING, round(rate)), (BARE, once)):
                part = tenants.end(name)
                if number:  # the first round warms up
                    parts.setdefault((window, name, asked), []).append(part)
    return parts, most


def serve(link: Connection, address: str, key: str) -> None:
    """One tenant's process: asks in each window that it is told of."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        numbers = itertools.count()
        while True:
            link.send(runner.run(ask(address, key, link.recv(), numbers)))


async def ask(address: str, key: str, asking: Asking, numbers: "itertools.count[int]") -> Part:
    """Callers that ask for new texts until the window is over."""
    async with AsyncExitStack() as stack:
        calls = [
            await stack.enter_async_context(connected(address, key))
            for _ in range(min(asking.callers, CLIENTS))
        ]
        return await asked_of(calls, asking, numbers)


@asynccontextmanager
async def connected(address: str, key: str) -> AsyncIterator[Call]:
    """A client of a node; or of a bare server, by gRPC itself."""
    if address.startswith("http://"):
        async with AsyncClient(
            address, api_key=key, timeout_s=TIMEOUT_S, retries=Retries(max_attempts=1)
        ) as client:
            yield client.embed
        return
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = cache_pb2_grpc.EmbeddingCacheStub(channel)

        async def call(text: str) -> object:
            return await stub.Embed(cache_pb2.EmbedRequest(inputs=[text]), timeout=TIMEOUT_S)

        yield call


async def asked_of(calls: Sequence[Call], asking: Asking, numbers: "itertools.count[int]") -> Part:
    """What callers see who share *calls*."""
    answered: list[float] = []
    refused: list[float] = []
    failed = 0

    async def caller(number: int) -> None:
        nonlocal failed
        call = calls[number % len(calls)]
        due = time.time() + asking.every_s * number / asking.callers
        while due < asking.until:
            await asyncio.sleep(due - time.time())
            text = f"how do I change the delivery address of order number {next(numbers)}?"
            began = time.perf_counter()
            try:
                await call(text)
                answered.append(time.perf_counter() - began)
            except Overloaded:
                refused.append(time.perf_counter() - began)
            except EmbedKeepError:
                failed += 1
            due = max(due + asking.every_s, time.time())

    await asyncio.gather(*map(caller, range(asking.callers)))
    return Part(answered_s=answered, refused_s=refused, failed=failed)


def row(model: str, window: str, tenant: str, asked: float, parts: Sequence[Part]) -> Row:
    """Medians over windows."""
    refused = [part.refused_s for part in parts if part.refused_s]
    return Row(
        model=model,
        window=window,
        tenant=tenant,
        asked_per_s=asked,
        answered_p50_ms=median(quantile_ms(part.answered_s, 0.5) for part in parts),
        answered_p99_ms=median(quantile_ms(part.answered_s, 0.99) for part in parts),
        answered=sum(len(part.answered_s) for part in parts),
        refused_p50_ms=median(quantile_ms(each, 0.5) for each in refused) if refused else None,
        refused_p99_ms=median(quantile_ms(each, 0.99) for each in refused) if refused else None,
        refused=sum(map(len, refused)),
        failed=sum(part.failed for part in parts),
    )


def quantile_ms(seconds: Sequence[float], part: float) -> float:
    """A quantile, ms."""
    return round(float(np.quantile(seconds, part)) * 1e3, 2) if seconds else float("nan")


def ratios(parts: Parts, tenant: str) -> list[float]:
    """The tenant's p99 in each flood, to that in the calm window before it."""
    once = 1 / VICTIM_EVERY_S
    return [
        round(quantile_ms(flood.answered_s, 0.99) / quantile_ms(calm.answered_s, 0.99), 2)
        for calm, flood in zip(
            parts["calm", tenant, once], parts["flood", tenant, once], strict=True
        )
    ]


def page(found: Mapping[str, Found]) -> str:
    """The table, and what it says."""
    head = ("model", "window", "tenant", "asked/s", "answered", "p50, ms", "p99, ms", "refused",
            "refusal p50, ms", "refusal p99, ms", "failed")  # fmt: skip

    def said(number: float | None) -> str:
        return "" if number is None else f"{number:,.1f}"

    lines = [
        (
            each.model, each.window, each.tenant, f"{each.asked_per_s:,.0f}", f"{each.answered:,}",
            said(each.answered_p50_ms), said(each.answered_p99_ms), f"{each.refused:,}",
            said(each.refused_p50_ms), said(each.refused_p99_ms), str(each.failed),
        )
        for one in found.values()
        for each in one.rows
    ]  # fmt: skip
    words = [
        f"In front of {model}, the p99 in a flood to that in the calm before it: the victim's"
        f" {of(each.rose)}, a bare call's {of(each.bare_rose)}. The node's memory:"
        f" {each.rss_mib['before']:.0f} MiB before, {each.rss_mib['most']:.0f} MiB at most."
        for model, each in found.items()
    ]
    return "\n\n".join([table(head, lines), *words])


def of(ratios: Sequence[float]) -> str:
    """Their median, and all of them."""
    return f"{median(ratios):.2f} (median of {', '.join(map(str, ratios))})"


if __name__ == "__main__":
    main()
