"""Real questions in the order of a real trace, sent to a cache, and what came back.

The sample lies in data/; SOURCES.md there says what it is and whose.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import islice
from typing import Final

from embedkeep import AsyncClient
from embedkeep.client import Embedded, Source

SLOWEST: Final = (Source.EMBEDDER, Source.COALESCED, Source.PEER, Source.VALKEY, Source.L1)
"""A request takes as long as the slowest tier that one of its texts needed."""
IN_FLIGHT: Final = 4
"""Requests at once: enough for repeats to meet, few enough to wait little for each other."""
BATCH_EVERY: Final = 10
"""Every so many requests one carries several texts, as of a service that asks in variants."""
BATCH_TEXTS: Final = 4


def sample() -> list[str]:
    """The demo's texts, in the order in which they are asked for."""
    data = resources.files(__package__) / "data"
    texts = [
        json.loads(line)
        for line in (data / "questions.jsonl").read_text("utf-8").split("\n")
        if line
    ]
    return [texts[int(number)] for number in (data / "order.txt").read_text("utf-8").split()]


def requests(texts: Sequence[str]) -> Iterator[list[str]]:
    """Cut *texts* into requests: one text each, and every so often several."""
    rest, count = iter(texts), 0
    while request := list(islice(rest, 1 if count % BATCH_EVERY else BATCH_TEXTS)):
        yield request
        count += 1


@dataclass(slots=True, kw_only=True)
class Tally:
    """What a replay has seen so far."""

    texts: Counter[Source] = field(default_factory=Counter)
    """By the tier that answered."""
    seconds: dict[Source, list[float]] = field(default_factory=dict)
    """Of each request, by the slowest tier it needed."""
    saved_device_s: float = 0.0
    spent_device_s: float = 0.0

    def add(self, answer: Embedded, seconds: float) -> None:
        """Book one request."""
        self.texts.update(answer.sources)
        slowest = next(source for source in SLOWEST if source in answer.sources)
        self.seconds.setdefault(slowest, []).append(seconds)
        self.saved_device_s += answer.saved_device_s
        self.spent_device_s += answer.spent_device_s

    @property
    def requests(self) -> int:
        """Requests booked."""
        return sum(map(len, self.seconds.values()))

    def hits(self) -> float:
        """Share of the texts, 0..1, that cost no computation; 0 before the first."""
        total = self.texts.total()
        return 1 - self.texts[Source.EMBEDDER] / total if total else 0.0

    def __add__(self, other: "Tally") -> "Tally":
        both = self.seconds.keys() | other.seconds.keys()
        return Tally(
            texts=self.texts + other.texts,
            seconds={
                source: self.seconds.get(source, []) + other.seconds.get(source, [])
                for source in both
            },
            saved_device_s=self.saved_device_s + other.saved_device_s,
            spent_device_s=self.spent_device_s + other.spent_device_s,
        )


async def replay(
    client: AsyncClient, texts: Sequence[str], *, on_answer: Callable[[Tally], None]
) -> Tally:
    """Send *texts*, never more than IN_FLIGHT requests at once.

    Args:
        on_answer: Called with what was seen so far, after each answer.

    Raises:
        EmbedKeepError: A request failed, or a text in it; nothing more is sent.
    """
    tally, rest = Tally(), requests(texts)

    async def ask() -> None:
        for request in rest:
            start = time.perf_counter()
            answer = await client.embed_detailed(request)
            answer.raise_failures()
            tally.add(answer, time.perf_counter() - start)
            on_answer(tally)

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(IN_FLIGHT):
                group.create_task(ask(), name=f"asker {number}")
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None  # the first; the others are its echo
    return tally
