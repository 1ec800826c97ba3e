"""L1 as requests use it: of one space, and never what tenant or model have moved on from."""

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet

from embedkeep.config import NodeConfig
from embedkeep.keys import Key
from embedkeep.node.arena import Arena
from embedkeep.node.exchange import Asked
from embedkeep.node.keytable import Slots
from embedkeep.node.metrics import Metrics
from embedkeep.node.space import Space
from embedkeep.node.tenants import Tenants
from embedkeep.records import Entries, Entry


class Memory:
    """The arena of the space that is served; empty before there is one.

    Args:
        clock_ms: Unix time, ms; entries whose life is over are dropped by it.
    """

    def __init__(
        self,
        *,
        tenants: Tenants,
        metrics: Metrics,
        config: NodeConfig,
        clock_ms: Callable[[], int],
    ) -> None:
        self.space: Space | None = None
        """Which model's vectors are held; None: none was agreed yet."""
        self._nbytes = config.l1_bytes
        self._ttl_s = config.valkey.ttl_s if config.valkey is not None else None
        self._tags = [partition.tag for partition in tenants.partitions]
        self._clock_ms = clock_ms
        self._evictions = metrics.evictions.labels("l1")
        self._arena = Arena(nbytes=0, dimensions=0, tenants=self._tags)
        metrics.entries.labels("l1").set_function(lambda: len(self._arena))
        metrics.bytes.labels("l1").set_function(lambda: len(self._arena) * self._arena.slot_bytes)

    def adopt(self, space: Space) -> None:
        """Hold *space* from now on, and nothing of another."""
        self.space = space
        self._arena = Arena(
            nbytes=self._nbytes,
            dimensions=space.dimensions,
            tenants=self._tags,
            ttl_s=self._ttl_s,
        )

    def __contains__(self, key: Key) -> bool:
        """It is held; no hit is counted."""
        return key in self._arena

    def find(self, keys: Sequence[Key]) -> Slots:
        """Slot of each key, or MISSING; counts as a hit. Good until anything is kept."""
        return self._arena.find(keys, now_s=self._clock_ms() // 1000)

    def read(self, slots: Slots) -> Entries:
        """A copy of what lies in *slots*."""
        return self._arena.read(slots)

    def keep(self, key: Key, entry: Entry, asked: Asked) -> bool:
        """Keep *entry*, unless tenant or model have moved on; whether they have not."""
        if not self._is_current(asked):
            return False
        self.put(key, entry, asked.tenant.tag)
        return True

    def keep_all(
        self, keys: Sequence[Key], entries: Entries, asked: Asked, *, but: AbstractSet[Key]
    ) -> None:
        """As `keep`, all *but* these."""
        if not self._is_current(asked):
            return
        if but:
            kept = [at for at, key in enumerate(keys) if key not in but]
            keys, entries = [keys[at] for at in kept], entries.take(kept)
        before = self._arena.evictions
        self._arena.put_all(keys, entries, asked.tenant.tag)
        self._evictions.inc(self._arena.evictions - before)

    def put(self, key: Key, entry: Entry, tenant: bytes) -> None:
        """Keep what was brought for the present space, by a tenant with this tag."""
        before = self._arena.evictions
        self._arena.put(key, entry, tenant)
        self._evictions.inc(self._arena.evictions - before)

    def drop(self, keys: Iterable[Key]) -> None:
        """Forget these."""
        for key in keys:
            self._arena.remove(key)

    def drop_tenant(self, tag: bytes) -> None:
        """Forget all of one tenant."""
        self._arena.remove_tenant(tag)

    def _is_current(self, asked: Asked) -> bool:
        """Neither tenant nor model have moved on."""
        return asked.tenant.epoch == asked.epoch and self.space is asked.space
