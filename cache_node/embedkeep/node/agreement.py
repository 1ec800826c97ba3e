"""What the nodes of a cache agree on through Valkey: the space, and each tenant's epoch."""

import asyncio
from collections.abc import Callable
from typing import Final

import hiredis
import structlog

from embedkeep.errors import EmbedKeepError, InvalidResponse, Unavailable
from embedkeep.node.connection import Command, Reply
from embedkeep.node.embedders import Embedders
from embedkeep.node.space import Space, decode, drift, encode
from embedkeep.node.tenants import Partition, Tenants
from embedkeep.node.tier import Run, ValkeyTier

LOOK_S: Final = 0.25
"""Between looks for an embedder while none answers, seconds."""
LOOK_AGAIN_S: Final = 5.0
"""Between looks at one that answers."""

_EPOCHS: Final = b"embedkeep:epochs"
_FORGOTTEN: Final = b"embedkeep:forgotten"
_MERGE: Final = """
local merged = {}
for i = 1, #ARGV, 2 do
  local held = tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or '0')
  local ours = tonumber(ARGV[i + 1])
  if ours > held then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
    held = ours
  end
  merged[#merged + 1] = held
end
return merged
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
        self.space: Space | None = None
        """What this node serves; None: nothing is known yet."""
        self.adopted = asyncio.Event()
        """Set once there is a space."""
        self.embedder_problem: str | None = "none was seen yet"
        """Why no embedder can be used; None: one can."""
        self.drifting = False
        """The last embedder that was compared computes something else."""

    async def sync(self, run: Run) -> None:
        """Merge epochs and settle the space, with what Valkey holds.

        Raises:
            Unavailable: Valkey could not be read or written.
        """
        epochs, forgotten, record = await run(
            [
                self._merge(_EPOCHS, lambda partition: partition.epoch),
                self._merge(_FORGOTTEN, lambda partition: partition.forgotten),
                ("GET", self._key),
            ]
        )
        partitions = self._tenants.partitions
        for partition, epoch, when in zip(
            partitions, _numbers(epochs), _numbers(forgotten), strict=True
        ):
            if epoch > partition.epoch or when > partition.forgotten:
                partition.epoch = max(epoch, partition.epoch)
                partition.forgotten = max(when, partition.forgotten)
                self._on_epoch(partition)
        await self._settle(_record(record), run)

    async def follow_embedder(self, embedders: Embedders, tier: ValkeyTier | None) -> None:
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

    def _merge(self, name: bytes, number: Callable[[Partition], int]) -> Command:
        ours = [
            part
            for partition in self._tenants.partitions
            for part in (partition.tag.hex().encode(), number(partition))
        ]
        return ("EVAL", _MERGE, 1, name, *ours)

    async def _settle(self, record: bytes | None, run: Run) -> None:
        """Adopt what is agreed; agree on ours where nothing is."""
        if record is not None and record == self._record:
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
        self._record = record
        if agreed != self.space:
            self._adopt(agreed)

    def _adopt(self, space: Space) -> None:
        log.info("space adopted", fingerprint=space.fingerprint, dimensions=space.dimensions)
        self.space = space
        self.adopted.set()
        self._on_space(space)


def _numbers(reply: Reply) -> list[int]:
    if not isinstance(reply, list):
        raise Unavailable(f"epochs cannot be merged: {reply!r}")
    return [number for number in reply if isinstance(number, int)]


def _record(reply: Reply) -> bytes | None:
    if isinstance(reply, hiredis.HiredisError) or not isinstance(reply, bytes | None):
        raise Unavailable(f"the agreement cannot be read: {reply!r}")
    return reply
