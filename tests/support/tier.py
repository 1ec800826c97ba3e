"""A tier that runs without a node, with what it counts."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np

from embedkeep.config import ValkeyTarget
from embedkeep.errors import Unavailable
from embedkeep.keys import KEY_BYTES, Key
from embedkeep.node.metrics import Metrics
from embedkeep.node.tier import ValkeyTier
from embedkeep.node.tiers import Run
from embedkeep.records import Entry

WAIT_S = 30.0
"""For what must happen; a test that needs it all has failed."""

DIMENSIONS = 4


class Synced:
    """State shared through Valkey: here only whether Valkey was asked, and may be believed."""

    def __init__(self) -> None:
        self.count = 0
        self.running = False
        self.refuses = False

    async def sync(self, run: Run) -> str | None:
        self.running = True
        try:
            (reply,) = await run([("PING",)])
        finally:
            self.running = False
        if self.refuses or reply != b"PONG":
            raise Unavailable(f"nothing can be shared: {reply!r}")
        self.count += 1
        return None


class Unshared:
    """Nothing is shared through a cluster's Valkeys: they are only asked whether they are there."""

    async def sync(self, run: Run, here: Callable[[bytes], bytes]) -> str | None:
        del here
        await run([("PING",)])
        return None


class Tier:
    """A tier that runs, with what it counts."""

    def __init__(self, target: ValkeyTarget, *, poll_s: float) -> None:
        self.shared = Synced()
        self.metrics = Metrics()
        self.tier = ValkeyTier(target, shared=self.shared, metrics=self.metrics, poll_s=poll_s)

    async def read(self, *keys: Key) -> list[int | None]:
        """The numbers of the entries under *keys*."""
        found = dict((await self.tier.read(keys, dimensions=DIMENSIONS)).items())
        return [found[at].tokens if at in found else None for at in range(len(keys))]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what the tier tells nobody."""
        async with asyncio.timeout(WAIT_S):
            while True:
                if condition():
                    return
                await asyncio.sleep(0.002)

    @property
    def in_sync(self) -> bool:
        """It waits for a sync to end."""
        return self.shared.running

    async def until_open(self) -> None:
        await self.until(lambda: self.tier.open)

    async def until_shut(self) -> None:
        await self.until(lambda: not self.tier.open)

    async def written(self, number: int) -> None:
        """Write an entry, and see it arrive."""
        self.tier.write(a_key(number), an_entry(number))
        async with asyncio.timeout(WAIT_S):
            while True:
                if await self.read(a_key(number)) == [number]:
                    return
                await asyncio.sleep(0.002)

    def failures(self, kind: str) -> float:
        return self._sample("embedkeep_valkey_failures_total", kind=kind)

    def corrupt(self) -> float:
        return self._sample("embedkeep_corrupt_records_total")

    def _sample(self, name: str, **labels: str) -> float:
        value = self.metrics.registry.get_sample_value(name, labels)
        assert value is not None
        return value


def a_key(number: int) -> Key:
    return Key(number.to_bytes(KEY_BYTES, "big"))


def an_entry(number: int) -> Entry:
    return Entry(
        vector=np.full(DIMENSIONS, number, np.float32), tokens=number, truncated=False, device_ns=0
    )


@asynccontextmanager
async def running(port: int, *, poll_s: float = WAIT_S, **fields: object) -> AsyncIterator[Tier]:
    """A tier while the block runs, and see it end."""
    # Much longer than any healthy read takes on a busy machine.
    slow = {"port": port, "read_timeout_s": 5.0, "breaker_open_s": 0.05}
    made = Tier(ValkeyTarget.model_validate(slow | fields), poll_s=poll_s)
    task = asyncio.create_task(made.tier.run(), name="tier")
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
