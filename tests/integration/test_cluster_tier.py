"""The Valkeys of a cluster as one tier: what goes where, and what a dead or moved shard costs."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep.config import Cluster, ValkeyTarget
from embedkeep.errors import Unavailable
from embedkeep.keys import KEY_BYTES, Key
from embedkeep.node.metrics import Metrics
from embedkeep.node.shards import Shards
from embedkeep.node.slots import slot_of
from embedkeep.node.tiers import Run
from support.cluster import NAMES, Valkeys, cluster_config, valkey_cluster
from support.node import until
from support.tier import DIMENSIONS, an_entry

KEYS = [Key(bytes([number]) * KEY_BYTES) for number in range(1, 41)]


class Copies:
    """What is shared: here only the names it is shared under."""

    def __init__(self) -> None:
        self.names: list[bytes] = []

    async def sync(self, run: Run, here: Callable[[bytes], bytes]) -> str | None:
        name = here(b"state")
        self.names.append(name)
        (reply,) = await run([("INCR", name)])
        if not isinstance(reply, int):
            raise Unavailable(str(reply))
        return None


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Valkeys]:
    """A cluster that the test may harm."""
    with valkey_cluster(tmp_path) as valkeys:
        yield valkeys


@asynccontextmanager
async def running(
    valkeys: Valkeys, poll_s: float = 0.05, *, cluster: Cluster | None = None
) -> AsyncIterator[tuple[Shards, Copies]]:
    copies = Copies()
    shards = Shards(
        ValkeyTarget(port=valkeys["a"].port, read_timeout_s=5.0, breaker_open_s=0.05),
        cluster or cluster_config(valkeys, "a", {}),
        shared=copies,
        metrics=Metrics(),
        poll_s=poll_s,
    )
    task = asyncio.create_task(shards.run())
    try:
        yield shards, copies
    finally:
        task.cancel()
        await asyncio.wait([task])


async def all_open(shards: Shards) -> bool:
    return shards.problem is None


async def stored(shards: Shards, keys: list[Key]) -> list[int | None]:
    found = dict((await shards.read(keys, dimensions=DIMENSIONS)).items())
    return [found[at].tokens if at in found else None for at in range(len(keys))]


async def test_each_entry_lies_where_the_cluster_looks_for_it(whole: Valkeys) -> None:
    async with running(whole) as (shards, _):
        await until(lambda: all_open(shards))
        entries = {key: an_entry(number) for number, key in enumerate(KEYS)}

        assert await shards.store(entries, overwrite=True) == len(KEYS)

        assert await stored(shards, KEYS) == list(range(len(KEYS)))
        for key in KEYS:
            owner = whole.owner(key)
            assert shards.owner(key) == owner
            assert whole[owner].run(("EXISTS", key)) == [1]


async def test_entries_of_all_shards_are_deleted_together(whole: Valkeys) -> None:
    async with running(whole) as (shards, _):
        await until(lambda: all_open(shards))
        await shards.store({key: an_entry(1) for key in KEYS}, overwrite=True)

        await shards.delete(KEYS[:-1])

        assert await stored(shards, KEYS) == [None] * (len(KEYS) - 1) + [1]


async def test_valkeys_are_known_by_the_names_that_they_announce(tmp_path: Path) -> None:
    """As in pods, whose addresses change with each restart."""
    with valkey_cluster(tmp_path, "--cluster-announce-hostname", "localhost") as valkeys:
        cluster = cluster_config(valkeys, "a", {})
        named = [
            member.model_copy(update={"valkey_host": "localhost"}) for member in cluster.members
        ]
        async with running(
            valkeys, cluster=cluster.model_copy(update={"members": tuple(named)})
        ) as (shards, _):
            await until(lambda: all_open(shards))

            assert {shards.owner(key) for key in KEYS} == set(NAMES)


async def test_each_valkey_holds_a_copy_of_what_is_shared_in_a_slot_of_its_own(
    whole: Valkeys,
) -> None:
    async with running(whole) as (shards, copies):
        await until(lambda: all_open(shards))

        assert {whole.owner(name) for name in copies.names} == set(NAMES)
        assert b"state" in copies.names


async def test_a_fresh_node_opens_no_valkey_before_all_were_tried(mortal: Valkeys) -> None:
    """What one does not say any more, another may: that texts were forgotten, for one."""
    mortal["b"].pause()
    async with running(mortal) as (shards, copies):

        async def two_merged() -> bool:
            return len(copies.names) >= 2

        await until(two_merged)
        early = [shards.open]
        for _ in range(20):  # far longer than the rest of opening would take
            await asyncio.to_thread(mortal["a"].run, ("PING",))
            early.append(shards.open)
        waiting = not shards.tried.is_set()
        await shards.tried.wait()

        assert waiting
        assert not any(early)
        await until(lambda: one_shut(shards))
        assert shards.open
        mortal["b"].resume()
        await until(lambda: all_open(shards))


async def test_a_dead_valkey_shuts_only_itself(mortal: Valkeys) -> None:
    async with running(mortal) as (shards, _):
        await until(lambda: all_open(shards))
        await shards.store({key: an_entry(1) for key in KEYS}, overwrite=True)
        dead = [mortal.owner(key) == "b" for key in KEYS]

        mortal["b"].kill()
        await until(lambda: one_shut(shards))

        assert shards.open
        assert "b: " in (shards.problem or "")
        assert await stored(shards, KEYS) == [None if each else 1 for each in dead]
        with pytest.raises(Unavailable, match=r"in 2 of 3 Valkeys.*that of b"):
            await shards.share()
        with pytest.raises(Unavailable, match="b: "):
            await shards.delete(KEYS)
        assert await stored(shards, KEYS) == [None] * len(KEYS)
        mortal["b"].start()


async def one_shut(shards: Shards) -> bool:
    return shards.left_alone == 1


async def test_entries_are_found_where_their_slots_have_moved(mortal: Valkeys) -> None:
    async with running(mortal, poll_s=300) as (shards, _):
        await until(lambda: all_open(shards))
        await shards.store({key: an_entry(1) for key in KEYS}, overwrite=True)
        moving = [key for key in KEYS if mortal.owner(key) == "a"]
        slots = sorted(map(slot_of, moving))

        await asyncio.to_thread(mortal.move, slots[0], slots[-1], source="a", target="c")
        # The first read is a miss that makes the node look; nothing else does for five minutes.
        await stored(shards, moving)

        async def found() -> bool:
            return await stored(shards, KEYS) == [1] * len(KEYS)

        await until(found)
        await shards.delete(moving)
        assert mortal["c"].run(("EXISTS", moving[0])) == [0]


@given(
    st.lists(
        st.binary(max_size=30) | st.binary().map(lambda inside: b"a{%b}b" % inside), min_size=1
    )
)
def test_slots_are_those_that_valkey_computes(unharmed: Valkeys, keys: list[bytes]) -> None:
    replies = unharmed["a"].run(*(("CLUSTER", "KEYSLOT", key) for key in keys))

    assert [slot_of(key) for key in keys] == replies


async def test_a_delete_follows_slots_that_have_moved(mortal: Valkeys) -> None:
    """It must not answer that is done what another Valkey still holds."""
    async with running(mortal, poll_s=300) as (shards, _):
        await until(lambda: all_open(shards))
        await shards.store({key: an_entry(1) for key in KEYS}, overwrite=True)
        moving = [key for key in KEYS if mortal.owner(key) == "a"]
        slots = sorted(map(slot_of, moving))
        await asyncio.to_thread(mortal.move, slots[0], slots[-1], source="a", target="c")

        await shards.delete(moving)

        for key in moving:
            assert mortal["c"].run(("EXISTS", key)) == [0]
