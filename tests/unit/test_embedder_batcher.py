"""The shell: calls in, batches out, with the device's thread and an arithmetic model."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from embedkeep.config import Batching
from embedkeep.embedder.batcher import Batcher, Engine, compute
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
