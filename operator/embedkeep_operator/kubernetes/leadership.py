"""Which of several operators works: the one that holds the Lease. The decisions are pure.

A holder renews its Lease; whoever sees it unchanged for as long as it promises to hold, by its own
clock, takes it over. So clocks need not agree. One that could not renew in time stops at once,
before another may begin. The protocol is client-go's leader election.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

import structlog

from embedkeep_operator.kubernetes.failures import ApiFailed, Conflict

HOLD_S: Final = 15
"""How long a Lease is valid after it was renewed, seconds: client-go's default."""
RENEW_S: Final = 10.0
"""Time after which a holder that could not renew gives up, seconds."""
RETRY_S: Final = 2.0
"""Between two attempts, seconds."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A Lease as the API server shows it."""

    holder: str
    """Empty: it was given back."""
    version: str
    """Its resourceVersion."""
    hold_s: float
    transitions: int
    acquired: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A Lease, and since when it has been just so, by our own clock."""

    lease: Held
    since_s: float

    def again(self, lease: Held, *, now_s: float) -> "Seen":
        """Look at it again."""
        return self if lease.version == self.lease.version else Seen(lease=lease, since_s=now_s)

    def is_free(self, *, now_s: float, me: str) -> bool:
        """It may be taken: nobody holds it, it is ours, or its holder has stopped renewing it."""
        lease = self.lease
        return lease.holder in {"", me} or now_s - self.since_s >= lease.hold_s


class Leases(Protocol):
    """Where the Lease is kept."""

    async def lease(self) -> Held | None:
        """As it is now. None: there is none."""
        ...

    async def write_lease(self, wanted: Held, *, renewed: datetime) -> Held:
        """Create or replace it.

        Raises:
            Conflict: Somebody else has written it since that version.
        """
        ...


class Leadership:
    """One operator's part in it.

    Args:
        leases: Where the Lease is kept.
        me: A name that no other process has, and that its next start does not have.
        clock: Monotonic seconds.
        now: The time of day, which is only shown.
    """

    def __init__(
        self, leases: Leases, *, me: str, clock: Callable[[], float], now: Callable[[], datetime]
    ) -> None:
        self._leases = leases
        self._me = me
        self._clock = clock
        self._now = now
        self._seen: Seen | None = None

    async def acquire(self) -> None:
        """Wait until the Lease is ours."""
        while not await self._attempted():  # noqa: ASYNC110  # another process gives it back
            await asyncio.sleep(RETRY_S)
        _log.info("lease acquired", holder=self._me)

    async def keep(self) -> None:
        """Renew it. Returns when it is lost, by which time nothing may be written any more."""
        renewed_s = self._clock()
        while True:
            await asyncio.sleep(RETRY_S)
            left_s = renewed_s + RENEW_S - self._clock()
            try:
                async with asyncio.timeout(max(0.0, left_s)):
                    if await self._attempted():
                        renewed_s = self._clock()
                        continue
            except TimeoutError:
                _log.error("lease not renewed in time", holder=self._me, seconds=RENEW_S)
                return
            if self._seen is not None and self._seen.lease.holder != self._me:
                _log.error("lease lost", holder=self._seen.lease.holder)
                return
            if self._clock() - renewed_s >= RENEW_S:
                return

    async def give_back(self) -> None:
        """Let another begin at once. Does nothing where it is not ours, or cannot be reached."""
        seen = self._seen
        if seen is None or seen.lease.holder != self._me:
            return
        with contextlib.suppress(ApiFailed, TimeoutError):
            async with asyncio.timeout(RETRY_S):
                await self._write(seen.lease, holder="")

    async def _attempted(self) -> bool:
        """Take or renew it, if it may be."""
        try:
            found = await self._leases.lease()
            if found is None:
                found = Held(holder="", version="", hold_s=HOLD_S, transitions=0)
            now_s = self._clock()
            self._seen = (
                Seen(lease=found, since_s=now_s)
                if self._seen is None
                else self._seen.again(found, now_s=now_s)
            )
            if not self._seen.is_free(now_s=now_s, me=self._me):
                return False
            await self._write(found, holder=self._me)
        except Conflict:
            return False
        except ApiFailed as error:
            _log.warning("lease cannot be read or written", error=str(error))
            return False
        return True

    async def _write(self, before: Held, *, holder: str) -> None:
        now = self._now()
        taken = holder not in {before.holder, ""}
        wanted = Held(
            holder=holder,
            version=before.version,
            hold_s=HOLD_S,
            transitions=before.transitions + taken,
            acquired=now if taken or before.acquired is None else before.acquired,
        )
        written = await self._leases.write_lease(wanted, renewed=now)
        self._seen = Seen(lease=written, since_s=self._clock())


async def led(leadership: Leadership, work: Callable[[], Awaitable[None]]) -> None:
    """Do *work* while the Lease is ours; cancelled when it is lost."""
    await leadership.acquire()
    async with asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(leadership.keep(), name="lease")
        working = tasks.create_task(_ended(work()), name="work")
        await asyncio.wait((keeping, working), return_when=asyncio.FIRST_COMPLETED)
        keeping.cancel()
        working.cancel()


async def _ended(work: Awaitable[None]) -> None:
    await work


def utc_now() -> datetime:
    """The time of day."""
    return datetime.now(UTC)
