"""Forming a cluster of real Valkeys, and mending it after real accidents."""

import itertools
from pathlib import Path

import pytest

from embedkeep_operator import slots
from embedkeep_operator.cluster import Assign
from embedkeep_operator.topology import Reason, plan
from embedkeep_operator.valkeys import Valkeys
from support.formed import PASSWORD, SETTLED, formed

pytestmark = pytest.mark.timeout(90)


async def test_three_new_ones_become_a_cluster_that_spreads_the_keys(tmp_path: Path) -> None:
    async with formed(tmp_path) as shards:
        await shards.until(lambda: shards.forming.whole)

        seen = await shards.seen()
        assert plan(shards.wanted, seen) == SETTLED
        assert [view.own.slots.bit_count() for view in seen.values()] == [5462, 5461, 5461]
        answers = [str(await shards.run(name, "SET", "a", 1)) for name in shards.valkeys]
        moved = f"MOVED 15495 127.0.0.1:{shards.endpoint('valkey-2').port}"
        assert answers == [moved, moved, "b'OK'"]
        assert len(shards.events) == 1
        assert shards.events[0].message.endswith("3 shards serve all slots")


@pytest.mark.parametrize("anew", [False, True], ids=["with its id", "under another id"])
async def test_one_that_was_killed_serves_its_slots_again(tmp_path: Path, anew: bool) -> None:  # noqa: FBT001  # a parameter of the test
    async with formed(tmp_path) as shards:
        await shards.until(lambda: shards.forming.whole)
        before = await shards.seen()

        await shards.restarted("valkey-1", anew=anew)

        after = await shards.settled()
        assert (after["valkey-1"].id == before["valkey-1"].id) is not anew
        for name in before:
            assert after[name].own.slots == before[name].own.slots
            assert {*after[name].peers} == {view.id for view in after.values()}


async def test_all_that_were_killed_at_once_become_whole_again(tmp_path: Path) -> None:
    async with formed(tmp_path) as shards:
        await shards.until(lambda: shards.forming.whole)

        for name in shards.valkeys:
            await shards.restarted(name, anew=name != "valkey-2")

        after = await shards.settled()
        assert sum(view.own.slots for view in after.values()) == slots.ALL


async def test_halves_that_do_not_know_each_other_and_claim_the_same_are_merged(
    tmp_path: Path,
) -> None:
    """Neither had an epoch of its own: Valkey settles that, and who keeps what."""
    async with formed(tmp_path, forming=False) as shards:
        third = shards.endpoint("valkey-2")
        await shards.run("valkey-0", "CLUSTER", "ADDSLOTSRANGE", 0, 9000)
        await shards.run("valkey-1", "CLUSTER", "ADDSLOTSRANGE", 8000, 12000)
        await shards.run("valkey-2", "CLUSTER", "ADDSLOTSRANGE", 100, 200)
        await shards.run("valkey-1", "CLUSTER", "MEET", third.host, third.port, third.bus_port)

        shards.forming.start()
        await shards.until(lambda: shards.forming.whole)

        claims = [view.own.slots for view in (await shards.seen()).values()]
        assert sum(claims) == slots.ALL
        assert not any(one & other for one, other in itertools.combinations(claims, 2))


async def test_one_that_hangs_is_waited_for_and_nothing_is_taken_from_it(tmp_path: Path) -> None:
    async with formed(tmp_path) as shards:
        await shards.until(lambda: shards.forming.whole)
        before = await shards.seen()

        shards.valkeys["valkey-0"].pause()
        await shards.until(lambda: not shards.forming.whole)
        assert shards.forming.standing == "not all answer (valkey-0: no answer)"
        assert shards.events[-1].message == "not whole: not all answer (valkey-0: no answer)"
        shards.valkeys["valkey-0"].resume()
        await shards.until(lambda: shards.forming.whole)

        after = await shards.seen()
        assert [view.own.slots for view in after.values()] == [
            view.own.slots for view in before.values()
        ]


async def test_one_with_another_password_is_not_met(tmp_path: Path) -> None:
    """The bus would let it in: it knows no password."""
    async with formed(tmp_path, forming=False) as shards:
        await shards.run("valkey-2", "CONFIG", "SET", "requirepass", "other")

        async with Valkeys(shards.wanted, PASSWORD) as valkeys:
            seen = await valkeys.look()
            todo = plan(shards.wanted, seen)
            for step in todo.steps:
                assert await valkeys.take(step) is None

        assert [*seen] == ["valkey-0", "valkey-1"]
        assert valkeys.silent == {
            "valkey-2": "WRONGPASS invalid username-password pair or user is disabled."
        }
        assert todo.reason is Reason.MISSING
        assert {step.at for step in todo.steps} == {"valkey-0", "valkey-1"}


async def test_a_step_that_is_refused_says_why(tmp_path: Path) -> None:
    async with formed(tmp_path) as shards:
        await shards.until(lambda: shards.forming.whole)

        async with Valkeys(shards.wanted, PASSWORD) as valkeys:
            await valkeys.look()
            said = await valkeys.take(Assign(at="valkey-1", slots=1))

        assert said == "ERR Slot 0 is already busy"
