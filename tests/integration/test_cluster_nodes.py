"""Several nodes beside the Valkeys of a cluster: one miss costs one forward pass, whoever asks."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest

from embedkeep.node.space import agreement_key
from embedkeep.v1 import peers_pb2, peers_pb2_grpc
from support.certificates import Authority
from support.cluster import NAMES, PATIENT, Nodes, Valkeys, running_nodes, valkey_cluster
from support.node import WAIT_S, Node, rows, running, sources, until
from support.tap import Tap

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkeys]:
    with valkey_cluster(tmp_path_factory.mktemp("cluster")) as valkeys:
        yield valkeys


@pytest.fixture
def whole(unharmed: Valkeys) -> Valkeys:
    """An empty cluster, for tests that do it no harm."""
    for name in NAMES:
        unharmed[name].run(("FLUSHALL",))
    return unharmed


@pytest.fixture
async def nodes(whole: Valkeys, tap: Tap, tmp_path: Path) -> AsyncIterator[Nodes]:
    """Three nodes in this process that wait long for each other."""
    async with running_nodes(whole, tap, tmp_path) as started:
        yield started


async def cached_in(node: Node, *texts: str) -> None:
    """Wait until *texts* can be read from Valkey."""

    async def hits() -> bool:
        answer = await node.embed(*texts, cache_control={"only_if_cached": True})
        return not answer.errors

    await until(hits)


async def test_fifty_callers_over_all_nodes_cost_one_forward_pass_a_text(
    nodes: Nodes, tap: Tap
) -> None:
    texts = [text for name in NAMES for text in nodes.texts(name, 2)]
    tap.gate.clear()
    calls = [asyncio.create_task(nodes[NAMES[number % 3]].embed(*texts)) for number in range(50)]
    for _ in NAMES:  # each owner computes its own
        await tap.entered.get()

    tap.gate.set()
    answers = await asyncio.gather(*calls)

    assert sorted(tap.texts) == sorted(texts)
    assert all(rows(answer) == [tap.computed[text][0] for text in texts] for answer in answers)
    told = [source for answer in answers for source in sources(answer)]
    assert told.count("embedder") == len(texts)
    assert set(told) <= {"embedder", "coalesced", "peer", "valkey", "l1"}


async def test_what_one_node_has_stored_every_node_answers(nodes: Nodes, tap: Tap) -> None:
    texts = [text for name in NAMES for text in nodes.texts(name, 2)]
    first = await nodes["a"].embed(*texts)
    await cached_in(nodes["b"], *texts)

    second = await nodes["b"].embed(*texts)

    assert rows(second) == rows(first)
    assert set(sources(second)) <= {"valkey", "l1"}
    assert len(tap.texts) == len(texts)


async def test_the_books_show_one_computation_however_many_nodes_it_passed(nodes: Nodes) -> None:
    (text,) = nodes.texts("c", 1)

    answers = [await nodes[name].embed(text) for name in NAMES]

    assert [answer.spent_device_seconds > 0 for answer in answers] == [True, False, False]
    lookups = {
        name: await nodes[name].metric("embedkeep_lookups_total", result="embedder")
        for name in NAMES
    }
    assert lookups == {"a": 1, "b": 0, "c": 0}
    assert await nodes["c"].metric("embedkeep_carried_inputs_total") == 1
    assert await nodes.hops("a") == {"answered": 1}


async def test_an_owners_memory_answers_while_its_valkey_is_away(tap: Tap, tmp_path: Path) -> None:
    with valkey_cluster(tmp_path) as mortal:
        async with running_nodes(mortal, tap, tmp_path) as nodes:
            theirs, others = nodes.texts("b", 2), nodes.texts("c", 2)
            await nodes["b"].embed(*theirs)
            await nodes["c"].embed(*others)
            await cached_in(nodes["a"], *others)

            mortal["b"].kill()
            await until(lambda: shut(nodes["a"], 1))
            answers = [await nodes["a"].embed(*texts) for texts in (theirs, others)]

    assert [sources(answer) for answer in answers] == [["peer"] * 2, ["valkey"] * 2]
    assert sorted(tap.texts) == sorted([*theirs, *others])


async def shut(node: Node, count: int) -> bool:
    return await node.metric("embedkeep_breaker_open", tier="valkey") == count


async def test_nodes_that_take_each_other_for_the_owner_never_go_in_circles(
    whole: Valkeys, tap: Tap, tmp_path: Path
) -> None:
    async with running_nodes(whole, tap, tmp_path, swapped=("b", "b", "c")) as nodes:
        texts = [text for name in NAMES for text in nodes.texts(name, 3)]
        tap.gate.clear()
        calls = [asyncio.create_task(nodes[name].embed(text)) for text in texts for name in NAMES]
        await tap.entered.get()
        tap.gate.set()
        answers = await asyncio.gather(*calls)

        for at, text in enumerate(texts):
            assert {rows(each)[0] for each in answers[3 * at : 3 * at + 3]} <= set(
                tap.computed[text]
            )
            assert len(tap.computed[text]) <= 2  # one of b and c each
        hops = [sum((await nodes.hops(name)).values()) for name in NAMES]
        assert all(count <= len(texts) for count in hops)


async def test_one_input_that_the_model_cannot_take_is_not_tried_twice(
    nodes: Nodes, tap: Tap
) -> None:
    good, bad = nodes.texts("b", 2)
    tap.broken = {bad}

    answer = await nodes["a"].embed(good, bad)

    assert list(answer.statuses) == [0, grpc.StatusCode.INTERNAL.value[0]]
    assert rows(answer)[0] == tap.computed[good][0]
    assert tap.texts == [good, bad]


async def test_a_person_does_not_wait_behind_bulk_work_at_the_owner(nodes: Nodes, tap: Tap) -> None:
    (text,) = nodes.texts("b", 1)
    tap.gate.clear()
    bulk = asyncio.create_task(nodes["b"].embed(text, priority="PRIORITY_BULK"))
    await tap.entered.get()
    person = asyncio.create_task(nodes["a"].embed(text))
    await tap.entered.get()
    tap.gate.set()

    await asyncio.gather(bulk, person)

    assert [call.purpose for call in tap.calls] == [2, 1]


async def test_work_at_the_owner_is_cancelled_when_nobody_waits_any_more(
    nodes: Nodes, tap: Tap
) -> None:
    (text,) = nodes.texts("b", 1)
    tap.gate.clear()
    only = asyncio.create_task(nodes["a"].embed(text))
    await tap.entered.get()

    only.cancel()
    async with asyncio.timeout(10):
        await tap.cancellation.wait()
    tap.gate.set()

    assert rows(await nodes["a"].embed(text)) == tap.computed[text]


async def test_a_deadline_holds_while_the_owner_computes(nodes: Nodes, tap: Tap) -> None:
    (text,) = nodes.texts("b", 1)
    tap.gate.clear()
    began = time.monotonic()

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await nodes["a"].embed(text, timeout_s=0.3)
    took_s = time.monotonic() - began
    tap.gate.set()

    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert took_s < 5


async def test_what_an_overloaded_owner_refuses_is_computed_by_who_was_asked(
    whole: Valkeys, tap: Tap, tmp_path: Path
) -> None:
    async with running_nodes(whole, tap, tmp_path, limits={"max_pending_inputs": 4}) as nodes:
        *mine, text = nodes.texts("b", 3)
        tap.gate.clear()
        waiting = [asyncio.create_task(nodes["b"].embed(each)) for each in mine]
        for _ in waiting:
            await tap.entered.get()
        asked = asyncio.create_task(nodes["a"].embed(text))
        await tap.entered.get()
        tap.gate.set()

        await asyncio.gather(*waiting)
        assert sources(await asked) == ["embedder"]
        assert tap.texts.count(text) == 1


async def test_a_peer_joins_what_is_computed_in_an_owners_place(
    whole: Valkeys, tap: Tap, tmp_path: Path
) -> None:
    """The owner refuses one node, and another takes that node for the owner."""
    async with running_nodes(
        whole, tap, tmp_path, swapped=("c", "a", "b"), limits={"max_pending_inputs": 4}
    ) as nodes:
        *full, text = nodes.texts("b", 3)
        tap.gate.clear()
        waiting = [asyncio.create_task(nodes["b"].embed(each)) for each in full]
        for _ in waiting:
            await tap.entered.get()
        instead = asyncio.create_task(nodes["a"].embed(text))
        await tap.entered.get()
        joining = asyncio.create_task(nodes["c"].embed(text))
        await until(partial(has_carried, nodes["a"], 1))
        tap.gate.set()

        await asyncio.gather(*waiting)
        answers = [await instead, await joining]

    assert [sources(answer) for answer in answers] == [["embedder"], ["coalesced"]]
    assert tap.texts.count(text) == 1


async def has_carried(node: Node, count: int) -> bool:
    return await node.metric("embedkeep_carried_inputs_total") == count


async def test_tenants_stay_apart_over_a_hop(whole: Valkeys, tap: Tap, tmp_path: Path) -> None:
    keys = {"red": "red-key-0123456789", "blue": "blue-key-0123456789"}
    for name, key in keys.items():
        (tmp_path / name).write_text(key)
    tenants = [{"name": name, "api_key_file": str(tmp_path / name)} for name in keys]
    async with running_nodes(whole, tap, tmp_path, api_key=keys["red"], tenants=tenants) as nodes:
        answers = {
            tenant: [
                await nodes[name].embed(f"text {number}", api_key=key)
                for number in range(12)
                for name in NAMES
            ]
            for tenant, key in keys.items()
        }
        hops = await nodes.hops("a")

    flows = {
        tenant: {tap.born[rows(answer)[0]][1] for answer in told}
        for tenant, told in answers.items()
    }
    assert [len(each) for each in flows.values()] == [1, 1]
    assert flows["red"] != flows["blue"]
    assert len(tap.texts) == 24  # each text once for each tenant, whichever node was asked
    assert hops["answered"] > 2


async def test_peers_meet_over_tls(whole: Valkeys, tap: Tap, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    pair = authority.issue()
    tls = {"cert_file": pair.cert_file, "key_file": pair.key_file}
    async with running_nodes(
        whole,
        tap,
        tmp_path,
        cluster=PATIENT | {"tls": {"ca_file": authority.ca_file}},
        tls=tls,
    ) as nodes:
        (text,) = nodes.texts("c", 1)

        await nodes["a"].embed(text)

        assert await nodes.hops("a") == {"answered": 1}


async def test_strangers_are_refused(nodes: Nodes) -> None:
    stub: peers_pb2_grpc.PeersAsyncStub = peers_pb2_grpc.PeersStub(nodes["a"].channel)
    for shown in ((), (("embedkeep-peer", "0" * 64),), (("embedkeep-peer", ""),)):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in stub.Carry(peers_pb2.CarryRequest(), metadata=shown, timeout=WAIT_S):
                pass
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Learn(peers_pb2.LearnRequest(), metadata=shown, timeout=WAIT_S)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_hop_tells_a_new_epoch_in_both_directions(
    whole: Valkeys, tap: Tap, tmp_path: Path
) -> None:
    """Between two polls, which are half a minute apart here."""
    async with running_nodes(whole, tap, tmp_path, epoch_poll_s=30.0) as nodes:
        epoch = (await nodes["a"].invalidate()).epoch
        (to_c,) = nodes.texts("c", 1, epoch=epoch)
        await nodes["a"].embed(to_c)
        heard = (await nodes["c"].info()).epoch
        (from_c,) = nodes.texts("c", 1)
        before = (await nodes["b"].info()).epoch
        await nodes["b"].embed(from_c)

        assert heard == epoch
        assert (before, (await nodes["b"].info()).epoch) == (0, epoch)


@pytest.mark.parametrize("everything", [False, True], ids=["texts", "everything"])
async def test_no_node_answers_what_was_forgotten_through_another(
    nodes: Nodes,
    tap: Tap,
    everything: bool,  # noqa: FBT001 - pytest gives it by name
) -> None:
    texts = [text for name in NAMES for text in nodes.texts(name, 2)]
    for name in NAMES:
        await nodes[name].embed(*texts)
    old = {tap.computed[text][0] for text in texts}

    await nodes["a"].invalidate(*(() if everything else texts))
    at_once = await nodes["a"].embed(*texts)

    async def renewed() -> bool:
        answers = [await nodes[name].embed(*texts) for name in NAMES]
        return not any(old & set(rows(answer)) for answer in answers)

    assert not old & set(rows(at_once))
    await until(renewed)


async def test_what_was_on_its_way_at_the_owner_is_not_kept_once_it_was_forgotten(
    whole: Valkeys, tap: Tap, tmp_path: Path
) -> None:
    """Although the owner polls only half a minute later."""
    async with running_nodes(whole, tap, tmp_path, epoch_poll_s=30.0) as nodes:
        (text,) = nodes.texts("b", 1)
        tap.gate.clear()
        early = asyncio.create_task(nodes["a"].embed(text))
        await tap.entered.get()
        await nodes["a"].invalidate(text)
        tap.gate.set()
        await early

        late = await nodes["a"].embed(text)

    assert rows(late) != rows(await early)
    assert len(tap.computed[text]) == 2


async def test_an_invalidation_that_a_dead_valkey_was_not_told_says_so_and_holds_elsewhere(
    tap: Tap, tmp_path: Path
) -> None:
    with valkey_cluster(tmp_path) as mortal:
        async with running_nodes(mortal, tap, tmp_path) as nodes:
            texts = [text for name in NAMES for text in nodes.texts(name, 2)]
            for name in NAMES:
                await nodes[name].embed(*texts)
            old = {tap.computed[text][0] for text in texts}
            mortal["b"].kill()
            for name in NAMES:
                await until(partial(shut, nodes[name], 1))

            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await nodes["a"].invalidate()

            async def renewed() -> bool:
                answers = [await nodes[name].embed(*texts) for name in NAMES]
                return not any(old & set(rows(answer)) for answer in answers)

            await until(renewed)

    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "2 of 3 Valkeys" in (refused.value.details() or "")


async def test_hits_are_answered_where_most_of_a_cluster_is_away(tap: Tap, tmp_path: Path) -> None:
    """What is left takes no writes then."""
    with valkey_cluster(tmp_path) as mortal:
        async with running_nodes(mortal, tap, tmp_path, l1_bytes=0) as nodes:
            texts = nodes.texts("a", 3)
            await nodes["a"].embed(*texts)
            await cached_in(nodes["a"], *texts)
            for name in ("b", "c"):
                mortal[name].kill()
            await asyncio.to_thread(
                mortal.until, lambda: "CLUSTERDOWN" in str(mortal["a"].run(("SET", "x{a}0", ""))[0])
            )

            hits = [await nodes["a"].embed(*texts) for _ in range(3)]
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await nodes["a"].invalidate()
            after = await nodes["a"].embed(*texts)

    assert [sources(hit) for hit in hits] == [["valkey"] * 3] * 3
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not set(rows(after)) & set(rows(hits[0]))


async def test_a_copy_of_the_agreement_is_believed_while_the_original_is_away(
    tap: Tap, tmp_path: Path
) -> None:
    """A node that starts then, with no embedder either, still answers what it can read."""
    with valkey_cluster(tmp_path) as mortal:
        async with running_nodes(mortal, tap, tmp_path) as nodes:
            texts = {name: nodes.texts(name, 2) for name in NAMES}
            for each in texts.values():
                await nodes["a"].embed(*each)
                await cached_in(nodes["b"], *each)
            configs = nodes.configs
        dead = mortal.owner(agreement_key(configs["a"]))
        mortal[dead].kill()
        first, second = (name for name in NAMES if name != dead)

        async with running(configs[first]) as node:
            await until(partial(shut, node, 1))
            answer = await node.embed(*texts[second])

    assert sources(answer) == ["valkey"] * 2
    assert rows(answer) == [tap.computed[text][0] for text in texts[second]]


async def test_no_vector_is_wrong_while_slots_move(tap: Tap, tmp_path: Path) -> None:
    with valkey_cluster(tmp_path) as mortal:
        async with running_nodes(mortal, tap, tmp_path, l1_bytes=0) as nodes:
            texts = [text for name in NAMES for text in nodes.texts(name, 20)]
            await nodes["a"].embed(*texts)
            moving = asyncio.create_task(
                asyncio.to_thread(mortal.move, 0, 4000, source="a", target="c")
            )
            answers = []
            while not moving.done():
                answers += [await nodes[name].embed(*texts) for name in NAMES]
            await moving
            answers += [await nodes[name].embed(*texts) for name in NAMES]
            await cached_in(nodes["b"], *texts)

    for answer in answers:
        assert not answer.errors
        for text, row in zip(texts, rows(answer), strict=True):
            assert row in tap.computed[text]
