"""What was forgotten through one node of several is answered by none of them."""

import asyncio
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest

from embedkeep.keys import KeySpace, peer_token, tenant_salt, tenant_tag
from embedkeep.node.peers import SHOWN_AS
from embedkeep.node.roundtrip import RoundTrip
from embedkeep.v1 import cache_pb2, peers_pb2, peers_pb2_grpc
from support.cluster import NAMES, PATIENT, Nodes, Valkeys, is_shut, running_nodes, valkey_cluster
from support.node import WAIT_S, rows, sources, until
from support.tap import DIMENSIONS, Tap

pytestmark = pytest.mark.timeout(90)

SHOWN = ((SHOWN_AS, peer_token(b"0123456789abcdef")),)
SALT = tenant_salt(b"", "")


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
                await until(partial(is_shut, nodes[name], 1))

            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await nodes["a"].invalidate()

            async def renewed() -> bool:
                answers = [await nodes[name].embed(*texts) for name in NAMES]
                return not any(old & set(rows(answer)) for answer in answers)

            await until(renewed)

    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "2 of 3 Valkeys" in (refused.value.details() or "")


async def test_nodes_that_forget_at_the_same_time_all_hear_of_each_other(
    nodes: Nodes, tap: Tap
) -> None:
    texts = [text for name in NAMES for text in nodes.texts(name, 2)]
    for _ in range(5):
        for name in NAMES:
            await nodes[name].embed(*texts)
        old = {tap.computed[text][-1] for text in texts}

        await asyncio.gather(
            *(nodes[NAMES[at % 3]].invalidate(text) for at, text in enumerate(texts))
        )

        for name in NAMES:
            await until(partial(answers_none_of, nodes, name, old, texts))


async def answers_none_of(nodes: Nodes, name: str, old: set[bytes], texts: list[str]) -> bool:
    answer = await nodes[name].embed(*texts, cache_control={"only_if_cached": True})
    return not old & set(rows(answer))


async def test_a_node_that_forgets_a_text_drops_its_own_memory_as_the_others_do(
    nodes: Nodes,
) -> None:
    """It may have read there what another node was deleting."""
    text, other = nodes.texts("a", 2)
    await nodes["a"].embed(text, other)

    async def in_valkey() -> bool:
        answer = await nodes["b"].embed(other, cache_control={"only_if_cached": True})
        return not answer.errors

    await until(in_valkey)
    await nodes["a"].invalidate(text)

    assert sources(await nodes["a"].embed(other)) == ["valkey"]


async def test_a_peer_has_withdrawn_only_once_its_writes_are_in_valkey(
    tap: Tap, tmp_path: Path
) -> None:
    """What it had written would otherwise be stored after it was deleted."""
    with valkey_cluster(tmp_path) as mortal:
        async with running_nodes(mortal, tap, tmp_path, epoch_poll_s=30.0) as nodes:
            (text,) = nodes.texts("b", 1)
            stub: peers_pb2_grpc.PeersAsyncStub = peers_pb2_grpc.PeersStub(nodes["b"].channel)
            mortal["b"].pause()
            await nodes["b"].embed(text)  # reads in vain, computes, and writes

            request = peers_pb2.WithdrawRequest(tenant=tenant_tag(SALT))
            withdrawn = asyncio.ensure_future(
                stub.Withdraw(request, metadata=SHOWN, timeout=WAIT_S)
            )
            early, _ = await asyncio.wait({withdrawn}, timeout=0.3)
            mortal["b"].resume()
            await withdrawn

            assert not early
            key = KeySpace(fingerprint=tap.fingerprint, salt=SALT, epoch=0, prompt="").key(text)
            assert mortal["b"].run(("EXISTS", key)) == [1]


async def test_a_peer_that_is_left_alone_is_told_too(
    whole: Valkeys, tap: Tap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may only have been late, because it is at work."""
    monkeypatch.setattr(RoundTrip, "patience_s", lambda *_, **__: 1e-9)
    async with running_nodes(whole, tap, tmp_path, cluster=PATIENT, epoch_poll_s=30.0) as nodes:
        text, *others = nodes.texts("b", 4)
        tap.gate.clear()
        early = asyncio.create_task(nodes["b"].embed(text))
        await tap.entered.get()
        late = []
        for count, other in enumerate(others, 1):  # three in a row, and it is left alone
            late.append(asyncio.create_task(nodes["a"].embed(other)))
            await until(partial(has_been_late, nodes, count))
        await nodes["a"].invalidate(text)
        tap.gate.set()
        await asyncio.gather(*late)
        old = rows(await early)

        again = await nodes["c"].embed(text, cache_control={"only_if_cached": True})

        assert rows(again) != old
        assert again.errors


async def has_been_late(nodes: Nodes, count: int) -> bool:
    return (await nodes.hops("a")).get("late") == count


async def test_other_nodes_hear_of_what_a_dead_valkey_keeps_from_being_deleted(
    tap: Tap, tmp_path: Path
) -> None:
    with valkey_cluster(tmp_path) as mortal:
        async with running_nodes(mortal, tap, tmp_path) as nodes:
            texts = [text for name in NAMES for text in nodes.texts(name, 1)]
            mortal["b"].kill()
            await until(partial(is_shut, nodes["a"], 1))

            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await nodes["a"].invalidate(*texts)

            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "repeat the call: b: " in (refused.value.details() or "")
            for name in ("a", "c"):
                (found,) = mortal[name].run(("KEYS", "embedkeep:forgotten*"))
                assert isinstance(found, list)
                assert len(found) == 1


async def test_no_node_answers_what_an_import_through_another_has_replaced(
    whole: Valkeys, tmp_path: Path
) -> None:
    tap = Tap(steady=True)
    async with running_nodes(whole, tap, tmp_path, imports=True) as nodes:
        texts = [text for name in NAMES for text in nodes.texts(name, 2)]
        for name in NAMES:
            await nodes[name].embed(*texts)  # so that each holds them in its memory
        near = np.frombuffer(b"".join(tap.computed[text][0] for text in texts), np.float32)
        near = near * np.float32(1 + 1e-6)  # other low bits
        request = cache_pb2.ImportRequest(
            inputs=texts, vectors=near.tobytes(), dimensions=DIMENSIONS, overwrite=True
        )

        await nodes["a"].stub.Import(request, timeout=WAIT_S)

        async def replaced(name: str) -> bool:
            return (await nodes[name].embed(*texts)).vectors == near.tobytes()

        assert await replaced("a")
        for name in NAMES:
            await until(partial(replaced, name))
