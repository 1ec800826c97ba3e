"""Several nodes beside the Valkeys of a cluster: one miss costs one forward pass, whoever asks."""

import asyncio
import time
from functools import partial
from pathlib import Path

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkeep.node.space import agreement_key
from embedkeep.v1 import cache_pb2, peers_pb2, peers_pb2_grpc
from support.certificates import Authority
from support.cluster import NAMES, PATIENT, Nodes, Valkeys, is_shut, running_nodes, valkey_cluster
from support.node import WAIT_S, Node, rows, running, sources, until
from support.tap import Tap

pytestmark = pytest.mark.timeout(90)


async def cached_in(node: Node, *texts: str) -> None:
    """Wait until *texts* can be read from Valkey; *node* does not keep them."""
    control = {"only_if_cached": True, "no_store": True}

    async def hits() -> bool:
        answer = await node.embed(*texts, cache_control=control)
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


async def test_a_trace_goes_over_a_hop(nodes: Nodes, tap: Tap) -> None:
    trace = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "rojo=00f067aa0ba902b7",
    }
    request = cache_pb2.EmbedRequest(inputs=nodes.texts("b", 1))

    await nodes["a"].stub.Embed(request, metadata=list(trace.items()), timeout=WAIT_S)

    assert await nodes.hops("a") == {"answered": 1}
    assert [call.trace for call in tap.calls] == [trace]


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
            await until(partial(is_shut, nodes["a"], 1))
            answers = [await nodes["a"].embed(*texts) for texts in (theirs, others)]

    assert [sources(answer) for answer in answers] == [["peer"] * 2, ["valkey"] * 2]
    assert sorted(tap.texts) == sorted([*theirs, *others])


async def test_nodes_that_take_each_other_for_the_owner_never_go_in_circles(
    whole: Valkeys, tap: Tap, tmp_path: Path
) -> None:
    async with running_nodes(whole, tap, tmp_path, opinions={"b": ("a", "c", "b")}) as nodes:
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


@settings(max_examples=6)
@given(opinions=st.fixed_dictionaries({name: st.permutations(NAMES) for name in NAMES}))
def test_whoever_nodes_take_for_the_owner_a_text_costs_one_forward_pass_a_node_at_most(
    unharmed: Valkeys, tmp_path_factory: pytest.TempPathFactory, opinions: dict[str, list[str]]
) -> None:
    tap = Tap()

    async def play() -> None:
        folder = tmp_path_factory.mktemp("nodes")
        async with running_nodes(unharmed, tap, folder, opinions=opinions) as nodes:
            texts = [text for name in NAMES for text in nodes.texts(name, 2)]
            tap.gate.clear()
            calls = [
                asyncio.create_task(nodes[name].embed(text)) for text in texts for name in NAMES
            ]
            await tap.entered.get()
            tap.gate.set()
            answers = await asyncio.gather(*calls)
            again = [await nodes[name].embed(text) for text in texts for name in NAMES]

            for at, answer in enumerate([*answers, *again]):
                assert rows(answer)[0] in tap.computed[texts[at // len(NAMES) % len(texts)]]
            assert all(len(tap.computed[text]) <= len(NAMES) for text in texts)
            for name in NAMES:
                assert sum((await nodes.hops(name)).values()) <= len(texts)

    for name in NAMES:
        unharmed[name].run(("FLUSHALL",))
    asyncio.run(play())


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

    assert await nodes.hops("a") == {"left": 1}
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
        whole, tap, tmp_path, opinions={"c": ("b", "a", "c")}, limits={"max_pending_inputs": 4}
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
            await stub.Withdraw(peers_pb2.WithdrawRequest(), metadata=shown, timeout=WAIT_S)
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
            await until(partial(is_shut, node, 1))
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
