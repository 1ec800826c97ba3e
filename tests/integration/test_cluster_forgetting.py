"""What was forgotten through one node of several is answered by none of them."""

import asyncio
from functools import partial
from pathlib import Path

import grpc
import pytest

from support.cluster import NAMES, Nodes, Valkeys, is_shut, running_nodes, valkey_cluster
from support.node import rows, until
from support.tap import Tap

pytestmark = pytest.mark.timeout(90)



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
