"""Shards of several real Valkeys: whoever dies, what another of its shard holds is still there."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest

from embedkeep_operator import slots
from embedkeep_operator.cluster import View
from embedkeep_operator.topology import Reason
from support.formed import PASSWORD, Formed, formed

pytestmark = pytest.mark.timeout(120)

KEYS = [f"key {number}" for number in range(300)]


async def stored(shards: Formed) -> None:
    """All of `KEYS`, by whoever takes them, and copied to all replicas."""
    await shards.settled()
    for valkey in shards.valkeys.values():
        sets = [("SET", key, 1) for key in KEYS]
        await asyncio.to_thread(valkey.run, *sets, password=PASSWORD)
    await copied(shards)


async def copied(shards: Formed) -> None:
    """Wait until each replica holds what its primary does."""
    while not _is_copied((seen := await shards.settled()).values()):  # noqa: ASYNC110  # they announce nothing
        await asyncio.sleep(0.05)
    assert sum(view.keys for view in seen.values() if view.own.slots) == len(KEYS)


def _is_copied(seen: Iterable[View]) -> bool:
    held = {view.id: view.keys for view in seen}
    return all(view.keys == held[view.own.primary or view.id] for view in seen)


async def has_taken_over(shards: Formed, name: str) -> None:
    while name not in primaries(await shards.seen()):  # noqa: ASYNC110  # they announce nothing
        await asyncio.sleep(0.1)


def primaries(seen: dict[str, View]) -> list[str]:
    return [name for name, view in seen.items() if view.own.primary is None]


@pytest.mark.parametrize("shards", [1, 2, 3])
async def test_new_ones_become_a_cluster_whose_replicas_hold_the_same(
    tmp_path: Path, shards: int
) -> None:
    async with formed(tmp_path, shards=shards, replicas=1) as made:
        await made.until(lambda: made.forming.whole)

        seen = await made.seen()
        assert primaries(seen) == [f"valkey-{2 * shard}" for shard in range(shards)]
        assert slots.union(view.own.slots for view in seen.values()) == slots.ALL
        await stored(made)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    ("anew", "moved"),
    [(False, False), (True, False), (True, True)],
    ids=["as who it was", "under another id", "elsewhere"],
)
async def test_what_a_killed_primary_held_outlives_it(
    tmp_path: Path,
    shards: int,
    anew: bool,  # noqa: FBT001 - pytest gives it by name
    moved: bool,  # noqa: FBT001 - pytest gives it by name
) -> None:
    """It comes back at once and empty, before the others can have missed it."""
    async with formed(tmp_path, shards=shards, replicas=1) as made:
        await stored(made)

        await made.restarted("valkey-0", anew=anew, moved=moved)
        await copied(made)

        assert primaries(await made.seen())[0] == "valkey-1"


async def test_a_replica_takes_over_from_a_primary_that_stays_away(tmp_path: Path) -> None:
    """The others elect it."""
    async with formed(tmp_path, shards=3, replicas=1) as made:
        await stored(made)

        made.valkeys["valkey-2"].kill()
        await has_taken_over(made, "valkey-3")
        found = [await made.run("valkey-3", "GET", key) for key in KEYS]
        assert b"1" in found, "it answers for its shard"

        await made.started("valkey-2")
        await copied(made)
        assert primaries(await made.seen()) == ["valkey-0", "valkey-3", "valkey-4"]


async def test_a_replica_takes_over_where_too_few_are_left_to_elect_it(tmp_path: Path) -> None:
    async with formed(tmp_path, shards=2, replicas=1) as made:
        await stored(made)

        made.valkeys["valkey-0"].kill()
        await has_taken_over(made, "valkey-1")

        assert made.forming.reason is Reason.MISSING
        await made.started("valkey-0")
        await copied(made)


async def test_a_replica_that_was_killed_is_filled_again(tmp_path: Path) -> None:
    async with formed(tmp_path, shards=2, replicas=1) as made:
        await stored(made)

        await made.restarted("valkey-1", anew=True, moved=True)
        await copied(made)

        assert primaries(await made.seen()) == ["valkey-0", "valkey-2"]


async def test_a_shard_both_of_whose_valkeys_die_serves_its_slots_again(tmp_path: Path) -> None:
    async with formed(tmp_path, shards=2, replicas=1) as made:
        await stored(made)
        before = await made.settled()

        made.valkeys["valkey-0"].kill()
        await made.restarted("valkey-1", anew=True)
        await made.started("valkey-0")
        after = await made.settled()

        held = slots.union(after[name].own.slots for name in ("valkey-0", "valkey-1"))
        assert held == before["valkey-0"].own.slots
        assert after["valkey-2"].keys == before["valkey-2"].keys


async def test_all_that_were_killed_at_once_become_whole_at_other_addresses(
    tmp_path: Path,
) -> None:
    async with formed(tmp_path, shards=2, replicas=1) as made:
        await made.settled()

        for name in made.valkeys:
            await made.restarted(name, anew=True, moved=True)

        after = await made.settled()
        assert slots.union(view.own.slots for view in after.values()) == slots.ALL
        assert len(primaries(after)) == 2


async def test_a_primary_that_hung_finds_its_replica_in_its_place(tmp_path: Path) -> None:
    """It still believes what it did; what the others have decided has a newer epoch."""
    async with formed(tmp_path, shards=3, replicas=1) as made:
        await stored(made)

        made.valkeys["valkey-0"].pause()
        await has_taken_over(made, "valkey-1")
        made.valkeys["valkey-0"].resume()
        await copied(made)

        assert primaries(await made.seen())[0] == "valkey-1"
