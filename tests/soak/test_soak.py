"""Half an hour of work and bad luck: no wrong vector, and nothing that grows.

`make soak` runs it; SOAK_MINUTES says how long, and two are enough for every accident to happen.
Callers of every kind ask a cache of three shards with the real model, while every few seconds a
part is killed, stopped, emptied, filled, slowed or damaged. One node is left alone by the
accidents, and it tells of leaks. Its memory is compared under load, early and late. Its tasks and
files are compared at rest, before the first caller came and after the last one left: there, one
left behind by each accident shows in a run of any length.

ONNX Runtime's float32 gives a text the same bits in any batch, so what the embedder answers at the
end for each text alone is the truth that all answers are held against.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path
from statistics import median

import aiohttp
import pytest

from embedkeep import AsyncClient, CacheControl, Priority
from embedkeep.errors import EmbedKeepError
from embedkeep_operator.local.replay import sample
from embedkeep_operator.local.runner import Running
from support.load import alone, passes
from support.node import sample as metric
from support.node import scrape
from support.soak import Accident, accidents
from support.up import THREE_SHARDS, Place

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
SEED = int(os.environ.get("SOAK_SEED", "0"))
REPORT = os.environ.get("SOAK_REPORT")
TEXTS = 1_200
CALLERS = 6
BETWEEN_S = (1.0, 4.0)
"""Between two accidents."""
LOOK_S = 2.0
PATIENCE_S = 120.0
HTTP_S = 10.0
PASSING = {
    HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT,
}  # fmt: skip
"""What may pass by itself."""
WARM = 0.25
"""Part of the time that the node may still grow in: caches fill, pools find their size."""
MORE_MEMORY = 1.10
MORE_AT_REST = 4
"""Tasks, and files, that may be there at rest and were not at first: a call in flight, a connection
that is not shut yet."""
REST_S = 60.0
"""Until a node whose callers left has given everything back: above any time it waits for others."""

pytestmark = pytest.mark.timeout(MINUTES * 60 + 600)


@dataclass(kw_only=True)
class Load:
    """Callers that never stop asking, and what they were told."""

    clients: tuple[AsyncClient, ...]
    """One for each way to the nodes; a request goes over any."""
    texts: list[str]
    answers: dict[str, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    """Digests of all vectors that were answered for each text."""
    rows: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    unclear: list[str] = field(default_factory=list)

    def _draw(self, choice: random.Random) -> list[str]:
        # Squared: some texts come often, most seldom.
        return [
            self.texts[int(len(self.texts) * choice.random() ** 2)]
            for _ in range(choice.randint(1, 16))
        ]

    async def ask(self, seed: int) -> None:
        """One caller."""
        choice = random.Random(seed)
        while True:
            batch = self._draw(choice)
            try:
                await self._one(batch, choice)
            except EmbedKeepError as error:
                self.refusals[error.reason] += 1
                if not passes(error):
                    self.unclear.append(repr(error))
                await asyncio.sleep(0.01)  # who is refused asks again later

    async def _one(self, batch: list[str], choice: random.Random) -> None:
        client = choice.choice(self.clients)
        match choice.randrange(40):
            case 0:
                await client.invalidate(batch, timeout_s=5)
                return
            case 1:
                await client.invalidate_all(timeout_s=5)
                return
            case 2:  # a caller that leaves early
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(choice.random() * 0.02):
                        await client.embed(batch, timeout_s=5)
                return
            case 3:
                how = CacheControl(no_cache=True)
                vectors = await client.embed(batch, timeout_s=5, cache=how)
            case 4 | 5:
                vectors = await client.embed(batch, timeout_s=5, priority=Priority.BULK)
            case _:
                vectors = await client.embed(batch, timeout_s=5)
        self._take(batch, [row.tobytes() for row in vectors])

    async def ask_over_http(self, session: aiohttp.ClientSession, url: str, seed: int) -> None:
        """One caller of the OpenAI facade."""
        choice = random.Random(seed)
        while True:
            batch = self._draw(choice)
            asked = {"model": "docs", "input": batch, "encoding_format": "base64"}
            try:
                async with session.post(f"{url}/v1/embeddings", json=asked) as answer:
                    said = await answer.json()
            except (aiohttp.ClientError, TimeoutError) as error:
                self.refusals[type(error).__name__] += 1  # its node was killed, or is stopped
                await asyncio.sleep(0.1)
                continue
            if answer.status == HTTPStatus.OK:
                rows = [base64.b64decode(each["embedding"]) for each in said["data"]]
                self._take(batch, rows)
                continue
            self.refusals[f"HTTP {answer.status}"] += 1
            if answer.status not in PASSING:
                self.unclear.append(str(said))
            await asyncio.sleep(0.01)

    def _take(self, batch: list[str], rows: list[bytes]) -> None:
        for text, row in zip(batch, rows, strict=True):
            self.answers[text].add(digest(row))
            self.rows += 1


@dataclass(frozen=True, kw_only=True)
class Look:
    """At the node that is left alone."""

    at_s: float
    """On the monotonic clock."""
    memory_bytes: float
    files: float
    tasks: float


async def look(running: Running) -> Look:
    """Once."""
    text = await asyncio.to_thread(scrape, running.ports.nodes[0].metrics)
    return Look(
        at_s=time.monotonic(),
        memory_bytes=metric(text, "process_resident_memory_bytes"),
        files=metric(text, "process_open_fds"),
        tasks=metric(text, "embedkeep_tasks"),
    )


async def watch(running: Running, looks: list[Look]) -> None:
    """Look again and again."""
    pid = running.pid(witness(running))
    while True:
        looks.append(await look(running))
        assert running.pid(witness(running)) == pid, "the node that was left alone has died"
        await asyncio.sleep(LOOK_S)


async def rested(running: Running, before: Look) -> Look:
    """The node once it has given back what its callers cost, or as it is when it does not."""
    until = time.monotonic() + REST_S
    while True:
        seen = await look(running)
        if at_rest(seen, before) or time.monotonic() > until:
            return seen
        await asyncio.sleep(LOOK_S)


def at_rest(seen: Look, before: Look) -> bool:
    """Whether no more is open than *before*."""
    return max(seen.files - before.files, seen.tasks - before.tasks) <= MORE_AT_REST


def witness(running: Running) -> str:
    """The node that no accident meets."""
    return next(name for name in running.processes if name.startswith("node"))


async def unlucky(running: Running, done: Counter[str], choice: random.Random) -> None:
    """Accidents, one after the other: each kind before any comes again."""
    kinds: dict[str, Accident] = accidents(running, spared=witness(running))
    while True:
        for name in choice.sample(sorted(kinds), len(kinds)):
            await asyncio.sleep(choice.uniform(*BETWEEN_S))
            await kinds[name](choice)
            done[name] += 1


def digest(row: bytes) -> bytes:
    """Enough of a vector to compare it by."""
    return hashlib.blake2b(row, digest_size=8).digest()


def grown(looks: list[Look], part: Callable[[Look], float]) -> tuple[float, float]:
    """Medians of *part* just after the warm time, and at the end."""
    after = looks[int(len(looks) * WARM) :]
    fifth = max(len(after) // 5, 1)
    return median(map(part, after[:fifth])), median(map(part, after[-fifth:]))


def report(said: dict[str, object]) -> None:
    """Print what happened, and keep it where SOAK_REPORT says."""
    print({name: value for name, value in said.items() if name != "looks"})  # noqa: T201
    if REPORT:
        Path(REPORT).write_text(json.dumps(said, indent=1) + "\n")


async def asked(running: Running, looks: list[Look], done: Counter[str]) -> Load:
    """All callers and all accidents, until the time is over; what the callers were told."""
    async with (
        AsyncClient(running.url) as over_http,
        AsyncClient(running.address) as over_grpc,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=HTTP_S)) as session,
    ):
        load = Load(clients=(over_http, over_grpc), texts=sorted(set(sample()))[:TEXTS])
        endless: list[Awaitable[None]] = [
            *(load.ask(SEED * 1000 + caller) for caller in range(CALLERS)),
            *(
                load.ask_over_http(session, f"http://127.0.0.1:{node.http}", SEED * 1000 + number)
                for number, node in enumerate(running.ports.nodes)
            ),
            watch(running, looks),
            unlucky(running, done, random.Random(SEED)),
        ]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(MINUTES * 60):
                await asyncio.gather(*endless)
    return load


async def test_no_answer_is_wrong_and_nothing_grows(tmp_path: Path) -> None:
    place = Place(tmp_path / "cache.yaml", tmp_path / "state")
    place.file.write_text(THREE_SHARDS.replace("valkey: 32Mi", "valkey: 16Mi"))
    looks: list[Look] = []
    done: Counter[str] = Counter()
    async with place.local(wait_s=PATIENCE_S) as running:
        before = await look(running)
        load = await asked(running, looks, done)
        await running.ready(PATIENCE_S)
        after = await rested(running, before)
        right = {
            text: digest(row) for text, row in (await alone(running, set(load.answers))).items()
        }

    memory = grown(looks, lambda each: each.memory_bytes)
    said = {
        "minutes": MINUTES,
        "seed": SEED,
        "rows_answered": load.rows,
        "texts": len(load.answers),
        "accidents": dict(done),
        "refusals": dict(load.refusals),
        "memory_bytes": memory,
        "before": asdict(before),
        "after": asdict(after),
        "looks": [asdict(each) for each in looks],
    }
    report(said)
    assert len(load.answers) > TEXTS / 2
    assert [text for text, rows in load.answers.items() if rows != {right[text]}] == []
    assert load.unclear == []
    assert memory[1] <= memory[0] * MORE_MEMORY
    assert at_rest(after, before)
