"""The shell: calls in, batches out, with the device's thread and an arithmetic model."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from embedkeep.config import Batching
from embedkeep.embedder.backends import Tokens
from embedkeep.embedder.batcher import Batcher, Computed, Engine, compute
from embedkeep.embedder.device import DeviceThread
from embedkeep.embedder.metrics import EmbedderMetrics
from embedkeep.embedder.schedule import CostModel
from embedkeep.errors import EmbedderUnavailable, Internal, Overloaded
from embedkeep.v1.embedder_pb2 import Purpose
from support.backend import ArithmeticBackend, token, vector_of

DEMAND, BULK = Purpose.PURPOSE_DEMAND, Purpose.PURPOSE_BULK
WARM, SHADOW = Purpose.PURPOSE_WARM, Purpose.PURPOSE_SHADOW


@asynccontextmanager
async def a_batcher(
    backend: ArithmeticBackend,
    *,
    metrics: EmbedderMetrics | None = None,
    limits: Batching | None = None,
) -> AsyncIterator[tuple[Batcher, asyncio.Task[None]]]:
    device = DeviceThread("test device")
    engine = Engine(backend=backend, thread=device, cost=CostModel(), probe=[token("probe")])
    batcher = Batcher(engine, limits=limits or Batching(), metrics=metrics or EmbedderMetrics())
    task = asyncio.create_task(batcher.run(), name="batcher")
    try:
        yield batcher, task
    finally:
        backend.gate.set()
        task.cancel()
        await asyncio.wait([task])
        device.close()


async def held(backend: ArithmeticBackend, batcher: Batcher) -> "asyncio.Task[object]":
    """A call that has the device busy until the backend's gate is opened."""
    backend.gate.clear()
    call = asyncio.create_task(batcher.embed(["first"], purpose=DEMAND, flow=b""))
    await entered(backend)
    return call


async def entered(backend: ArithmeticBackend) -> int:
    """Wait for the next batch at the gate; its size."""
    return await asyncio.to_thread(backend.entered.get, timeout=30)


def spawn(batcher: Batcher, *texts: str, purpose: Purpose.ValueType = DEMAND, flow: bytes = b""):  # type: ignore[no-untyped-def]  # noqa: ANN201  # a task of an internal type
    return asyncio.create_task(batcher.embed(texts, purpose=purpose, flow=flow))


async def until_queued(metrics: EmbedderMetrics, inputs: int, *, purpose: str = "demand") -> None:
    async with asyncio.timeout(30):
        while sample(metrics, "embedkeep_embed_queue_inputs", purpose) != inputs:  # noqa: ASYNC110  # as said below
            await asyncio.sleep(0)  # a metric has no event


def sample(metrics: EmbedderMetrics, name: str, purpose: str) -> float:
    registry: CollectorRegistry = metrics.registry
    value = registry.get_sample_value(name, {"purpose": purpose})
    assert value is not None, name
    return value


async def test_each_text_gets_its_own_vector_whatever_it_was_batched_with() -> None:
    backend, metrics = ArithmeticBackend(), EmbedderMetrics()
    async with a_batcher(backend, metrics=metrics) as (batcher, _):
        first = await held(backend, batcher)
        texts = [[f"word{n} " * (1 + n % 5) for n in range(k, k + 7)] for k in range(6)]
        calls = [spawn(batcher, *some) for some in texts]
        await until_queued(metrics, 42)
        backend.gate.set()

        answers = await asyncio.gather(*calls)
        await first

    for some, answer in zip(texts, answers, strict=True):
        np.testing.assert_array_equal(
            answer.vectors, np.array([vector_of(text) for text in some], np.float32)
        )
    assert len(backend.batches) < 42, "they shared batches"


async def test_demand_is_served_before_bulk_and_bulk_before_warm_up() -> None:
    backend, metrics = ArithmeticBackend(), EmbedderMetrics()
    async with a_batcher(backend, metrics=metrics) as (batcher, _):
        first = await held(backend, batcher)
        calls = [
            spawn(batcher, "shadow", purpose=SHADOW),
            spawn(batcher, "warm", purpose=WARM),
            spawn(batcher, "bulk", purpose=BULK),
            spawn(batcher, "demand"),
        ]
        await until_queued(metrics, 1)
        backend.gate.set()
        await asyncio.gather(first, *calls)

    order = [sorted(ids for (ids,) in batch) for batch in backend.batches]
    assert order == [
        [token("first")],
        [token("demand")],
        [token("bulk")],
        sorted([token("warm"), token("shadow")]),
    ]


async def test_a_cancelled_call_drops_its_queued_inputs() -> None:
    backend, metrics = ArithmeticBackend(), EmbedderMetrics()
    async with a_batcher(backend, metrics=metrics) as (batcher, _):
        first = await held(backend, batcher)
        leaving = spawn(batcher, "never", "computed")
        staying = spawn(batcher, "stays")
        await until_queued(metrics, 3)

        leaving.cancel()
        await asyncio.wait([leaving])
        backend.gate.set()
        await asyncio.gather(first, staying)

    assert leaving.cancelled()
    assert backend.batches == [[[token("first")]], [[token("stays")]]]
    assert sample(metrics, "embedkeep_embed_dropped_inputs_total", "demand") == 2
    assert sample(metrics, "embedkeep_embed_queue_inputs", "demand") == 0


async def test_an_input_that_the_model_fails_on_does_not_fail_its_batch_mates() -> None:
    backend, metrics = ArithmeticBackend(poison={token("bad")}), EmbedderMetrics()
    async with a_batcher(backend, metrics=metrics) as (batcher, _):
        answer = await batcher.embed(["good", "bad", "fine"], purpose=BULK, flow=b"")

    np.testing.assert_array_equal(answer.vectors[0], vector_of("good"))
    np.testing.assert_array_equal(answer.vectors[2], vector_of("fine"))
    assert np.isnan(answer.vectors[1]).all()
    assert list(answer.errors) == [1]
    assert isinstance(answer.errors[1], Internal)
    assert all(answer.device_ns)
    assert sample(metrics, "embedkeep_embed_failed_inputs_total", "bulk") == 1


async def test_a_vector_that_is_not_finite_is_an_error_and_no_answer() -> None:
    backend = ArithmeticBackend(not_finite={token("overflow")})
    async with a_batcher(backend) as (batcher, _):
        answer = await batcher.embed(["good", "overflow"], purpose=DEMAND, flow=b"")

    assert list(answer.errors) == [1]
    assert "not finite" in str(answer.errors[1])


async def test_bad_inputs_alone_do_not_end_the_batcher() -> None:
    backend = ArithmeticBackend(poison={token("bad")})
    async with a_batcher(backend) as (batcher, _):
        for _ in range(5):
            answer = await batcher.embed(["bad"], purpose=DEMAND, flow=b"")
            assert list(answer.errors) == [0]

        answer = await batcher.embed(["good"], purpose=DEMAND, flow=b"")

    assert not answer.errors


async def test_a_device_that_fails_on_everything_ends_the_batcher_and_all_its_calls() -> None:
    backend, metrics = ArithmeticBackend(), EmbedderMetrics()
    async with a_batcher(backend, metrics=metrics, limits=Batching(max_batch_inputs=1)) as (
        batcher,
        task,
    ):
        first = await held(backend, batcher)
        waiting = spawn(batcher, "waits")
        await until_queued(metrics, 1)
        backend.dead = True
        backend.gate.set()
        answer = await first

        with pytest.raises(EmbedderUnavailable):
            await waiting
        with pytest.raises(EmbedderUnavailable, match="device is broken"):
            await task
        with pytest.raises(EmbedderUnavailable):
            await batcher.embed(["late"], purpose=DEMAND, flow=b"")

    assert list(answer.errors) == [0]  # type: ignore[attr-defined]  # an internal type


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    backend, metrics = ArithmeticBackend(), EmbedderMetrics()
    async with a_batcher(backend, metrics=metrics, limits=Batching(max_queue_inputs=4)) as (
        batcher,
        _,
    ):
        first = await held(backend, batcher)
        queued = spawn(batcher, "a", "b", "c", "d")
        await until_queued(metrics, 4)

        with pytest.raises(Overloaded) as caught:
            await batcher.embed(["e"], purpose=DEMAND, flow=b"")

        backend.gate.set()
        await asyncio.gather(first, queued)
        again = await batcher.embed(["e"], purpose=DEMAND, flow=b"")

    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s > 0
    assert not again.errors
    assert sample(metrics, "embedkeep_embed_refused_inputs_total", "demand") == 1


async def test_metrics_book_tokens_and_time_under_each_purpose() -> None:
    backend, metrics = ArithmeticBackend(), EmbedderMetrics()
    async with a_batcher(backend, metrics=metrics) as (batcher, _):
        answers = {
            name: await batcher.embed(["one two three", "four"], purpose=purpose, flow=b"")
            for name, purpose in {"demand": DEMAND, "warm": WARM}.items()
        }

    for name, answer in answers.items():
        seconds = sample(metrics, "embedkeep_embed_device_seconds_total", name)
        assert seconds == pytest.approx(sum(answer.device_ns) / 1e9)
        assert sample(metrics, "embedkeep_embed_tokens_total", name) == 4
        assert sample(metrics, "embedkeep_embed_inputs_total", name) == 2
    assert sample(metrics, "embedkeep_embed_inputs_total", "bulk") == 0


def test_the_shares_of_a_batch_that_failed_once_hold_both_tries() -> None:
    backend = ArithmeticBackend(poison={7})

    outcome = compute(backend, [[1, 2], [7], [3]])

    assert sum(outcome.device_ns) == outcome.busy_ns
    assert list(outcome.errors) == [1]
    assert backend.batches == [[[1, 2], [7], [3]], [[1, 2]], [[7]], [[3]]]


async def test_long_texts_are_read_off_the_loop() -> None:
    backend = ArithmeticBackend()
    async with a_batcher(backend) as (batcher, _):
        answer = await batcher.embed(["word " * 5000], purpose=DEMAND, flow=b"")

    assert answer.tokens[0].truncated
    assert len(answer.tokens[0].ids) == backend.about.max_tokens


async def test_a_text_without_any_token_does_not_end_the_batcher() -> None:
    async with a_batcher(ArithmeticBackend()) as (batcher, _):
        blank = await batcher.embed([" "], purpose=DEMAND, flow=b"")
        answer = await batcher.embed(["fine"], purpose=DEMAND, flow=b"")

    assert list(blank.errors) == [0]
    assert not answer.errors


@dataclass(eq=False)
class SlowReading(ArithmeticBackend):
    """Cuts long texts into tokens only once it may."""

    may_read: threading.Event = field(default_factory=threading.Event)

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        if sum(map(len, texts)) > 2048:
            assert self.may_read.wait(30)
        return super().tokenize(texts)


async def test_texts_that_are_being_read_count_as_waiting_and_may_leave() -> None:
    backend, metrics = SlowReading(), EmbedderMetrics()
    async with a_batcher(backend, metrics=metrics, limits=Batching(max_queue_inputs=2)) as (
        batcher,
        _,
    ):
        leaving = spawn(batcher, "word " * 1000, "word " * 2000)
        await until_queued(metrics, 2)
        with pytest.raises(Overloaded):
            await batcher.embed(["more"], purpose=DEMAND, flow=b"")
        leaving.cancel()
        await asyncio.wait([leaving])
        backend.may_read.set()
        answer = await batcher.embed(["more", "again"], purpose=DEMAND, flow=b"")

    assert not answer.errors
    assert sample(metrics, "embedkeep_embed_dropped_inputs_total", "demand") == 2
    assert sample(metrics, "embedkeep_embed_queue_inputs", "demand") == 0


async def test_more_characters_than_may_wait_are_refused_until_those_before_are_answered() -> None:
    backend, metrics = ArithmeticBackend(), EmbedderMetrics()
    limits = Batching(max_queue_characters=100)
    async with a_batcher(backend, metrics=metrics, limits=limits) as (batcher, _):
        backend.gate.clear()
        first = spawn(batcher, "long " * 20)
        await entered(backend)

        with pytest.raises(Overloaded, match="characters"):
            await batcher.embed(["q"], purpose=DEMAND, flow=b"")

        backend.gate.set()
        await first
        assert not (await batcher.embed(["q"], purpose=DEMAND, flow=b"")).errors


async def test_what_waits_as_background_work_is_computed_once_and_at_once_when_a_person_asks() -> (
    None
):
    backend, metrics = ArithmeticBackend(), EmbedderMetrics()
    async with a_batcher(backend, metrics=metrics) as (batcher, _):
        first = await held(backend, batcher)
        warm = spawn(batcher, "wanted", "other", purpose=WARM, flow=b"a")
        await until_queued(metrics, 2, purpose="warm")
        elsewhere = spawn(batcher, "wanted", purpose=WARM, flow=b"b")
        await until_queued(metrics, 3, purpose="warm")
        person = spawn(batcher, "wanted", flow=b"a")
        await until_queued(metrics, 1)
        backend.gate.set()
        answers = await asyncio.gather(warm, person, elsewhere)
        await first

    in_advance, asked, of_another = answers
    assert backend.batches[:2] == [[[token("first")]], [[token("wanted")]]]
    assert [len(batch) for batch in backend.batches[2:]] == [2], "the other, and another flow's"
    for answer in answers:
        np.testing.assert_array_equal(answer.vectors[0], vector_of("wanted"))
    # Its time is booked once, to the person.
    assert asked.device_ns[0] > 0
    assert in_advance.device_ns[0] == 0
    assert min(in_advance.device_ns[1], of_another.device_ns[0]) > 0
    assert sample(metrics, "embedkeep_embed_inputs_total", "demand") == 2
    assert sample(metrics, "embedkeep_embed_inputs_total", "warm") == 2
    assert sample(metrics, "embedkeep_embed_shared_inputs_total", "warm") == 1


@pytest.mark.parametrize("leaver", ["warm", "demand"])
async def test_one_caller_who_leaves_takes_a_shared_input_from_no_other(leaver: str) -> None:
    backend, metrics = ArithmeticBackend(), EmbedderMetrics()
    async with a_batcher(backend, metrics=metrics) as (batcher, _):
        first = await held(backend, batcher)
        calls = {
            "warm": spawn(batcher, "wanted", purpose=WARM),
            "bulk": spawn(batcher, "bulk", purpose=BULK),
            "demand": spawn(batcher, "wanted"),
        }
        await until_queued(metrics, 1)
        calls[leaver].cancel()
        await asyncio.wait([calls[leaver]])
        backend.gate.set()
        answers = {name: await call for name, call in calls.items() if name != leaver}
        await first

    stayed = "demand" if leaver == "warm" else "warm"
    np.testing.assert_array_equal(answers[stayed].vectors[0], vector_of("wanted"))
    assert answers[stayed].device_ns[0] > 0
    order = ["wanted", "bulk"] if stayed == "demand" else ["bulk", "wanted"]
    assert backend.batches[1:] == [[[token(word)]] for word in order]


async def test_shared_inputs_that_fail_fail_for_all_who_wait() -> None:
    backend, metrics = ArithmeticBackend(poison={token("bad")}), EmbedderMetrics()
    async with a_batcher(backend, metrics=metrics) as (batcher, _):
        first = await held(backend, batcher)
        calls = [spawn(batcher, "bad", "good") for _ in range(2)]
        await until_queued(metrics, 4)
        backend.gate.set()
        answers = await asyncio.gather(*calls)
        await first

    for answer in answers:
        assert list(answer.errors) == [0]
        np.testing.assert_array_equal(answer.vectors[1], vector_of("good"))
    assert sample(metrics, "embedkeep_embed_failed_inputs_total", "demand") == 1


@pytest.mark.parametrize("seed", range(8))
async def test_in_a_storm_of_equal_texts_all_get_their_own_rows_and_the_books_add_up(
    seed: int,
) -> None:
    draw = random.Random(seed)  # repeatable, not secret
    backend, metrics = ArithmeticBackend(), EmbedderMetrics()
    purposes = {DEMAND: "demand", BULK: "bulk", WARM: "warm", SHADOW: "shadow"}
    asked = dict.fromkeys(purposes.values(), 0)
    calls: dict[asyncio.Task[Computed], list[str]] = {}

    async def ask(batcher: Batcher, texts: list[str], purpose: Purpose.ValueType) -> Computed:
        asked[purposes[purpose]] += len(texts)
        return await batcher.embed(texts, purpose=purpose, flow=draw.choice([b"x", b"y"]))

    async with a_batcher(backend, metrics=metrics) as (batcher, _):
        for _ in range(200):
            texts = draw.choices(["a", "b c", "d e f", "g " * 600, "h " * 1500], k=3)
            call = asyncio.create_task(ask(batcher, texts, draw.choice(list(purposes))))
            calls[call] = texts
            if draw.random() < 0.4:
                await asyncio.sleep(0)
            if draw.random() < 0.2:
                draw.choice(list(calls)).cancel()
            if draw.random() < 0.1:
                await asyncio.wait([draw.choice(list(calls))])
        await asyncio.wait(calls)

    answered = {call: texts for call, texts in calls.items() if not call.cancelled()}
    assert 50 < len(answered) < len(calls)
    for call, texts in answered.items():
        expected = np.array([vector_of(text) for text in texts], np.float32)
        np.testing.assert_array_equal(call.result().vectors, expected)
    books = {
        name: {
            what: sample(metrics, f"embedkeep_embed_{what}inputs_total", name)
            for what in ("", "shared_", "dropped_")
        }
        for name in asked
    }
    assert {name: sum(book.values()) for name, book in books.items()} == asked
    assert sum(book[""] for book in books.values()) == sum(map(len, backend.batches))
    assert all(sum(book[what] for book in books.values()) for what in ("shared_", "dropped_"))
    assert not any(sample(metrics, "embedkeep_embed_queue_inputs", name) for name in asked)
