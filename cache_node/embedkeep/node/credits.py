"""What warming has saved, told honestly: of each entry the first hit alone.

Whatever was warmed and is asked for ten times would have been computed at the first of them and
cached for the other nine, so warming avoids one computation at most. An entry that was warmed says
so in its header, and beside the tenant's history stands a set of those that nobody has asked for
yet. Whoever reads such an entry takes it out of the set; the one whose removal finds it there had
the first hit, on whichever node. All this happens after the answer. What is lost on the way is not
counted: what was saved is at least as much as is said.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from embedkeep.errors import Unavailable
from embedkeep.history import warmed_name
from embedkeep.keys import Key, tenant_tag_of
from embedkeep.node.metrics import Metrics
from embedkeep.node.tiers import Tier
from embedkeep.records import FLAG_WARMED, Entries

WRITE_S: Final = 2.0
"""Between two times that first hits are told to Valkey."""
MOST_WAITING: Final = 10_000
LIFE_S: Final = 7 * 86_400
"""How long a set is kept after something was warmed, seconds."""
MOST_MARKED: Final = 100_000
"""Of a tenant. Any of them goes for more."""
BATCH: Final = 500


class Credits:
    """First hits on what was warmed. `run` must run beside it."""

    def __init__(self, metrics: Metrics) -> None:
        self._hits = metrics.warmed_hits
        self._saved = metrics.warmed_saved
        self._waiting: dict[Key, int] = {}
        """Device time of each entry that was read, ns."""

    def note(self, keys: Sequence[Key], entries: Entries) -> None:
        """*entries* were read under *keys* for somebody. Does not wait."""
        for at in entries.marked(FLAG_WARMED):
            if len(self._waiting) < MOST_WAITING:
                self._waiting[keys[at]] = int(entries.facts["device_ns"][at])

    async def run(self, tier: Tier) -> None:
        """Tell *tier*, until cancelled."""
        while True:
            await asyncio.sleep(WRITE_S)
            await self.write(tier)

    async def write(self, tier: Tier) -> None:
        """Count those of the noted hits that were the first."""
        noted, self._waiting = self._waiting, {}
        tenants: dict[bytes, list[Key]] = {}
        for key in noted:
            tenants.setdefault(tenant_tag_of(key), []).append(key)
        for tag, keys in tenants.items():
            name = warmed_name(tag)
            for start in range(0, len(keys), BATCH):
                part = keys[start : start + BATCH]
                try:
                    replies = await tier.ask(name, [("SREM", name, key) for key in part])
                except Unavailable:
                    continue
                first = [key for key, reply in zip(part, replies, strict=True) if reply == 1]
                self._hits.inc(len(first))
                self._saved.inc(sum(noted[key] for key in first) / 1e9)


async def mark(keys: Sequence[Key], tag: bytes, tier: Tier) -> None:
    """Remember that *keys* of a tenant were warmed and not asked for yet.

    Raises:
        Unavailable: It may not be remembered.
    """
    if not keys:
        return
    name = warmed_name(tag)
    *_, count = await tier.ask(
        name, [("SADD", name, *keys), ("EXPIRE", name, LIFE_S), ("SCARD", name)]
    )
    if isinstance(count, int) and count > MOST_MARKED:
        await tier.ask(name, [("SPOP", name, count - MOST_MARKED)])
