"""The Valkeys of a cluster as one tier: each key goes to the one that owns its slot.

Each Valkey keeps its own connections and its own breaker, so that a dead one shuts only itself.
Each also keeps a copy of what the nodes share, in a slot of its own, and opens only once that copy
was merged: whichever Valkeys a node can reach, it has heard what was forgotten in any of them. The
numbers in it only grow, so copies never conflict. A replica has its primary's copy, and no slot of
its own to keep one in; what all must know is known only once the replicas have it too, since each
of them may be a primary the next moment.

A redirection (MOVED, ASK) is a miss and never followed: it makes the node look anew who owns what.
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import structlog

from embedkeep import config
from embedkeep.config import Cluster, ValkeyTarget
from embedkeep.errors import InvalidResponse, Retryable, Unavailable
from embedkeep.keys import Key
from embedkeep.node.commands import Found, merged
from embedkeep.node.connection import Command, Reply
from embedkeep.node.metrics import Metrics
from embedkeep.node.slots import LOOK, SlotMap, View, read_view
from embedkeep.node.tier import Member, ValkeyTier
from embedkeep.node.tiers import Run
from embedkeep.records import Entry

DELETE_TRIES: Final = 3
"""Of keys whose slots move meanwhile; each looks anew who owns them."""

log = structlog.stdlib.get_logger()


class Copied(Protocol):
    """State that a cache's nodes share, with a copy in each Valkey."""

    async def sync(self, run: Run, here: Callable[[bytes], bytes]) -> str | None:
        """As `tier.Shared.sync`, of the copy whose names *here* makes."""


class Shards:
    """All Valkeys of a cluster. `run` must run beside it.

    Args:
        target: This node's own; its credentials and limits hold for all.
        cluster: Who the members are.
        shared: Synced with each before it opens and every *poll_s* after.
        metrics: Where failures are counted. Entries and bytes are the own Valkey's alone, so that
            they can be added up over nodes.
        poll_s: Between syncs, and between looks who owns what, seconds.
    """

    def __init__(
        self,
        target: ValkeyTarget,
        cluster: Cluster,
        *,
        shared: Copied,
        metrics: Metrics,
        poll_s: float,
    ) -> None:
        self._own = cluster.name
        self._names = tuple(member.name for member in cluster.members)
        self._views: dict[str, View] = {}
        self._map = SlotMap(self._names, ())
        self._tiers: dict[str, ValkeyTier] = {}
        for member in cluster.members:
            own = member.name == cluster.name
            self._tiers[member.name] = ValkeyTier(
                _target(target, member, own=own),
                shared=_Copy(member.name, cluster, shared=shared, of=self),
                metrics=metrics,
                poll_s=poll_s,
                member=Member.OWN if own else Member.OTHER,
            )
        self.tried = asyncio.Event()
        """Set once the first attempt to sync with each has ended, well or not."""

    @property
    def open(self) -> bool:
        """Entries of at least one are read and written."""
        return any(tier.open for tier in self._tiers.values())

    @property
    def left_alone(self) -> int:
        """How many are not asked now."""
        return sum(tier.left_alone for tier in self._tiers.values())

    @property
    def problem(self) -> str | None:
        """Which are shut, and why; None: none is."""
        shut = [f"{name}: {tier.problem}" for name, tier in self._tiers.items() if not tier.open]
        return f"{len(shut)} of {len(self._tiers)} shut: {'; '.join(shut)}" if shut else None

    def owner(self, key: Key) -> str | None:
        """The member beside the Valkey that holds *key*; None: nobody is known to."""
        return self._map.owner(key)

    async def run(self) -> None:
        """Keep all connected and in sync until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for name, tier in self._tiers.items():
                tasks.create_task(tier.run(), name=f"valkey {name}")
            await self.until_all_tried()
            self.tried.set()

    async def until_all_tried(self) -> None:
        """Wait until the first attempt to sync with each has ended, well or not."""
        for tier in self._tiers.values():
            await tier.tried.wait()

    def resync(self) -> None:
        """Sync with all now, but those whose breaker wants a pause."""
        for tier in self._tiers.values():
            tier.resync()

    async def read(
        self, keys: Sequence[Key], *, dimensions: int, timeout_s: float = math.inf
    ) -> Found:
        """As from one, from all shards at once."""
        asked = [
            (self._tiers[name], places)
            for name, places in self._split(keys).items()
            if name is not None and self._tiers[name].open
        ]
        reads = [
            tier.read([keys[at] for at in places], dimensions=dimensions, timeout_s=timeout_s)
            for tier, places in asked
        ]
        found = [await reads[0]] if len(reads) == 1 else await asyncio.gather(*reads)
        return merged([places for _, places in asked], found, dimensions=dimensions)

    def write(self, key: Key, entry: Entry) -> None:
        """Store soon. Dropped and counted where its Valkey is shut or too far behind."""
        if (name := self.owner(key)) is not None:
            self._tiers[name].write(key, entry)

    async def store(self, entries: Mapping[Key, Entry], *, overwrite: bool) -> int:
        """Store in all shards at once, and see it done: how many were.

        Raises:
            Unavailable: Not all are known to be stored.
            Overloaded: Too much is waiting for one; some may be stored.
        """
        parts: dict[str, dict[Key, Entry]] = {}
        for key, entry in entries.items():
            if (name := self.owner(key)) is None:
                raise Unavailable("no Valkey is known to hold the slot of one of these texts")
            parts.setdefault(name, {})[key] = entry
        ended = await asyncio.gather(
            *(self._tiers[name].store(part, overwrite=overwrite) for name, part in parts.items()),
            return_exceptions=True,
        )
        for error in _failed(dict(zip(parts, ended, strict=True))).values():
            raise error
        return sum(count for count in ended if isinstance(count, int))

    async def delete(self, keys: Sequence[Key]) -> None:
        """Delete *keys*, after all writes before it. All that can be deleted are.

        Raises:
            Unavailable: Of some it is not known to be done.
        """
        for _ in range(DELETE_TRIES - 1):
            known = self._map
            try:
                await self._delete(keys)
            except Unavailable:
                await self._look()
                if self._map is known:
                    raise
            else:
                return
        await self._delete(keys)

    async def ask(self, name: bytes, commands: Sequence[Command]) -> list[Reply]:
        """Run *commands* where *name* lies.

        Raises:
            Unavailable: Nobody is known to hold it, or not all are known to be carried out.
        """
        if (owner := self._map.owner(name)) is None:
            raise Unavailable("no Valkey is known to hold its slot")
        return await self._tiers[owner].ask(name, commands)

    def owns(self, key: bytes) -> bool:
        """The Valkey beside this node holds *key*, as far as is known."""
        return self._map.owner(key) == self._own

    async def settle(self) -> None:
        """Wait until all writes before it have ended, well or not."""
        await asyncio.gather(*(tier.settle() for tier in self._tiers.values()))

    async def share(self) -> None:
        """Sync with all now, and see it done.

        Raises:
            Unavailable: Some could not be told; they are as soon as they can be.
        """
        ended = await asyncio.gather(
            *(self._share(name) for name in self._tiers), return_exceptions=True
        )
        untold = _failed(dict(zip(self._tiers, ended, strict=True)))
        if untold:
            raise Unavailable(
                f"done on this node and in {len(ended) - len(untold)} of {len(ended)} Valkeys, "
                f"where the other nodes find it; not yet in that of {', '.join(untold)}, which is "
                "told when it is back",
                retry_after_s=1.0,
            ) from next(iter(untold.values()))
        replicas = sum(view.is_replica for view in self._views.values())
        copied = sum(count for count in ended if isinstance(count, int))
        if copied < replicas:
            raise Unavailable(
                f"done on this node and in all primaries, where the other nodes find it; not yet"
                f" in {replicas - copied} of {replicas} replicas, which may take over without it",
                retry_after_s=1.0,
            )

    async def _share(self, name: str) -> int:
        """Sync with one now; how many replicas of it have seen it too."""
        await self._tiers[name].share()
        return await self._tiers[name].copied(self._views[name].replicas)

    def learn(self, view: View) -> None:
        """A Valkey has told who owns what."""
        known = self._views.pop(view.teller, None)
        self._views[view.teller] = view  # the newest last
        if view == known:
            return
        self._map = SlotMap(self._names, self._views.values())
        log.info("slots", told_by=view.teller, own=len(view.own))
        if view.strangers:
            log.warning("slots of a Valkey that is beside no member", of=sorted(view.strangers))

    def merged(self, name: str) -> None:
        """What the Valkey beside *name* holds was merged: nobody need wait for it any more."""
        self._tiers[name].tried.set()

    def _split(self, keys: Sequence[Key]) -> dict[str | None, list[int]]:
        """Positions in *keys* by who holds them."""
        parts: dict[str | None, list[int]] = {}
        owner = self._map.owner
        for place, key in enumerate(keys):
            parts.setdefault(owner(key), []).append(place)
        return parts

    async def _delete(self, keys: Sequence[Key]) -> None:
        parts = self._split(keys)
        unowned = len(parts.pop(None, ()))
        ended = await asyncio.gather(
            *(
                self._tiers[name].delete([keys[place] for place in places])
                for name, places in parts.items()
                if name is not None
            ),
            return_exceptions=True,
        )
        failed = _failed(dict(zip(map(str, parts), ended, strict=True)))
        if failed:
            raise Unavailable("; ".join(f"{name}: {error}" for name, error in failed.items()))
        if unowned:
            raise Unavailable(f"no Valkey is known to hold the slots of {unowned} of these texts")

    async def _look(self) -> None:
        """Look anew who owns what."""
        await asyncio.gather(
            *(tier.share() for tier in self._tiers.values() if tier.open), return_exceptions=True
        )


class _Copy:
    """What the nodes share, as one Valkey of a cluster keeps it."""

    def __init__(self, name: str, cluster: Cluster, *, shared: Copied, of: Shards) -> None:
        self._name = name
        self._members = cluster.members
        self._shared = shared
        self._shards = of

    async def sync(self, run: Run) -> str | None:
        """Look who owns what, merge this Valkey's copy, and wait until all others were asked once.

        The wait is for a node that has just started: where slots have moved, one Valkey's copy may
        be new and say little yet. What it does not say, those whose slots it took over do.
        """
        view = await self._look(run)
        try:
            untold = await self._merge(view, run)
        except Unavailable:
            if (now := await self._look(run)) == view:
                raise
            untold = await self._merge(now, run)  # a slot that held it has moved meanwhile
        self._shards.merged(self._name)
        await self._shards.until_all_tried()
        return untold

    async def _merge(self, view: View, run: Run) -> str | None:
        def here(name: bytes) -> bytes:
            if (copy := view.name_here(name)) is None:
                raise Unavailable(f"none of its {len(view.own)} slots takes what the nodes share")
            return copy

        # Nothing is stored where no slot is owned: not what the nodes share, and no entry either.
        return await self._shared.sync(run, here) if view.own else None

    async def _look(self, run: Run) -> View:
        replies = await run(LOOK)
        try:
            view = read_view(replies, teller=self._name, members=self._members)
        except InvalidResponse as error:
            raise Unavailable(f"it tells no slots: {error}") from error
        self._shards.learn(view)
        return view


def _target(own_target: ValkeyTarget, member: config.Member, *, own: bool) -> ValkeyTarget:
    """How the Valkey beside *member* is reached. Its certificate carries the name it announces."""
    target = own_target
    if not own:
        there = {"host": member.valkey_host, "port": member.valkey_port}
        target = target.model_copy(update=there)
    if target.tls is not None and target.tls.server_name is None:
        named = target.tls.model_copy(update={"server_name": member.valkey_host})
        target = target.model_copy(update={"tls": named})
    return target


def _failed(ended: Mapping[str, object]) -> dict[str, BaseException]:
    """Those that ended with an error of ours, by name; bugs and cancellations are raised."""
    failed = {name: error for name, error in ended.items() if isinstance(error, BaseException)}
    for error in failed.values():
        if not isinstance(error, Retryable):
            raise error
    return failed
