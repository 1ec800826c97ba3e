"""Parts die, hang and lie; requests are answered or refused clearly, and all recovers by itself."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from support.node import Node, node_config, rows, running, sources, until
from support.tap import Tap, serve_tap
from support.valkey import Valkey, free_port, valkey

RECOVERING = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION}
"""What a request may be refused with until the right embedder is back."""


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey that the test may harm."""
    with valkey(tmp_path) as server:
        yield server


@pytest.fixture
async def frail(tap: Tap, mortal: Valkey, tmp_path: Path) -> AsyncIterator[Node]:
    """A node beside it, without L1, so that every repeat needs the next tier."""
    async with (
        serve_tap(tap) as port,
        running(node_config(tmp_path, port, valkey={"port": mortal.port}, l1_bytes=0)) as started,
    ):
        await started.until_tier("valkey", serving=True)
        yield started


async def cached(node: Node, *texts: str) -> None:
    """Have *texts* in Valkey, and see that they are."""
    await node.embed(*texts)

    async def hits() -> bool:
        return set(sources(await node.embed(*texts))) == {"valkey"}

    await until(hits)


async def answered(node: Node, text: str) -> bytes:
    """The row of *text*, as soon as an embedder was found that may compute it."""
    found: list[bytes] = []

    async def succeeds() -> bool:
        try:
            found.extend(rows(await node.embed(text)))
        except grpc.aio.AioRpcError as error:
            if error.code() not in RECOVERING:
                raise
        return bool(found)

    await until(succeeds)
    return found[0]


async def liar_refused(node: Node, named_by: str = "canary") -> None:
    """Ask until the refusal names what is wrong, and no longer an embedder that is away."""
    refusals: list[str] = []

    async def named() -> bool:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await node.embed("b")
        refusals.append(refused.value.details() or "")
        return named_by in refusals[-1]

    await until(named)


async def test_requests_are_answered_while_valkey_is_dead_and_hits_return_with_it(
    frail: Node, tap: Tap, mortal: Valkey
) -> None:
    await cached(frail, "a")

    mortal.kill()
    without = await frail.embed("a")
    await frail.until_tier("valkey", serving=False)
    mortal.start()
    await frail.until_tier("valkey", serving=True)
    await cached(frail, "a")

    assert sources(without) == ["embedder"]
    assert rows(without)[0] in tap.computed["a"]


async def test_a_valkey_that_hangs_costs_a_bounded_wait_and_then_nothing(
    frail: Node, tap: Tap, mortal: Valkey
) -> None:
    await cached(frail, "a")

    mortal.pause()
    answers = [await frail.embed("a", timeout_s=5) for _ in range(5)]
    await frail.until_tier("valkey", serving=False)
    mortal.resume()
    await frail.until_tier("valkey", serving=True)
    again = await frail.embed("a")

    assert [sources(answer) for answer in answers] == [["embedder"]] * 5
    assert {rows(answer)[0] for answer in (*answers, again)} <= set(tap.computed["a"])


async def test_replies_that_come_too_late_never_reach_another_request(
    frail: Node, tap: Tap, mortal: Valkey
) -> None:
    """What a hung Valkey answers at last belongs to callers that have left."""
    texts = [f"text {n}" for n in range(20)]
    await cached(frail, *texts)

    mortal.pause()
    late = [asyncio.create_task(frail.embed(text)) for text in texts[:3]]
    await asyncio.wait(late)
    mortal.resume()
    after = await asyncio.gather(*(frail.embed(text) for text in texts))

    assert all(
        rows(answer)[0] in tap.computed[text] for text, answer in zip(texts, after, strict=True)
    )


async def test_a_corrupted_record_is_a_miss_that_is_counted_and_repaired(
    frail: Node, tap: Tap, mortal: Valkey
) -> None:
    await cached(frail, "a")
    (keys,) = mortal.run(("KEYS", "*"))
    assert isinstance(keys, list)
    (key,) = [key for key in keys if len(key) == 24]
    mortal.run(("SETRANGE", key, 40, b"\xff\x00\xff\x00"))

    answer = await frail.embed("a")
    await cached(frail, "a")

    assert sources(answer) == ["embedder"]
    assert rows(answer)[0] == tap.computed["a"][-1]
    assert await frail.metric("embedkeep_corrupt_records_total") == 1


async def test_a_record_moved_to_another_key_is_never_answered(
    frail: Node, tap: Tap, mortal: Valkey
) -> None:
    await cached(frail, "a")
    (before,) = mortal.run(("KEYS", "*"))
    await cached(frail, "b")
    (after,) = mortal.run(("KEYS", "*"))
    assert isinstance(before, list)
    assert isinstance(after, list)
    (key_b,) = set(after) - set(before)
    (key_a,) = [key for key in before if len(key) == 24]

    mortal.run(("COPY", key_a, key_b, "REPLACE"))
    answer = await frail.embed("b")

    assert rows(answer)[0] in tap.computed["b"]
    assert sources(answer) == ["embedder"]


async def test_a_full_valkey_does_not_stand_in_the_way(tap: Tap, tmp_path: Path) -> None:
    with valkey(tmp_path, "--maxmemory", "1", "--maxmemory-policy", "noeviction") as full:
        async with (
            serve_tap(tap) as port,
            running(node_config(tmp_path, port, valkey={"port": full.port}, l1_bytes=0)) as node,
        ):
            answers = [await node.embed("a") for _ in range(3)]

    assert [rows(answer)[0] for answer in answers] == tap.computed["a"]


async def test_an_embedder_that_dies_in_a_batch_refuses_clearly_and_is_found_again(
    mortal: Valkey, tmp_path: Path
) -> None:
    port, first, second = free_port(), Tap(), Tap(instance=b"tap-2")
    first.gate.clear()
    config = node_config(tmp_path, port, valkey={"port": mortal.port})
    async with running(config, ready=False) as node:
        async with serve_tap(first, port=port):
            await node.until_tier("embedder", serving=True)
            call = asyncio.create_task(node.embed("a"))
            await first.entered.get()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        async with serve_tap(second, port=port):
            row = await answered(node, "a")

    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "embedder" in (refused.value.details() or "")
    assert [row] == second.computed["a"]


async def test_an_overloaded_embedder_is_refused_with_its_own_estimate(
    node: Node, tap: Tap
) -> None:
    tap.overloaded = True

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await node.embed("a")

    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailers = dict(refused.value.trailing_metadata() or ())
    assert trailers["grpc-retry-pushback-ms"] == "250"
    assert trailers["embedkeep-reason"] == "Overloaded"


async def test_more_than_may_wait_is_refused_at_once(
    tap: Tap, store: Valkey, tmp_path: Path
) -> None:
    config = node_config(tmp_path, 0, valkey={"port": store.port}, limits={"max_pending_inputs": 4})
    tap.gate.clear()
    async with serve_tap(tap) as port:
        config = config.model_copy(
            update={"embedder": config.embedder.model_copy(update={"address": f"127.0.0.1:{port}"})}
        )
        async with running(config) as node:
            waiting = [asyncio.create_task(node.embed(text)) for text in "ab"]
            for _ in waiting:
                await tap.entered.get()

            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await node.embed("c", "d", "e")
            tap.gate.set()
            await asyncio.gather(*waiting)

            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await node.metric("embedkeep_refused_total") == 3
            assert sources(await node.embed("c")) == ["embedder"]


async def test_one_input_that_the_model_cannot_take_fails_alone(node: Node, tap: Tap) -> None:
    tap.broken = {"bad"}

    answer = await node.embed("good", "bad", "fine")

    assert list(answer.statuses) == [0, grpc.StatusCode.INTERNAL.value[0], 0]
    assert rows(answer)[0::2] == [tap.computed["good"][0], tap.computed["fine"][0]]
    assert [error.index for error in answer.errors] == [1]


async def test_a_restarted_node_serves_hits_without_any_embedder(
    tap: Tap, mortal: Valkey, tmp_path: Path
) -> None:
    async with serve_tap(tap) as port:
        config = node_config(tmp_path, port, valkey={"port": mortal.port}, l1_bytes=0)
        async with running(config) as node:
            await node.until_tier("valkey", serving=True)
            await cached(node, "a")

    async with running(config) as restarted:
        hit = await restarted.embed("a")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await restarted.embed("new")

    assert sources(hit) == ["valkey"]
    assert rows(hit) == [tap.computed["a"][0]]
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_another_model_under_the_same_resource_is_drift_not_a_mixture(
    tap: Tap, mortal: Valkey, tmp_path: Path
) -> None:
    async with serve_tap(tap) as port:
        config = node_config(tmp_path, port, valkey={"port": mortal.port}, l1_bytes=0)
        async with running(config) as node:
            await node.until_tier("valkey", serving=True)
            await cached(node, "a")
    other = Tap(fingerprint="other", instance=b"tap-2")

    async with serve_tap(other, port=port), running(config) as node:
        hit = await node.embed("a")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await node.embed("new")
        drifting = await node.metric("embedkeep_model_drift")

    assert rows(hit) == [tap.computed["a"][0]]
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert dict(refused.value.trailing_metadata() or ())["embedkeep-reason"] == "ModelDrift"
    assert drifting == 1


async def test_drift_is_told_by_the_metric_while_it_lasts_and_no_longer(
    tap: Tap, mortal: Valkey, tmp_path: Path
) -> None:
    config = node_config(tmp_path, port := free_port(), valkey={"port": mortal.port})
    async with running(config, ready=False) as node:
        async with serve_tap(tap, port=port):
            await node.until_tier("embedder", serving=True)
            await node.embed("a")
        async with serve_tap(Tap(fingerprint="other", instance=b"tap-2"), port=port):
            await liar_refused(node, "this is other")
            during = await node.metric("embedkeep_model_drift")
        async with serve_tap(tap, port=port):
            await answered(node, "b")
            await until(lambda: drift_over(node))

    assert during == 1


async def drift_over(node: Node) -> bool:
    """The metric says that no embedder is refused."""
    return await node.metric("embedkeep_model_drift") == 0


async def test_a_loop_that_was_busy_is_no_failure_of_valkey(frail: Node) -> None:
    """Replies that came while this process computed something else are in time."""
    await cached(frail, "a")
    loop = asyncio.get_running_loop()

    for _ in range(10):
        asked = asyncio.create_task(frail.embed("a"))
        for _ in range(6):
            loop.call_soon(time.sleep, 0.06)
            await asyncio.sleep(0)
        assert sources(await asked) == ["valkey"]

    assert await frail.metric("embedkeep_valkey_failures_total", kind="timeout") == 0


async def test_a_process_that_computes_something_else_under_the_same_name_is_not_believed(
    tap: Tap, mortal: Valkey, tmp_path: Path
) -> None:
    """A broken device or library: fingerprints agree, canaries do not."""
    config = node_config(tmp_path, port := free_port(), valkey={"port": mortal.port})
    async with running(config, ready=False) as node:
        async with serve_tap(tap, port=port):
            await node.until_tier("embedder", serving=True)
            await node.embed("a")
        liar = Tap(instance=b"liar", canary=0.9)
        async with serve_tap(liar, port=port):
            await liar_refused(node)
        honest = Tap(instance=b"honest")
        async with serve_tap(honest, port=port):
            healed = await answered(node, "b")

    assert healed in honest.computed["b"]


async def test_a_node_answers_from_the_embedder_when_valkey_was_never_there(
    tap: Tap, tmp_path: Path
) -> None:
    async with (
        serve_tap(tap) as port,
        running(node_config(tmp_path, port, valkey={"port": free_port()})) as node,
    ):
        first, second = await node.embed("a"), await node.embed("a")

    assert (sources(first), sources(second)) == (["embedder"], ["l1"])
    assert rows(first) == rows(second)


@pytest.mark.parametrize("l1_bytes", [8 << 20, 0], ids=["from memory", "from Valkey"])
async def test_no_tier_answers_an_entry_whose_life_is_over(
    tap: Tap, store: Valkey, tmp_path: Path, l1_bytes: int
) -> None:
    async with (
        serve_tap(tap) as port,
        running(
            node_config(tmp_path, port, valkey={"port": store.port, "ttl_s": 1}, l1_bytes=l1_bytes)
        ) as node,
    ):
        await node.until_tier("valkey", serving=True)
        first = await node.embed("a")

        async def anew() -> bool:
            return rows(await node.embed("a")) != rows(first)

        await until(anew)
