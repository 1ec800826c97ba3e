"""Starts the processes of one cache in order, keeps them running, and stops them in order.

Each program has one `Child`, whose task starts it, watches it and starts it again; its failures
are values (`State.FAILED` with a reason), so one child's end never takes the others along. The
processes run under `watchdog`, which outlives nobody: closing its pipe is enough to end them.
"""

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from embedkeep.errors import EmbedKeepError
from embedkeep_operator.local.backoff import Backoff, Record
from embedkeep_operator.local.endings import ended_how, given_up, refused
from embedkeep_operator.local.spawning import lines, started

WATCHDOG: Final = Path(__file__).with_name("watchdog.py")
PROBE_STARTING_S: Final = 0.1
PROBE_READY_S: Final = 1.0
ORPHAN_GRACE_S: Final = 5.0
"""How long a child may take to stop after `embedkeep up` itself was killed."""
LAST_WORDS_S: Final = 2.0
"""How long output is still read after the process has ended."""
KILL_GRACE_S: Final = 5.0
"""How long a watchdog may take to kill what it holds."""

Probe = Callable[[], Awaitable[str | None]]


class State(StrEnum):
    """Where a process stands."""

    WAITING = "waiting"
    """For one that it needs."""
    STARTING = "starting"
    READY = "ready"
    SILENT = "not answering"
    """It was ready, runs, and does not answer now."""
    PAUSING = "restarting"
    """It ended, and is started again after a pause."""
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    """It was given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One process to be kept running."""

    name: str
    command: tuple[str, ...]
    probe: Probe
    """None when it is ready, else the reason why not. Bounded in time by itself."""
    after: tuple[str, ...] = ()
    """Programs that must be ready before it is first started."""
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    stop_grace_s: float = 10.0
    """How long it may take to stop before it is killed, seconds."""
    stop_rank: int = 0
    """Those of the highest rank are stopped first and together, then those of the next."""
    refusal_codes: frozenset[int] = frozenset()
    """Exit codes that say: as it is told, it can never start."""
    told_by: Mapping[str, str] = field(default_factory=dict)
    """For its refusals: fields of its config, and the resource's fields that they come from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something worth telling."""

    at: float
    """Seconds since the epoch."""
    process: str
    message: str
    bad: bool = False


class Board:
    """Lets tasks wait until something they look at has changed. One loop, no locks."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Wake all who wait; each looks again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return once *holds* is true after a change, or is true already."""
        while not holds():
            await self._changed.wait()


class Child:
    """One program's life. Owned by a `Supervisor`, read by views."""

    def __init__(self, program: Program, supervisor: "Supervisor") -> None:
        self.program = program
        self.state = State.WAITING
        self.since = time.monotonic()
        """Of the state, on the monotonic clock."""
        self.starts = 0
        self.reason = ""
        """Why it is not ready, or why it was given up."""
        self.last_lines: deque[str] = deque(maxlen=20)
        """What it said last."""
        self.refused = False
        """It never was ready, and its exit code is one of the program's refusals."""
        self._supervisor = supervisor
        self._stopping = False
        self._record = Record()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def name(self) -> str:
        """The program's."""
        return self.program.name

    @property
    def pid(self) -> int | None:
        """Of the program's own process; None: it does not run, or did not say so yet."""
        if self._process is None:
            return None
        with contextlib.suppress(OSError, ValueError):
            return int(self._pid_file.read_text())
        return None

    @property
    def _pid_file(self) -> Path:
        return self._supervisor.pids / f"{self.name}.pid"

    async def run(self) -> None:
        """Keep the program running until it is to stop, or is given up."""
        board, policy = self._supervisor.board, self._supervisor.policy
        await board.until(lambda: self._stopping or self._supervisor.are_ready(self.program.after))
        while not self._is_stopping():
            await self._run_once()
            if self._is_stopping():
                break
            if self.refused or self._record.hopeless(policy):
                self._become(State.FAILED)
                return
            pause_s = policy.pause_s(self._record.ends, self._supervisor.chance())
            self._become(State.PAUSING)
            self._tell(f"{self.reason}; starting it again in {pause_s:.1f} s", bad=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await board.until(lambda: self._stopping)
        self._become(State.STOPPED)

    def _is_stopping(self) -> bool:
        return self._stopping

    async def stop(self, task: "asyncio.Task[None]") -> None:
        """Ask the program to end, kill it when its grace is over, and wait for *task*, its run."""
        self._stopping = True
        self._supervisor.board.changed()
        if self._process is not None:
            self._become(State.STOPPING)
            self._ask(b"T")
        await asyncio.wait({task}, timeout=self.program.stop_grace_s)
        if not task.done():
            self._tell("did not stop in time: killed", bad=True)
            self._ask(b"K")
            await asyncio.wait({task}, timeout=KILL_GRACE_S)
        if not task.done() and self._process is not None:
            self._process.kill()
        await task

    def kill(self) -> None:
        """End it at once. `stop` must still be awaited."""
        self._stopping = True
        self._ask(b"K")

    def _ask(self, letter: bytes) -> None:
        process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError, RuntimeError):
                process.stdin.write(letter)

    async def _run_once(self) -> None:
        """One run from start to end; what came of it is in the record and the reason."""
        self._pid_file.unlink(missing_ok=True)
        self.last_lines.clear()
        started_s = time.monotonic()
        process, exited = await started(
            *(sys.executable, "-I", "-S", str(WATCHDOG), str(self._pid_file), str(ORPHAN_GRACE_S)),
            *self.program.command,
            env=self.program.env,
        )
        self._process = process
        self.starts += 1
        self._become(State.STARTING)
        if self._stopping:  # asked while the process was being made
            self._ask(b"T")
        assert process.stdout is not None  # noqa: S101  # asked for above; narrows the type
        assert process.stderr is not None  # noqa: S101  # as above
        was_ready = asyncio.Event()
        tasks = [
            asyncio.create_task(self._copy("stdout", process.stdout), name=f"{self.name} stdout"),
            asyncio.create_task(self._copy("stderr", process.stderr), name=f"{self.name} stderr"),
        ]
        probing = asyncio.create_task(self._probe(was_ready), name=f"{self.name} probe")
        try:
            await exited.wait()
            code = process.returncode if process.returncode is not None else 0
            if code < 0:  # the watchdog itself was killed
                self._kill_group()
            # Bounded, because what has escaped from its group may hold the pipes open.
            await asyncio.wait(tasks, timeout=LAST_WORDS_S)
        finally:
            if process.stdin is not None:
                process.stdin.close()  # whatever happened, the watchdog ends what it holds
            for task in (probing, *tasks):
                task.cancel()
            await asyncio.gather(probing, *tasks, return_exceptions=True)
            self._process = None
        self.reason = ended_how(code)
        self._record = self._record.after_end(
            ready=was_ready.is_set(),
            ran_s=time.monotonic() - started_s,
            policy=self._supervisor.policy,
        )
        self.refused = code in self.program.refusal_codes and not self._record.was_ready

    def _kill_group(self) -> None:
        """What a watchdog without a chance to clean up has left."""
        with contextlib.suppress(OSError, ValueError):
            os.killpg(int(self._pid_file.read_text()), signal.SIGKILL)

    async def _probe(self, was_ready: asyncio.Event) -> None:
        """Follow readiness while the process runs."""
        while True:
            # Before its id is known, an answer would be somebody else's.
            reason = await self.program.probe() if self.pid is not None else "is being started"
            if self._stopping:
                return
            if reason is None and self.state is not State.READY:
                took = time.monotonic() - self.since
                self._tell(f"ready after {took:.1f} s" if not was_ready.is_set() else "answers")
                was_ready.set()
                self.reason = ""
                self._become(State.READY)
            elif reason is not None:
                self.reason = reason
                if self.state is State.READY:
                    self._become(State.SILENT)
                    self._tell(f"does not answer: {reason}", bad=True)
            await asyncio.sleep(PROBE_READY_S if was_ready.is_set() else PROBE_STARTING_S)

    async def _copy(self, stream: str, reader: asyncio.StreamReader) -> None:
        async for line in lines(reader):
            self.last_lines.append(line)
            self._supervisor.on_line(self.name, stream, line)

    def _become(self, state: State) -> None:
        self.state, self.since = state, time.monotonic()
        self._supervisor.board.changed()

    def _tell(self, message: str, *, bad: bool = False) -> None:
        self._supervisor.on_event(
            Event(at=time.time(), process=self.name, message=message, bad=bad)
        )


class Supervisor:
    """All programs of one cache.

    Args:
        programs: In the order of start.
        pids: Folder for the process ids.
        on_line: Gets every line of output: process, stream, text. Must not block.
        on_event: Gets what is worth telling. Must not block.
        policy: When to start again.
        chance: Numbers 0 <= x < 1, for the pauses.
    """

    def __init__(  # noqa: PLR0913  # two outlets and two that tests set
        self,
        programs: Sequence[Program],
        *,
        pids: Path,
        on_line: Callable[[str, str, str], None],
        on_event: Callable[[Event], None],
        policy: Backoff = Backoff(),  # noqa: B008  # frozen
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.pids = pids
        self.on_line = on_line
        self.on_event = on_event
        self.policy = policy
        self.chance = chance
        self.board = Board()
        self.children = {program.name: Child(program, self) for program in programs}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Begin. `stop` must be awaited later, come what may."""
        for name, child in self.children.items():
            self._tasks[name] = asyncio.create_task(child.run(), name=f"supervise {name}")
            self._tasks[name].add_done_callback(lambda _: self.board.changed())

    def are_ready(self, names: Sequence[str]) -> bool:
        """All of these are ready now."""
        return all(self.children[name].state is State.READY for name in names)

    async def ready(self, also: Callable[[], bool] = lambda: True) -> None:
        """Wait until all programs are ready at once.

        Args:
            also: Holds at that moment too; whoever changes it tells the board.

        Raises:
            InvalidConfig: One can never start as it is told.
            Unavailable: One was given up; says why, with its last words.
        """
        await self.board.until(lambda: (self.are_ready([*self.children]) and also()) or self.lost())
        if self.lost():
            raise self.failure()

    def failure(self) -> EmbedKeepError:
        """Why the first program was given up. Call it only once one was."""
        for name, task in self._tasks.items():
            if task.done() and not task.cancelled() and (bug := task.exception()) is not None:
                raise bug
            child = self.children[name]
            if child.state is State.FAILED:
                if child.refused:
                    return refused(name, [*child.last_lines], child.program.told_by)
                return given_up(
                    name, starts=child.starts, reason=child.reason, lines=[*child.last_lines]
                )
        raise AssertionError("no program was given up")

    def lost(self) -> bool:
        """A program was given up, or keeping it has a bug; see `failure`."""
        return any(child.state is State.FAILED for child in self.children.values()) or any(
            task.done() and not task.cancelled() and task.exception() is not None
            for task in self._tasks.values()
        )

    async def stop(self) -> None:
        """Stop all, rank by rank. Bounded by the sum over the ranks of their longest graces."""
        ranks = {child.program.stop_rank for child in self.children.values()}
        for rank in sorted(ranks, reverse=True):
            await asyncio.gather(
                *(
                    self.children[name].stop(task)
                    for name, task in self._tasks.items()
                    if self.children[name].program.stop_rank == rank
                )
            )

    def kill(self) -> None:
        """Kill all at once. `stop` must still be awaited."""
        for child in self.children.values():
            child.kill()
