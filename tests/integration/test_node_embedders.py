"""The way from a node to several embedders, over the real wire."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest

from embedkeep.config import EmbedderTarget
from embedkeep.errors import EmbedderUnavailable, ModelDrift
from embedkeep.node.embedders import DRIFT_TRIES, Embedders, Work
from embedkeep.node.space import Space, from_description
from embedkeep.v1 import embedder_pb2
from support.tap import Context, Tap, serve_tap


async def the_space() -> Space:
    # Neither the request nor the context is read.
    return from_description(await Tap().Describe(embedder_pb2.DescribeRequest(), None))  # type: ignore[arg-type]  # as said above


@asynccontextmanager
async def embedders_at(*taps: Tap, timeout_s: float = 30.0) -> AsyncIterator[Embedders]:
    async with AsyncExitStack() as stack:
        ports = [await stack.enter_async_context(serve_tap(tap)) for tap in taps]
        address = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
        target = EmbedderTarget(address=address, timeout_s=timeout_s)
        yield await stack.enter_async_context(Embedders(target, on_drift=lambda _: None))


def work(text: str) -> Work:
    return Work(texts=[text], purpose=embedder_pb2.PURPOSE_DEMAND, flow=b"")


@dataclass(eq=False)
class Counting(Tap):
    """Counts also the calls that it refuses."""

    asked: int = 0
    refuses_after_s: float = 0.0

    async def Embed(  # noqa: N802 - the wire's name
        self, request: embedder_pb2.ComputeRequest, context: Context
    ) -> embedder_pb2.ComputeResponse:
        self.asked += 1
        await asyncio.sleep(self.refuses_after_s)
        return await super().Embed(request, context)


@pytest.mark.parametrize(
    "drifted",
    [Tap(fingerprint="other", instance=b"other"), Tap(canary=0.5, instance=b"turned")],
    ids=["another fingerprint", "the same fingerprint, other vectors"],
)
async def test_one_drifted_embedder_beside_a_good_one_fails_no_miss(drifted: Tap) -> None:
    good = Tap(instance=b"good")
    async with embedders_at(drifted, good) as embedders:
        texts = [f"q{n}" for n in range(20)]

        answers = [await embedders.compute(work(text), await the_space()) for text in texts]

    taken = [answer.vector.tobytes() for (answer,) in answers]  # type: ignore[union-attr]  # an error has none, and fails here
    assert taken == [good.computed[text][-1] for text in texts]


async def test_drift_everywhere_is_said_after_a_bounded_number_of_calls() -> None:
    one, two = (Counting(fingerprint="other", instance=name) for name in (b"1", b"2"))
    async with embedders_at(one, two) as embedders:
        with pytest.raises(ModelDrift):
            await embedders.compute(work("q"), await the_space())

    assert one.asked + two.asked == DRIFT_TRIES


async def test_all_tries_together_keep_to_the_timeout() -> None:
    slow = Counting(fingerprint="other", instance=b"slow", refuses_after_s=0.4)
    async with embedders_at(slow, timeout_s=1.0) as embedders:
        with pytest.raises(EmbedderUnavailable):
            await embedders.compute(work("q"), await the_space())

    assert slow.asked < DRIFT_TRIES
