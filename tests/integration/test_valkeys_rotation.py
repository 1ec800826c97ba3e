"""Another password for real Valkeys with replicas, while a node reads from them all the time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from embedkeep.config import Cluster, Member, ValkeyTarget
from embedkeep.keys import KEY_BYTES, Key
from embedkeep.node.metrics import Metrics
from embedkeep.node.shards import Shards
from embedkeep_operator.forming import lead_on
from embedkeep_operator.rotation import Access, digest, next_lines, renewals
from embedkeep_operator.valkeys import Valkeys
from support.formed import PASSWORD, Formed, formed
from support.node import until
from support.tier import DIMENSIONS, Unshared, an_entry

pytestmark = pytest.mark.timeout(120)

NEW = "an0ther"
KEYS = [Key(bytes([number]) * KEY_BYTES) for number in range(1, 41)]
OLD_AGE_S = 9e9


class Reader:
    """A node's way to all Valkeys."""

    def __init__(self, made: Formed, password_file: Path) -> None:
        members = tuple(
            Member(name=name, address="-", valkey_host="127.0.0.1", valkey_port=valkey.port)
            for name, valkey in made.valkeys.items()
        )
        self.metrics = Metrics()
        self.shards = Shards(
            ValkeyTarget(
                port=members[0].valkey_port, password_file=password_file, read_timeout_s=5.0
            ),
            Cluster(name="valkey-0", members=members),
            shared=Unshared(),
            metrics=self.metrics,
            poll_s=0.1,
        )

    async def has_all(self) -> bool:
        """It reaches all Valkeys, and finds every key."""
        if self.shards.problem is not None:
            return False
        found = await self.shards.read(KEYS, dimensions=DIMENSIONS)
        return len(dict(found.items())) == len(KEYS)

    def failures(self) -> float:
        return sum(
            sample.value
            for family in self.metrics.registry.collect()
            if family.name == "embedkeep_valkey_failures"
            for sample in family.samples
            if sample.name.endswith("_total")
        )


@asynccontextmanager
async def reading(made: Formed, *lines: str, folder: Path) -> AsyncIterator[Reader]:
    """One that has read a file with these lines."""
    file = folder / f"passwords-{'-'.join(lines)}"
    file.write_text("\n".join(lines))
    reader = Reader(made, file)
    task = asyncio.create_task(reader.shards.run())
    try:
        await until(reader.has_all)
        yield reader
    finally:
        task.cancel()
        await asyncio.wait([task])


async def renewed(made: Formed, lines: list[str]) -> dict[str, Access]:
    """Look and tell until there is nothing left to be told."""
    while True:
        led = await lead_on(made.wanted, *lines)
        assert led.detail == ""
        async with Valkeys(made.wanted, *lines) as valkeys:
            seen = await valkeys.look_at_access()
        if not renewals(lines, seen, missing=0):
            return seen


async def test_no_read_fails_while_the_password_is_rotated(tmp_path: Path) -> None:
    """By nodes that were started before, meanwhile and after, with what they have mounted then."""
    async with formed(tmp_path, shards=2, replicas=1, forming=False) as made:
        made.forming.start()
        await made.until(lambda: made.forming.whole)
        await made.forming.stop()  # it knows the old password alone
        await stored(made, tmp_path)
        async with reading(made, PASSWORD, folder=tmp_path) as before:
            began = before.failures()
            ended = asyncio.Event()
            load = asyncio.create_task(always(before, ended))
            lines = [PASSWORD]
            for expected in ([PASSWORD, NEW], [NEW, PASSWORD], [NEW]):
                last, seen = lines, await renewed(made, lines)
                lines = [*next_lines(lines, NEW, seen, age_s=OLD_AGE_S, missing=0)]
                assert lines == expected
                await renewed(made, lines)
                for mounted in (last, lines):
                    async with reading(made, *mounted, folder=tmp_path) as meanwhile:
                        assert meanwhile.failures() == 0
            ended.set()
            assert await load > 5, "reads went on all the time"
            assert before.failures() == began

        assert lines == [NEW]
        seen = await renewed(made, lines)
        assert {access.allowed for access in seen.values()} == {frozenset({digest(NEW)})}
        assert {access.shown for access in seen.values()} == {NEW}


async def stored(made: Formed, folder: Path) -> None:
    (folder / "first").write_text(PASSWORD)
    reader = Reader(made, folder / "first")
    task = asyncio.create_task(reader.shards.run())

    async def is_open() -> bool:
        return reader.shards.problem is None

    await until(is_open)
    await reader.shards.store({key: an_entry(1) for key in KEYS}, overwrite=True)
    task.cancel()
    await asyncio.wait([task])


async def always(reader: Reader, ended: asyncio.Event) -> int:
    """Read all the time: how often."""
    count = 0
    while not ended.is_set():
        assert await reader.has_all()
        count += 1
        await asyncio.sleep(0.002)
    return count
