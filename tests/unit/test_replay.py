import asyncio
from collections import Counter

import numpy as np
import pytest

from embedkeep.client import AsyncClient, Embedded, InputFailed, Source
from embedkeep.errors import EmbedKeepError, InvalidInput
from embedkeep_operator.local.replay import IN_FLIGHT, Tally, replay, requests, sample


def an_answer(*sources: Source, saved_s: float = 0.0, spent_s: float = 0.0) -> Embedded:
    failed = [at for at, source in enumerate(sources) if source is Source.NONE]
    return Embedded(
        vectors=np.zeros((len(sources), 2), np.float32),
        sources=sources,
        tokens=(1,) * len(sources),
        truncated=(),
        failed=tuple(InputFailed(index=at, error=InvalidInput("no")) for at in failed),
        fingerprint="f",
        epoch=0,
        saved_device_s=saved_s,
        spent_device_s=spent_s,
    )


class Answering(AsyncClient):
    """A client whose cache is a set of texts: counts what is in flight at once."""

    def __init__(self, *, failing: str = "") -> None:
        super().__init__("127.0.0.1:1")
        self.known: set[str] = set()
        self.failing = failing
        self.in_flight = 0
        self.most_in_flight = 0
        self.asked: list[str] = []

    async def embed_detailed(self, texts: object, **_how: object) -> Embedded:
        assert isinstance(texts, list)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.asked += texts
        await asyncio.sleep(0)
        self.in_flight -= 1
        sources = [
            Source.NONE if text == self.failing
            else Source.L1 if text in self.known
            else Source.EMBEDDER
            for text in texts
        ]  # fmt: skip
        self.known.update(texts)
        return an_answer(*sources)


def test_the_sample_is_two_thousand_questions_that_come_again() -> None:
    texts = sample()

    assert len(set(texts)) == 2000
    assert len(texts) > 4000
    assert all(text.strip() for text in texts)


def test_requests_carry_every_text_once_and_in_order() -> None:
    texts = [str(number) for number in range(57)]

    cut = list(requests(texts))

    assert [text for request in cut for text in request] == texts
    assert Counter(map(len, cut)).most_common(1)[0][0] == 1
    assert max(map(len, cut)) > 1


def test_a_request_is_booked_under_the_slowest_tier_it_needed() -> None:
    tally = Tally()

    tally.add(an_answer(Source.L1, Source.VALKEY, saved_s=0.5), 0.002)
    tally.add(an_answer(Source.L1, saved_s=0.25), 0.001)
    tally.add(an_answer(Source.EMBEDDER, Source.L1, spent_s=0.125), 0.01)

    assert tally.seconds == {Source.VALKEY: [0.002], Source.L1: [0.001], Source.EMBEDDER: [0.01]}
    assert tally.texts == {Source.L1: 3, Source.VALKEY: 1, Source.EMBEDDER: 1}
    assert (tally.saved_device_s, tally.spent_device_s) == (0.75, 0.125)
    assert (tally.requests, tally.hits()) == (3, 0.8)


def test_two_tallies_add_up() -> None:
    one, other = Tally(), Tally()
    one.add(an_answer(Source.L1, saved_s=1), 0.1)
    other.add(an_answer(Source.L1, Source.EMBEDDER, spent_s=2), 0.2)

    both = one + other

    assert both.texts == {Source.L1: 2, Source.EMBEDDER: 1}
    assert both.seconds == {Source.L1: [0.1], Source.EMBEDDER: [0.2]}
    assert (both.saved_device_s, both.spent_device_s) == (1, 2)


def test_an_empty_tally_has_no_hits() -> None:
    assert (Tally().requests, Tally().hits()) == (0, 0.0)


async def test_a_replay_asks_for_everything_and_never_for_too_much_at_once() -> None:
    texts = [str(number % 40) for number in range(300)]
    seen: list[int] = []

    async with Answering() as client:
        tally = await replay(client, texts, on_answer=lambda tally: seen.append(tally.requests))

    assert Counter(client.asked) == Counter(texts)
    assert client.most_in_flight == IN_FLIGHT
    assert tally.texts.total() == len(texts)
    assert seen == list(range(1, tally.requests + 1))


async def test_a_replay_ends_with_the_first_failure() -> None:
    texts = [str(number) for number in range(1000)]

    async with Answering(failing="100") as client:
        with pytest.raises(EmbedKeepError):
            await replay(client, texts, on_answer=lambda _: None)

    assert len(client.asked) < 200
