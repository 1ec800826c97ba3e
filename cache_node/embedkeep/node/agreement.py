"""What the nodes of a cache agree on through Valkey: the space, and each tenant's epoch."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Final

import hiredis
import structlog

from embedkeep.errors import EmbedKeepError, InvalidResponse, Unavailable
from embedkeep.node.connection import Command, Reply
from embedkeep.node.embedders import Embedders
from embedkeep.node.space import Space, decode, drift, encode
from embedkeep.node.tenants import Partition, Tenants
from embedkeep.node.tiers import Run, Tier

LOOK_S: Final = 0.25
"""Between looks for an embedder while none answers, seconds."""
LOOK_AGAIN_S: Final = 5.0
"""Between looks at one that answers."""

_EPOCHS: Final = b"embedkeep:epochs"
_FORGOTTEN: Final = b"embedkeep:forgotten"
_MERGE: Final = """
for i = 1, #ARGV, 2 do
  local held = tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or '0')
  if tonumber(ARGV[i + 1]) > held then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
"""
"""Each tenant's number becomes the larger of Valkey's and ours. A Valkey that came back empty thus
learns them from its nodes."""

log = structlog.stdlib.get_logger()


class Agreement:
    """This node's view of what was agreed.

    Args:
        key: Where in Valkey the space stands.
        tenants: Whose epochs are kept.
        on_space: Called with each space that is adopted, the first or another.
        on_epoch: Called with each partition of which another node has forgotten something.
    """

    def __init__(
        self,
        *,
        key: bytes,
        tenants: Tenants,
        on_space: Callable[[Space], None],
        on_epoch: Callable[[Partition], None],
    ) -> None:
        self._key = key
        self._tenants = tenants
        self._on_space = on_space
        self._on_epoch = on_epoch
        self._record: bytes | None = None
        self._sure = False
        """The Valkey with the last word on the space has said it."""
        self.space: Space | None = None
        """What this node serves; None: nothing is known yet."""
        self.adopted = asyncio.Event()
        """Set once there is a space."""
        self.embedder_problem: str | None = "none was seen yet"
        """Why no embedder can be used; None: one can."""
        self.drifting = False
        """The last embedder that was compared computes something else."""

    async def sync(self, run: Run, here: Callable[[bytes], bytes] = bytes) -> str | None:
        """Merge epochs and settle the space, with what a Valkey holds.

        Reading goes first, so that one that takes no writes can still be believed.

        Args:
            here: The name of that Valkey's copy of what has this name. The one whose copy needs no
                other name has the last word on the space.

        Returns: Why the epochs could be read and not written. None: they could, or need not be.

        Raises:
            Unavailable: Valkey could not be read, or did not keep the space.
        """
        names, key = (here(_EPOCHS), here(_FORGOTTEN)), here(self._key)
        tags = [partition.tag.hex().encode() for partition in self._tenants.partitions]
        asked: list[Command] = [("HMGET", name, *tags) for name in names]
        *held, record = await run([*asked, ("GET", key)])
        theirs = [_numbers(numbers, len(tags)) for numbers in held]
        self._learn(*theirs)
        await self._settle(_record(record), run, key)
        # Only now: what was asked for while Valkey answered is told as well.
        ours = list(zip(*map(_times, self._tenants.partitions), strict=True))
        behind: list[Command] = [
            ("EVAL", _MERGE, 1, name, *chain(*zip(tags, mine, strict=True)))
            for name, mine, known in zip(names, ours, theirs, strict=True)
            if any(own > held for own, held in zip(mine, known, strict=True))
        ]
        for reply in await run(behind):
            if isinstance(reply, hiredis.HiredisError):
                return f"Valkey takes no writes: {reply}"
        return None

    async def follow_embedder(self, embedders: Embedders, tier: Tier | None) -> None:
        """Look for embedders until cancelled; the first one seen may set the space.

        What Valkey holds goes first: a new embedder is only believed once Valkey was tried.
        """
        while True:
            try:
                seen = await embedders.describe()
            except EmbedKeepError as error:
                self.embedder_problem = str(error)
                await asyncio.sleep(LOOK_S)
                continue
            if self.space is None:
                if tier is not None:
                    await tier.tried.wait()
                if self.space is None:
                    self._adopt(seen)
                if tier is not None:
                    tier.resync()
            self.note_drift(drift(self.space, seen) if self.space is not None else None)
            await asyncio.sleep(LOOK_AGAIN_S)

    def note_drift(self, why: str | None) -> None:
        """An embedder was compared with the space: why it is refused, or None."""
        if why is not None and why != self.embedder_problem:
            log.error("model drift", why=why)
        self.drifting = why is not None
        self.embedder_problem = why

    def _learn(self, epochs: Sequence[int], forgotten: Sequence[int]) -> None:
        for partition, epoch, when in zip(self._tenants.partitions, epochs, forgotten, strict=True):
            if partition.learn(epoch=epoch, forgotten=when):
                self._on_epoch(partition)

    async def _settle(self, record: bytes | None, run: Run, key: bytes) -> None:
        """Adopt what is agreed; agree on ours where nothing is."""
        if key != self._key:
            await self._settle_copy(record, run, key)
            return
        if record is not None and record == self._record:
            self._sure = True
            return
        try:
            agreed = decode(record) if record is not None else None
        except InvalidResponse as error:
            log.exception("agreement overwritten", why=str(error))
            agreed = None
        if agreed is None:
            if self.space is None:
                return
            ours = encode(self.space)
            # NX where nothing is: of two nodes that come at once, one wins and both hear it.
            write: Command = ("SET", self._key, ours) if record else ("SET", self._key, ours, "NX")
            _, reply = await run([write, ("GET", self._key)])
            if (record := _record(reply)) is None:
                raise Unavailable("Valkey did not keep the agreement")
            agreed = decode(record)
        self._record, self._sure = record, True
        if agreed != self.space:
            self._adopt(agreed)

    async def _settle_copy(self, record: bytes | None, run: Run, key: bytes) -> None:
        """Believe a copy while nothing else is known; else see that it says what we know."""
        if self.space is None:
            if record is not None:
                with contextlib.suppress(InvalidResponse):
                    self._adopt(decode(record))
                    self._record = record
            return
        ours = self._record or encode(self.space)
        if record is None or (self._sure and record != ours):
            await run([("SET", key, ours)])

    def _adopt(self, space: Space) -> None:
        log.info("space adopted", fingerprint=space.fingerprint, dimensions=space.dimensions)
        self.space = space
        self.adopted.set()
        self._on_space(space)


def _times(partition: Partition) -> tuple[int, int]:
    """What only grows."""
    return partition.epoch, partition.forgotten


def _numbers(reply: Reply, count: int) -> list[int]:
    """Numbers of a hash; 0: not in it."""
    if not isinstance(reply, list) or len(reply) != count:
        raise Unavailable(f"epochs cannot be read: {reply!r}")
    try:
        return [int(each) if isinstance(each, bytes) else 0 for each in reply]
    except ValueError as error:
        raise Unavailable(f"epochs cannot be read: {reply!r}") from error


def _record(reply: Reply) -> bytes | None:
    if isinstance(reply, hiredis.HiredisError) or not isinstance(reply, bytes | None):
        raise Unavailable(f"the agreement cannot be read: {reply!r}")
    return reply
