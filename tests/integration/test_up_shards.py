"""`embedkeep up` with three shards: real Valkeys in a cluster, real nodes, a real model."""

import asyncio
import json
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from embedkeep import AsyncClient, Source
from embedkeep_operator.cluster import Endpoint, View, Wanted
from embedkeep_operator.local.observe import read
from embedkeep_operator.local.replay import sample
from embedkeep_operator.local.runner import Running
from embedkeep_operator.render_valkey import CLUSTER_FILE
from embedkeep_operator.topology import Plan, Reason, plan
from embedkeep_operator.valkeys import Valkeys
from support.endings import until_gone
from support.load import Load, alone
from support.up import THREE_SHARDS, Place, eventually, pids_of, said_by, up

pytestmark = pytest.mark.timeout(180)

ANSWERS = 30
"""Rows that callers must get while an accident lasts."""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "cache.yaml").write_text(THREE_SHARDS)
    return Place(tmp_path / "cache.yaml", tmp_path / "state")


async def whole(running: Running) -> dict[str, View]:
    """How the Valkeys see their cluster, once it is whole."""
    wanted = {
        f"valkey-{number}": Wanted(
            shard=node.shard,
            endpoint=Endpoint(host="127.0.0.1", port=node.valkey, bus_port=node.bus or 0),
        )
        for number, node in enumerate(running.ports.nodes)
    }
    password = (running.folder / "valkey-password").read_text()
    while True:
        async with Valkeys(wanted, password) as valkeys:
            seen = await valkeys.look()
        if plan(wanted, seen) == Plan(reason=Reason.SETTLED):
            return seen
        await asyncio.sleep(0.05)


async def stored(running: Running) -> list[float]:
    """Entries in each Valkey, as the node beside it counts them."""
    looks = await read(running.ports.metrics_urls)
    return [looks[f"node-{shard}"].entries.get("valkey", 0) for shard in range(3)]


@asynccontextmanager
async def asked(running: Running) -> AsyncIterator[Load]:
    """Two callers ask all nodes in turn while the block runs."""
    async with AsyncClient(running.address) as client, asyncio.TaskGroup() as callers:
        load = Load(client, sorted(set(sample()))[:300])
        tasks = [callers.create_task(load.ask(seed), name=f"caller {seed}") for seed in (1, 2)]
        await load.until_answered(ANSWERS)
        yield load
        for task in tasks:
            task.cancel()


async def restarted(running: Running, name: str) -> None:
    """Wait until the process that was killed runs again."""
    child = running.processes[name]
    starts = child.starts
    os.kill(running.pid(name), signal.SIGKILL)
    await running.supervisor.board.until(lambda: child.starts > starts)


async def test_three_shards_are_one_cache(place: Place) -> None:
    texts = sorted(set(sample()))[:60]
    async with place.local() as running:
        assert [*running.processes] == [
            "valkey-0", "valkey-1", "valkey-2", "embedder", "node-0", "node-1", "node-2"
        ]  # fmt: skip
        before = await stored(running)
        async with AsyncClient(f"127.0.0.1:{running.ports.nodes[0].grpc}") as client:
            first = await client.embed_detailed(texts)
        assert {*first.sources} == {Source.EMBEDDER}

        async def is_stored() -> bool:
            return sum(await stored(running)) >= sum(before) + len(texts)

        await eventually(is_stored)
        gained = [now - then for now, then in zip(await stored(running), before, strict=True)]
        assert min(gained) > 0, "each holds some"

        for node in running.ports.nodes[1:]:
            async with AsyncClient(f"127.0.0.1:{node.grpc}") as client:
                again = await client.embed_detailed(texts)
            assert Source.EMBEDDER not in again.sources
            assert np.array_equal(again.vectors, first.vectors)
        await _is_shown_as_one(place, running, answered=3 * len(texts))
        assert [view.own.slots.bit_count() for view in (await whole(running)).values()] == [
            5462, 5461, 5461
        ]  # fmt: skip


async def _is_shown_as_one(place: Place, running: Running, *, answered: int) -> None:
    code, out, err = await said_by(*place.command("status", "docs", "--json"))
    said = json.loads(out)["docs"]
    assert (code, err, said["problem"]) == (0, "", "")
    assert (said["counts"]["answered"], said["counts"]["answers"]) == (answered, True)
    assert [*said["processes"]] == ["node-0", "node-1", "node-2", "embedder"]
    assert said["info"]["model"] == said["processes"]["node-2"]["info"]["model"]
    code, out, _ = await said_by(*place.command("status"))
    assert (code, "tier valkey of node-2" in out) == (0, True)
    _, *arguments, text = shlex.split(running.command)
    for by in (arguments, ["embed", "--state-dir", str(place.state)],
               ["embed", "--state-dir", str(place.state), "--address", "docs"]):  # fmt: skip
        code, out, err = await said_by(sys.executable, "-m", "embedkeep.cli", *by, "hello")
        assert (code, err, json.loads(out)["text"]) == (0, "", "hello")
    assert text == "TEXT"


@pytest.mark.parametrize("anew", [False, True], ids=["with its id", "under another id"])
async def test_a_valkey_that_is_killed_serves_its_slots_again(place: Place, anew: bool) -> None:  # noqa: FBT001  # a parameter of the test
    async with place.local() as running, asked(running) as load:
        before = await whole(running)
        if anew:
            os.kill(running.pid("valkey-1"), signal.SIGSTOP)  # it must not write it again
            (running.folder / "valkey-1" / CLUSTER_FILE).unlink()
        await restarted(running, "valkey-1")
        await load.until_answered(ANSWERS)
        after = await whole(running)
        await running.ready(60)
        await load.until_answered(ANSWERS)

        assert (after["valkey-1"].id == before["valkey-1"].id) is not anew
        assert {name: view.own.slots for name, view in after.items()} == {
            name: view.own.slots for name, view in before.items()
        }

        async def stores_again() -> bool:
            return (await stored(running))[1] > 0

        await eventually(stores_again)
    assert load.refusals == [], "nobody noticed"


@pytest.mark.parametrize("shards", [1, 2])
async def test_with_a_replica_the_entries_outlive_a_primary(place: Place, shards: int) -> None:
    """It is killed while callers ask, and comes back empty and at the same address."""
    place.file.write_text(
        THREE_SHARDS.replace("shards: 3", f"shards: {shards}\n    replicasPerShard: 1")
    )
    texts = sorted(set(sample()))[:60]
    async with place.local() as running:
        before = await whole(running)
        await until_roles(place, ["primary", "replica"] * shards)
        async with AsyncClient(running.address) as client:
            first = await client.embed_detailed(texts)
        held = await until_copied(running)

        async with asked(running) as load:
            await restarted(running, "valkey-0")
            await load.until_answered(ANSWERS)
            after = await whole(running)
        assert load.refusals == [], "nobody noticed"
        assert after["valkey-0"].own.primary == before["valkey-1"].id
        assert after["valkey-1"].keys >= held["valkey-1"].keys
        await until_roles(place, ["replica", "primary"])
        for node in running.ports.nodes:
            async with AsyncClient(f"127.0.0.1:{node.grpc}") as client:
                again = await client.embed_detailed(texts)
            assert Source.EMBEDDER not in again.sources
            assert np.array_equal(again.vectors, first.vectors)


async def until_copied(running: Running) -> dict[str, View]:
    """Wait until each replica holds as much as its primary."""
    while True:
        seen = await whole(running)
        held = {view.id: view.keys for view in seen.values()}
        if all(view.keys == held[view.own.primary or view.id] for view in seen.values()):
            return seen
        await asyncio.sleep(0.05)


async def roles(place: Place) -> list[str]:
    """Of the Valkeys, as `embedkeep status` shows them."""
    _, out, _ = await said_by(*place.command("status", "docs", "--json"))
    processes = json.loads(out)["docs"]["processes"]
    return [each["role"] for each in processes.values() if "role" in each]


async def until_roles(place: Place, first: list[str]) -> None:
    """Wait until the first of them are so."""

    async def are_so() -> bool:
        return (await roles(place))[: len(first)] == first

    await eventually(are_so)


async def test_nodes_and_the_embedder_may_die_or_hang_while_callers_ask(place: Place) -> None:
    async with place.local() as running:
        async with asked(running) as load:
            await restarted(running, "node-1")
            await load.until_answered(ANSWERS)
            hung = running.pid("node-2")
            os.kill(hung, signal.SIGSTOP)
            await load.until_answered(ANSWERS)
            os.kill(hung, signal.SIGCONT)
            await restarted(running, "embedder")
            await load.until_answered(ANSWERS)
            await running.ready(60)
            assert running.pid("node-2") == hung, "one that hangs is not restarted"
        truth = await alone(running, {text for text, _ in load.answers})
    assert [text for text, row in load.answers if row != truth[text]] == []
    assert load.unclear() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
async def test_nothing_outlives_up(place: Place, number: signal.Signals) -> None:
    async with up(place) as running:
        await running.until("ready: embedkeep embed --address http://127.0.0.1:")
        pids = pids_of(place)
        assert len(pids) == 7

        assert await running.end(number) == (0 if number is signal.SIGINT else -number)
        await until_gone(pids)
    assert "did not stop in time" not in running.said
    assert "Traceback" not in running.said


async def test_one_shard_is_no_cluster_whatever_ran_before(place: Place) -> None:
    """A Valkey that found its old nodes.conf would look for two that are gone."""
    async with place.local():
        pass
    place.file.write_text(THREE_SHARDS.replace("shards: 3", "shards: 1"))

    async with place.local() as running:
        assert [*running.processes] == ["valkey", "embedder", "node"]
        assert "cluster-enabled" not in (running.folder / "valkey.conf").read_text()
        async with AsyncClient(running.address) as client:
            assert (await client.embed(["one"])).shape == (1, 384)
    assert not [*place.state.glob(f"docs/*/{CLUSTER_FILE}")]
