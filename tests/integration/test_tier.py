import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from embedkeep.errors import Unavailable
from embedkeep.node.breaker import MAX_BACKOFF, TIMEOUTS_TO_OPEN
from embedkeep.records import encode
from support.tier import DIMENSIONS, Tier, a_key, an_entry, running
from support.valkey import Valkey, free_port, valkey


@pytest.fixture
async def tier(store: Valkey) -> AsyncIterator[Tier]:
    """An open tier on an empty Valkey."""
    async with running(store.port) as made:
        await made.until_open()
        yield made


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey that the test may harm."""
    with valkey(tmp_path) as server:
        yield server


async def test_what_was_written_is_read_in_the_order_asked_for(tier: Tier) -> None:
    for number in (1, 2, 3):
        await tier.written(number)

    found = await tier.tier.read([a_key(n) for n in (3, 9, 1)], dimensions=DIMENSIONS)

    assert [(place, entry.vector[0]) for place, entry in found.items()] == [(0, 3), (2, 1)]


async def test_a_later_write_replaces_an_earlier_one(tier: Tier, store: Valkey) -> None:
    tier.tier.write(a_key(1), an_entry(5))
    tier.tier.write(a_key(1), an_entry(6))
    await tier.written(2)

    assert await tier.read(a_key(1)) == [6]
    assert store.run(("DBSIZE",)) == [2]


async def test_a_delete_comes_after_the_writes_before_it(tier: Tier, store: Valkey) -> None:
    for number in range(50):
        tier.tier.write(a_key(number), an_entry(number))

    await tier.tier.delete([a_key(number) for number in range(49)])

    assert store.run(("KEYS", "*")) == [[a_key(49)]]


async def test_entries_stay_until_evicted_unless_told_otherwise(tier: Tier, store: Valkey) -> None:
    await tier.written(1)

    assert store.run(("TTL", a_key(1))) == [-1]


async def test_entries_live_as_long_as_the_config_says(store: Valkey) -> None:
    async with running(store.port, ttl_s=1000) as tier:
        await tier.until_open()
        await tier.written(1)

    (ttl,) = store.run(("TTL", a_key(1)))
    assert isinstance(ttl, int)
    assert 900 < ttl <= 1000


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"something else", id="another program's"),
        pytest.param(encode(a_key(2), an_entry(1)), id="another key's"),
        pytest.param(encode(a_key(1), an_entry(1))[:-1] + b"\x7f", id="its last byte changed"),
    ],
)
async def test_a_corrupt_record_is_a_miss_that_is_counted(
    tier: Tier, store: Valkey, record: bytes
) -> None:
    store.run(("SET", a_key(1), record))
    await tier.written(2)

    assert await tier.read(a_key(1), a_key(2)) == [None, 2]
    assert tier.corrupt() == 1
    assert tier.tier.open


async def test_a_record_of_another_length_of_vector_is_corrupt(tier: Tier) -> None:
    await tier.written(1)

    found = await tier.tier.read([a_key(1)], dimensions=DIMENSIONS + 1)

    assert list(found.items()) == []
    assert tier.corrupt() == 1


async def test_what_is_no_record_is_a_miss_of_its_key_alone(tier: Tier, store: Valkey) -> None:
    store.run(("RPUSH", a_key(1), "a list"))
    await tier.written(2)
    await tier.written(3)

    assert await tier.read(a_key(2), a_key(1), a_key(3)) == [2, None, 3]
    assert tier.tier.open


async def test_an_error_reply_is_a_miss_that_is_counted(mortal: Valkey) -> None:
    async with running(mortal.port) as tier:
        await tier.until_open()
        await tier.written(1)
        mortal.run(("ACL", "SETUSER", "default", "resetkeys"))

        assert await tier.read(a_key(1), a_key(2)) == [None, None]
        assert tier.failures("error") == 1
        assert tier.tier.open


async def test_a_valkey_that_is_a_member_after_all_is_read_key_by_key(tmp_path: Path) -> None:
    """One that the config takes for a lone one; it refuses a command over several slots."""
    bus = ("--cluster-port", str(free_port()))
    with valkey(tmp_path, "--cluster-enabled", "yes", *bus) as member:
        async with running(member.port) as tier:
            await tier.until_open()

            counted = []
            for _ in range(2):
                await tier.read(a_key(1), a_key(2))
                counted.append((tier.failures("error"), tier.failures("moved")))

            # One for all of them; then of each that nobody owns its slot yet.
            assert counted == [(1, 0), (1, 2)]


async def test_a_write_that_valkey_refuses_is_counted_and_harms_nothing(tmp_path: Path) -> None:
    with valkey(tmp_path, "--maxmemory", "1", "--maxmemory-policy", "noeviction") as full:
        async with running(full.port) as tier:
            await tier.until_open()
            tier.tier.write(a_key(1), an_entry(1))
            await tier.until(lambda: tier.failures("error") == 1)

            assert await tier.read(a_key(1)) == [None]
            assert tier.tier.open


async def test_a_delete_that_valkey_refuses_is_an_error(tmp_path: Path) -> None:
    """An entry that was to be forgotten may still be there: the caller has to know."""
    with valkey(tmp_path) as server:
        async with running(server.port) as tier:
            await tier.until_open()
            server.run(("ACL", "SETUSER", "default", "-del"))

            with pytest.raises(Unavailable, match="Valkey did not delete: NOPERM"):
                await tier.tier.delete([a_key(1)])


async def test_a_delete_without_valkey_is_an_error() -> None:
    async with running(free_port()) as tier:
        await tier.tier.tried.wait()

        with pytest.raises(Unavailable, match="Valkey is not connected"):
            await tier.tier.delete([a_key(1)])


async def test_the_tier_stays_shut_until_shared_state_was_read(store: Valkey) -> None:
    """With a missed invalidation it would answer from entries that were withdrawn."""
    store.run(("SET", a_key(1), encode(a_key(1), an_entry(1))))
    async with running(store.port) as tier:
        tier.shared.refuses = True
        assert not tier.tier.tried.is_set()
        await tier.tier.tried.wait()
        shut, before = tier.tier.open, await tier.read(a_key(1))
        tier.tier.write(a_key(2), an_entry(2))
        problem = tier.tier.problem or ""

        tier.shared.refuses = False
        await tier.until_open()

        assert (shut, before) == (False, [None])
        assert "nothing can be shared" in problem
        assert await tier.read(a_key(1), a_key(2)) == [1, None]
        assert tier.tier.problem is None


async def test_an_open_tier_syncs_again_and_again(store: Valkey) -> None:
    async with running(store.port, poll_s=0.001) as tier:
        await tier.until(lambda: tier.shared.count >= 5)


async def test_a_sync_can_be_asked_for(tier: Tier) -> None:
    before = tier.shared.count

    tier.tier.resync()

    await tier.until(lambda: tier.shared.count == before + 1)


async def test_sharing_says_when_it_is_done_and_when_it_is_not(mortal: Valkey) -> None:
    async with running(mortal.port) as tier:
        await tier.until_open()
        before = tier.shared.count
        await tier.tier.share()
        assert tier.shared.count == before + 1

        mortal.kill()
        with pytest.raises(Unavailable, match="done on this node; Valkey and the other nodes"):
            await tier.tier.share()
        mortal.start()


async def test_a_lost_connection_shuts_the_tier_and_a_new_one_opens_it(mortal: Valkey) -> None:
    async with running(mortal.port) as tier:
        await tier.until_open()
        await tier.written(1)
        synced = tier.shared.count

        mortal.kill()
        await tier.until_shut()
        assert await tier.read(a_key(1)) == [None]
        assert tier.tier.problem is not None
        mortal.start()
        await tier.until_open()

        assert tier.shared.count > synced
        await tier.written(2)
        assert tier.failures("lost") >= 1


async def test_one_lost_connection_costs_one_pause_however_many_reads_it_carried(
    mortal: Valkey,
) -> None:
    """Each read in flight fails; counted one by one they would lengthen the pause to its cap."""
    pause_s = 1000.0
    async with running(mortal.port, breaker_open_s=pause_s) as tier:
        # Before its first success the breaker has not paused yet.
        await tier.until_open()
        mortal.pause()
        reads = [asyncio.create_task(tier.read(a_key(n))) for n in range(50)]
        await asyncio.sleep(0)

        mortal.kill()
        answers = await asyncio.gather(*reads)

        assert answers == [[None]] * 50
        assert tier.tier._breaker.retry_at <= time.monotonic() + pause_s
        assert tier.failures("lost") == 51


async def test_a_connection_lost_in_a_sync_costs_one_pause(mortal: Valkey) -> None:
    """The connection tells of its end, and so does the sync that waited for it."""
    async with running(mortal.port, breaker_open_s=1000.0) as tier:
        await tier.until_open()
        mortal.pause()
        tier.tier.resync()
        await tier.until(lambda: tier.in_sync)

        mortal.kill()
        await tier.until_shut()
        await tier.until(lambda: not tier.in_sync)
        await asyncio.sleep(0)  # the sync's failure reaches its caller

        assert tier.tier._breaker.openings == 1
        assert tier.failures("lost") == 1


async def test_a_server_that_hangs_shuts_the_tier_after_three_reads(mortal: Valkey) -> None:
    pause_s = 1000.0
    async with running(mortal.port, read_timeout_s=0.02, breaker_open_s=pause_s) as tier:
        await tier.until_open()

        mortal.pause()
        open_after = []
        for _ in range(3):
            assert await tier.read(a_key(1)) == [None]
            open_after.append(tier.tier.open)
        mortal.resume()

        assert open_after == [True, True, False]
        assert tier.failures("timeout") == 3
        assert tier.tier.problem == "reads time out"


async def test_reads_that_time_out_together_cost_one_pause(mortal: Valkey) -> None:
    pause_s = 1000.0
    async with running(mortal.port, read_timeout_s=0.02, breaker_open_s=pause_s) as tier:
        await tier.until_open()

        mortal.pause()
        for _ in range(TIMEOUTS_TO_OPEN):
            assert tier.tier.open
            await asyncio.gather(*(tier.read(a_key(n)) for n in range(50)))
        mortal.resume()

        assert not tier.tier.open
        assert tier.tier._breaker.retry_at <= time.monotonic() + pause_s


async def test_late_replies_reach_nobody_else(mortal: Valkey) -> None:
    """The first reads give up; what Valkey answers them later belongs to them alone."""
    async with running(mortal.port) as tier:
        await tier.until_open()
        for number in range(10):
            await tier.written(number)
        mortal.pause()
        gave_up = [asyncio.create_task(tier.read(a_key(n))) for n in range(5)]
        await asyncio.sleep(0)
        for task in gave_up:
            task.cancel()
        await asyncio.wait(gave_up)
        mortal.resume()

        assert await tier.read(*map(a_key, range(9, -1, -1))) == list(range(9, -1, -1))
        assert tier.tier.open


async def test_a_server_that_hung_is_used_again_when_it_goes_on(mortal: Valkey) -> None:
    async with running(mortal.port, read_timeout_s=0.02) as tier:
        await tier.until_open()
        mortal.pause()
        while tier.tier.open:
            await tier.read(a_key(1))

        mortal.resume()
        await tier.until_open()

        assert tier.tier.problem is None


async def test_pauses_grow_while_nobody_listens() -> None:
    async with running(free_port(), breaker_open_s=0.001) as tier:
        await tier.until(lambda: tier.failures("lost") >= 7)

        assert tier.tier._breaker.openings >= 7
        assert tier.tier._breaker.retry_at <= time.monotonic() + 0.001 * MAX_BACKOFF


async def test_writes_beyond_the_bound_are_dropped_and_counted(mortal: Valkey) -> None:
    async with running(mortal.port, write_queue_bytes=4096) as tier:
        await tier.until_open()

        mortal.pause()
        for number in range(1000):
            tier.tier.write(a_key(number), an_entry(number))
        dropped = tier.failures("write_dropped")
        mortal.resume()
        await tier.tier.delete([a_key(1)])

        (held,) = mortal.run(("DBSIZE",))
        assert isinstance(held, int)
        assert held + 1 + dropped == 1000
        assert 0 < held < 4096 // len(encode(a_key(0), an_entry(0)))
        assert tier.tier.open


async def test_writes_lost_with_the_connection_are_counted(mortal: Valkey) -> None:
    async with running(mortal.port) as tier:
        await tier.until_open()
        mortal.pause()
        for number in range(10):
            tier.tier.write(a_key(number), an_entry(number))

        mortal.kill()
        await tier.until_shut()

        await tier.until(lambda: tier.failures("write_dropped") == 10)
        tier.tier.write(a_key(1), an_entry(1))


async def test_what_valkey_holds_is_on_the_metrics(store: Valkey) -> None:
    store.run(("SET", "a", "b"))
    async with running(store.port) as tier:
        await tier.until_open()

        registry = tier.metrics.registry
        assert registry.get_sample_value("embedkeep_entries", {"tier": "valkey"}) == 1
        assert (registry.get_sample_value("embedkeep_bytes", {"tier": "valkey"}) or 0) > 100_000
        assert registry.get_sample_value("embedkeep_breaker_open", {"tier": "valkey"}) == 0
