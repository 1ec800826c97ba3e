"""Keeps the Valkeys of a cache that runs here one whole cluster."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from embedkeep_operator.cluster import Wanted
from embedkeep_operator.forming import lead_on
from embedkeep_operator.local.supervisor import Event
from embedkeep_operator.topology import Reason

PROCESS: Final = "cluster"
"""What events name; no process has this name."""
EAGER_S: Final = 0.1
"""Between two looks at a cluster that is not whole, seconds."""
CALM_S: Final = 1.0
"""Between two looks at a whole one: what a Valkey that came back empty may wait."""


class Forming:
    """Looks again and again, and does what `topology.plan` says.

    Args:
        wanted: All Valkeys by name.
        password: Theirs.
        on_change: Called when `reason` has changed. Must not block.
        on_event: Gets what is worth telling. Must not block.
    """

    def __init__(
        self,
        wanted: Mapping[str, Wanted],
        password: str,
        *,
        on_change: Callable[[], None],
        on_event: Callable[[Event], None],
    ) -> None:
        self._wanted = wanted
        self._password = password
        self._on_change = on_change
        self._on_event = on_event
        self._since_s = time.monotonic()
        self.reason = Reason.MISSING
        """Where it stands."""
        self.detail = ""
        """Who stands in the way, and how; empty: nobody does."""
        self._task: asyncio.Task[None] | None = None

    @property
    def whole(self) -> bool:
        """Every slot is served, and all Valkeys know by whom."""
        return self.reason is Reason.SETTLED and not self.ended()

    @property
    def standing(self) -> str:
        """Where it stands, for people."""
        return f"{self.reason} ({self.detail})" if self.detail else str(self.reason)

    def ended(self) -> bool:
        """It was stopped. Raises what ended it against its will."""
        if self._task is None or not self._task.done():
            return False
        return self._task.cancelled() or self._task.result() is None

    def start(self) -> None:
        """Begin. `stop` must be awaited later."""
        self._task = asyncio.create_task(self._run(), name="form the cluster")
        self._task.add_done_callback(lambda _: self._on_change())

    async def stop(self) -> None:
        """Look no more; the Valkeys stay as they are."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while True:
            led = await lead_on(self._wanted, self._password)
            self._become(led.reason, led.detail)
            await asyncio.sleep(CALM_S if self.reason is Reason.SETTLED else EAGER_S)

    def _become(self, reason: Reason, detail: str) -> None:
        self.detail = detail
        if reason is self.reason:
            return
        was_whole, self.reason = self.reason is Reason.SETTLED, reason
        if reason is Reason.SETTLED:
            took_s = time.monotonic() - self._since_s
            shards = len({each.shard for each in self._wanted.values()})
            who = f"{shards} shards serve" if shards > 1 else "one shard serves"
            self._tell(f"whole after {took_s:.1f} s: {who} all slots")
        elif was_whole:
            self._since_s = time.monotonic()
            self._tell(f"not whole: {self.standing}", bad=True)
        self._on_change()

    def _tell(self, message: str, *, bad: bool = False) -> None:
        self._on_event(Event(at=time.time(), process=PROCESS, message=message, bad=bad))
