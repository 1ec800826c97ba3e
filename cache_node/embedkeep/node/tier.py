"""Valkey as a tier: a failed read is a miss, a write that cannot wait is dropped.

The tier opens only after the shared state was read: with a missed invalidation it would answer
from entries that a tenant has withdrawn. It shuts on failure, and each reopening reads again.
Reads and writes have a connection each, so that a burst of writes does not delay a read.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import hiredis
import structlog

from embedkeep.config import ValkeyTarget
from embedkeep.errors import InvalidConfig, Overloaded, Unavailable
from embedkeep.keys import Key
from embedkeep.node.breaker import Breaker
from embedkeep.node.commands import (
    Found,
    info,
    is_across,
    is_elsewhere,
    parts,
    read_replies,
    reads,
    set_command,
)
from embedkeep.node.connection import (
    Command,
    Connection,
    Reply,
    connect,
    in_time,
    read_address,
)
from embedkeep.node.metrics import Metrics
from embedkeep.node.tiers import Shared
from embedkeep.records import Entry

STALL_S: Final = 1.0
"""Without any reply for so long, a connection is dropped."""
SYNC_TIMEOUT_S: Final = 2.0
COPY_S: Final = 0.5
"""Longest wait until replicas have what was written, seconds; writes behind it wait too."""
LOOK_AGAIN_S: Final = 0.05
"""Shortest time between two syncs that redirected commands ask for."""
READ_QUEUE_BYTES: Final = 16 << 20
CONTROL_QUEUE_BYTES: Final = 1 << 20
"""Room for syncs and deletes behind a full queue of writes: else a burst would shut the tier."""

log = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class _Links:
    reads: Connection
    writes: Connection

    def close(self) -> None:
        self.reads.close()
        self.writes.close()


class Member(Enum):
    """Which member of a cluster a Valkey is."""

    NONE = auto()
    """It stands alone: one command may name keys of all slots."""
    OWN = auto()
    """The one beside this node, whose entries, bytes and evictions it tells."""
    OTHER = auto()


class ValkeyTier:
    """One Valkey. `run` must run beside it; until its first sync the tier is shut.

    Args:
        target: Where, and with which limits.
        shared: Synced before the tier opens and every *poll_s* after.
        metrics: Where failures are counted.
        poll_s: Between syncs, seconds.
        member: Of a cluster.
    """

    def __init__(
        self,
        target: ValkeyTarget,
        *,
        shared: Shared,
        metrics: Metrics,
        poll_s: float,
        member: Member = Member.NONE,
    ) -> None:
        self._target = target
        self._shared = shared
        self._metrics = metrics
        self._poll_s = poll_s
        self._measured = member is not Member.OTHER
        self._together = member is Member.NONE
        self._synced_at = -math.inf
        self._breaker = Breaker(pause_s=target.breaker_open_s)
        self._links: _Links | None = None
        self._wake = asyncio.Event()
        self._evicted = 0
        self._named = "valkey"
        """As which tier it is measured."""
        self.tried = asyncio.Event()
        """Set once the first attempt to sync has ended, well or not."""
        self.problem: str | None = "not connected yet"
        """Why the tier is shut; None while it is open."""

    @property
    def open(self) -> bool:
        """Entries are read and written."""
        return self._breaker.closed

    @property
    def left_alone(self) -> int:
        """1 while it is shut."""
        return int(not self.open)

    async def run(self) -> None:
        """Keep the tier connected and in sync until cancelled."""
        try:
            while True:
                await self._attempt()
                self.tried.set()
                await self._pause()
        finally:
            self._drop()

    def resync(self) -> None:
        """Sync now, unless the breaker wants a pause."""
        self._wake.set()

    async def read(
        self, keys: Sequence[Key], *, dimensions: int, timeout_s: float = math.inf
    ) -> Found:
        """Which of *keys* are there, can be read, and came in time.

        Args:
            timeout_s: What the caller has left; only the tier's own timeout counts as its failure.
        """
        links = self._links
        if not self.open or links is None or not keys:
            return Found.nothing(dimensions=dimensions)
        began, started = time.monotonic(), time.perf_counter()
        own_s = self._target.read_timeout_s
        try:
            asked = links.reads.send(*reads(keys, together=self._together))
        except Unavailable:
            # This node asks for more than Valkey has answered yet; that is no failure of Valkey.
            self._metrics.valkey_failures.labels("read_skipped").inc()
            return Found.nothing(dimensions=dimensions)
        try:
            replies = await in_time(asked, min(own_s, timeout_s))
        except TimeoutError:
            if timeout_s >= own_s:
                self._read_timed_out(links, began)
            return Found.nothing(dimensions=dimensions)
        except Unavailable:
            self._metrics.valkey_failures.labels("lost").inc()  # `_lost` has shut the tier
            return Found.nothing(dimensions=dimensions)
        self._breaker = self._breaker.success() if self._breaker.closed else self._breaker
        self._metrics.valkey_seconds.observe(time.perf_counter() - started)
        ttl_s = self._target.ttl_s
        # Some may have been stored when entries were allowed to live longer than now.
        oldest_s = time.time() - ttl_s if ttl_s is not None else 0
        read = read_replies(keys, replies, dimensions=dimensions, oldest_s=oldest_s)
        for error in read.errors:
            self._count_error(error)
        for key, why in read.corrupt:
            self._metrics.corrupt.inc()
            log.warning("corrupt record", key=key.hex(), why=why)
        return read.found

    def write(self, key: Key, entry: Entry) -> None:
        """Store soon. Dropped and counted where Valkey is shut or too far behind."""
        links = self._links
        if not self.open or links is None:
            return
        if links.writes.waiting_bytes + entry.nbytes > self._target.write_queue_bytes:
            self._metrics.valkey_failures.labels("write_dropped").inc()
            return
        try:
            done = links.writes.pipeline([set_command(key, entry, ttl_s=self._target.ttl_s)])
        except Unavailable:
            self._metrics.valkey_failures.labels("write_dropped").inc()
            return
        done.add_done_callback(self._written)

    async def store(self, entries: Mapping[Key, Entry], *, overwrite: bool) -> int:
        """Store, and see it done: unlike `write`, this loses nothing without saying so.

        Takes at most half of the queue, so that what was computed now still finds room in it.

        Returns:
            How many were stored; without *overwrite*, keys that are there already are left alone.

        Raises:
            Unavailable: Not all are known to be stored.
            Overloaded: Too much is waiting for Valkey; some may be stored.
        """
        stored = 0
        for part in parts(entries):
            links = self._links
            if not self.open or links is None:
                raise Unavailable(f"Valkey is shut: {self.problem}", retry_after_s=1.0)
            if 2 * links.writes.waiting_bytes > self._target.write_queue_bytes:
                raise Overloaded("too much is waiting for Valkey", retry_after_s=0.25)
            condition = () if overwrite else ("NX",)
            ttl_s = self._target.ttl_s
            replies = await self._run(
                [(*set_command(key, part[key], ttl_s=ttl_s), *condition) for key in part]
            )
            for reply in replies:
                if isinstance(reply, hiredis.HiredisError):
                    self._count_error(reply)
                    raise Unavailable(f"Valkey did not store: {reply}", retry_after_s=1.0)
            stored += sum(reply is not None for reply in replies)
        return stored

    async def delete(self, keys: Sequence[Key]) -> None:
        """Delete *keys*, after all writes before it.

        Raises:
            Unavailable: Not known to be done.
        """
        # One by one: keys of several slots are refused in one command by a member of a cluster.
        for reply in await self._run([("DEL", key) for key in keys]):
            if isinstance(reply, hiredis.HiredisError):
                if is_elsewhere(reply):
                    self._look_again()
                raise Unavailable(f"Valkey did not delete: {reply}")

    async def ask(self, name: bytes, commands: Sequence[Command]) -> list[Reply]:
        """Run *commands*, while the tier is open; *name* is somewhere in it.

        Raises:
            Unavailable: Not all are known to be carried out.
        """
        del name
        if not self.open:
            raise Unavailable(f"Valkey is shut: {self.problem}")
        replies = await self._run(commands)
        for reply in replies:
            if isinstance(reply, hiredis.HiredisError):
                if is_elsewhere(reply):
                    self._look_again()
                raise Unavailable(f"Valkey did not do it: {reply}")
        return replies

    def owns(self, key: bytes) -> bool:
        """It is the only one."""
        del key
        return True

    async def settle(self) -> None:
        """Wait until all writes before it have ended, well or not."""
        with contextlib.suppress(Unavailable):
            await self._run([("PING",)])

    async def share(self) -> None:
        """Sync now, and see it done.

        Raises:
            Unavailable: Valkey could not be reached; it is told as soon as it can be.
        """
        why: object
        try:
            why = await self._shared.sync(self._run)
        except Unavailable as error:
            why = error
        if why is not None:
            self.resync()
            raise Unavailable(
                f"done on this node; Valkey and the other nodes follow when it is back: {why}",
                retry_after_s=1.0,
            )

    async def copied(self, replicas: int) -> int:
        """How many of so many replicas have all that was written before.

        Raises:
            Unavailable: It cannot be asked.
        """
        if not replicas:
            return 0
        (reply,) = await self._run([("WAIT", replicas, int(COPY_S * 1000))])
        return reply if isinstance(reply, int) else 0

    async def _run(self, commands: Sequence[Command]) -> list[Reply]:
        if (links := self._links) is None:
            raise Unavailable(f"Valkey is not connected: {self.problem}")
        try:
            async with asyncio.timeout(SYNC_TIMEOUT_S):
                return await links.writes.pipeline(commands)
        except TimeoutError as error:
            raise Unavailable(f"Valkey did not answer within {SYNC_TIMEOUT_S:g} s") from error

    async def _attempt(self) -> None:
        """Connect where needed, sync, and open or shut accordingly."""
        links = self._links
        try:
            if links is None:
                links = self._links = await self._connect()
            await self._shared.sync(self._run)
            self._synced_at = time.monotonic()
            if self._measured:
                await self._measure()
        except Unavailable as error:
            if self._links is links:  # else `_lost` has seen to it
                self._fail("lost", self._breaker.open(time.monotonic()), str(error))
            return
        if self._links is not links:
            return
        if not self.open:
            log.info("valkey tier open", valkey=f"{self._target.host}:{self._target.port}")
        self._breaker = self._breaker.close() if not self.open else self._breaker
        self.problem = None

    async def _pause(self) -> None:
        wait_s = self._poll_s if self.open else self._breaker.retry_at - time.monotonic()
        try:
            async with asyncio.timeout(max(wait_s, 0)):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()
        if not self.open:
            await asyncio.sleep(max(self._breaker.retry_at - time.monotonic(), 0))

    async def _connect(self) -> _Links:
        try:
            address = read_address(self._target)
        except InvalidConfig as error:
            # The owner has seen the files whole at its start: they are being replaced.
            raise Unavailable(str(error)) from error
        reads = await connect(
            address, on_lost=self._lost, stall_s=STALL_S, max_waiting_bytes=READ_QUEUE_BYTES
        )
        try:
            writes = await connect(
                address,
                on_lost=self._lost,
                stall_s=SYNC_TIMEOUT_S,
                max_waiting_bytes=self._target.write_queue_bytes + CONTROL_QUEUE_BYTES,
            )
        except BaseException:
            reads.close()
            raise
        return _Links(reads, writes)

    async def _measure(self) -> None:
        """Entries, bytes and evictions, as Valkey says; a replica's are told apart."""
        size, memory, stats, role = await self._run(
            [("DBSIZE",), ("INFO", "memory"), ("INFO", "stats"), ("ROLE",)]
        )
        gauges = self._metrics
        name = "replica" if isinstance(role, list) and role[0] == b"slave" else "valkey"
        gauges.replica.set(name == "replica")
        if name != self._named:
            for gauge in (gauges.entries, gauges.bytes):
                gauge.labels(self._named).set(0)
            self._named = name
        if isinstance(size, int):
            gauges.entries.labels(name).set(size)
        if isinstance(memory, bytes):
            gauges.bytes.labels(name).set(info(memory, b"used_memory"))
        if isinstance(stats, bytes):
            evicted = info(stats, b"evicted_keys")
            # A restarted server counts from 0 again.
            gauges.evictions.labels("valkey").inc(max(evicted - self._evicted, 0))
            self._evicted = evicted

    def _written(self, done: asyncio.Future[list[Reply]]) -> None:
        if done.cancelled() or done.exception() is not None:
            self._metrics.valkey_failures.labels("write_dropped").inc()
        elif isinstance(reply := done.result()[0], hiredis.HiredisError):
            self._count_error(reply)

    def _count_error(self, reply: Reply) -> None:
        if is_across(reply):
            self._together = False  # it is a member of a cluster after all
        elsewhere = is_elsewhere(reply)
        self._metrics.valkey_failures.labels("moved" if elsewhere else "error").inc()
        if elsewhere:
            self._look_again()

    def _look_again(self) -> None:
        """Slots are another's by now: sync, which looks whose, unless that was done just now."""
        if time.monotonic() - self._synced_at > LOOK_AGAIN_S:
            self.resync()

    def _read_timed_out(self, links: _Links, began: float) -> None:
        """Count a read that was given up; several in a row shut the tier."""
        if links is not self._links:
            # The tier was shut for it already: the others must not lengthen the pause.
            self._metrics.valkey_failures.labels("timeout").inc()
            return
        breaker = self._breaker.timeout(time.monotonic(), began=began)
        self._fail("timeout", breaker, "reads time out")

    def _lost(self) -> None:
        """A connection ended; both go, so that writes and deletes stay in one order."""
        if self._links is not None:
            self._fail("lost", self._breaker.open(time.monotonic()), "the connection was lost")

    def _fail(self, kind: str, breaker: Breaker, why: str) -> None:
        """Count a failure; where it shuts the tier, drop the connections too."""
        self._metrics.valkey_failures.labels(kind).inc()
        was_open = self.open
        self._breaker = breaker
        if breaker.closed:
            return
        if was_open:
            log.warning("valkey tier shut", why=why, pause_s=breaker.retry_at - time.monotonic())
        self.problem = why
        self._drop()
        self._wake.set()

    def _drop(self) -> None:
        links, self._links = self._links, None
        if links is not None:
            links.close()
