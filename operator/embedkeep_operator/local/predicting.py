"""Runs the predictor on this machine by the resource's schedule, as a CronJob does in a cluster."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from embedkeep_operator.local.endings import ended_how
from embedkeep_operator.local.spawning import lines, started
from embedkeep_operator.local.supervisor import ORPHAN_GRACE_S, WATCHDOG, Event

PROCESS: Final = "predictor"
RUN_S: Final = 600.0
"""Longest life of one run, seconds."""
MOST_SLEEP_S: Final = 60.0
"""A clock that was set is noticed within this, seconds."""


class Predicting:
    """Runs it again and again, one at a time. A run that fails is told, and the next one is due.

    Args:
        folder: With predictor.json.
        next_after: When it is due after a moment in UTC; None: never again.
        env: Of the process.
        on_line: Gets each line of output: process, stream, text. Must not block.
        on_event: Gets what is worth telling. Must not block.
    """

    def __init__(
        self,
        folder: Path,
        next_after: Callable[[datetime], datetime | None],
        *,
        env: Mapping[str, str],
        on_line: Callable[[str, str, str], None],
        on_event: Callable[[Event], None],
    ) -> None:
        config = str(folder / "predictor.json")
        self._pid_file = folder / "pids" / "predictor.pid"
        self._command = (
            *(sys.executable, "-I", "-S", str(WATCHDOG)),
            *(str(self._pid_file), str(ORPHAN_GRACE_S)),
            *(sys.executable, "-P", "-m", "embedkeep.cli", "predictor", "--config", config),
        )
        self._next_after = next_after
        self._env = env
        self._on_line = on_line
        self._on_event = on_event
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin. `stop` must be awaited later."""
        self._task = asyncio.create_task(self._run(), name="predict by schedule")

    async def stop(self) -> None:
        """End, a run that goes on too."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while (due := self._next_after(datetime.now(UTC))) is not None:
            left_s = (due - datetime.now(UTC)).total_seconds()
            await asyncio.sleep(min(max(left_s, 0), MOST_SLEEP_S))
            if left_s <= MOST_SLEEP_S:
                await self.once()
        self._tell("spec.warmup.schedule names no day that ever comes", bad=True)

    async def once(self) -> None:
        """Run it now, and tell how it ended."""
        process, exited = await started(*self._command, env=self._env)
        assert process.stdout is not None  # noqa: S101  # asked for; narrows the type
        assert process.stderr is not None  # noqa: S101  # as above
        said: list[str] = []
        copying = [
            asyncio.create_task(self._copy(stream, reader, said), name=f"predictor {stream}")
            for stream, reader in (("stdout", process.stdout), ("stderr", process.stderr))
        ]
        try:
            async with asyncio.timeout(RUN_S):
                await exited.wait()
                await asyncio.wait(copying, timeout=1.0)
            code = process.returncode or 0
            if code == 0:
                self._tell(_planned(said))
            else:
                self._tell(f"{ended_how(code)}: {said[-1] if said else 'without a word'}", bad=True)
        except TimeoutError:
            self._tell(f"did not end within {RUN_S:g} s: stopped", bad=True)
        finally:
            if process.stdin is not None:
                process.stdin.close()  # the watchdog ends what it holds
            for task in copying:
                task.cancel()
            await asyncio.gather(*copying, return_exceptions=True)
            await exited.wait()
            self._pid_file.unlink(missing_ok=True)

    async def _copy(self, stream: str, reader: asyncio.StreamReader, said: list[str]) -> None:
        async for line in lines(reader):
            said[:] = [*said[-20:], line]
            self._on_line(PROCESS, stream, line)

    def _tell(self, message: str, *, bad: bool = False) -> None:
        self._on_event(Event(at=time.time(), process=PROCESS, message=message, bad=bad))


def _planned(said: list[str]) -> str:
    """What the predictor's last line tells, for people."""
    for line in reversed(said):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            told = json.loads(line)
            if told["event"] == "planned":
                return f"planned {told['planned']} of {told['asked']} texts in {told['took_s']} s"
    return "done"
