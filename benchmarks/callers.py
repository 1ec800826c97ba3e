"""Clients that ask in turns, each a process of its own with a connection of its own.

    with Callers(16, {"RedisVL": partial(RedisVL, port=...)}, texts) as callers:
        window = callers.window("RedisVL", Asking(batch=32, seconds=0.4, callers=16))

Processes are forked from one that has imported every library, so that 16 of them fit in memory.
All begin a window at the same instant and each asks, waits and asks again until the window ends.
"""

import asyncio
import multiprocessing
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, Protocol, Self

import numpy as np
import uvloop
from numpy.typing import NDArray

HERE: Final = Path(__file__).parent
START_S: Final = 180.0
"""How long a process may take to open a system: imports, on a machine that has other work."""
PREPARED: Final = 64
"""Batches drawn before a window begins, so that drawing takes none of its time."""
FIXED: Final = 4
"""Batches of a caller that asks for the same ones again and again."""


class System(Protocol):
    """One way to ask for vectors."""

    def ask(self, texts: list[str]) -> object:
        """Embed *texts*. May be a coroutine function. Returns what its API returns."""
        ...

    def rows(self, answer: object) -> NDArray[np.float32]:
        """What `ask` returned as an array, shape [n, d]: for checks, outside of measured time."""
        ...

    def close(self) -> object:
        """End connections. May be a coroutine function."""
        ...


Opener = Callable[[], System]
"""Opens a system inside a caller's process; must be picklable."""


class CallerFailed(Exception):
    """A caller's system raised."""


@dataclass(frozen=True, slots=True)
class Window:
    """What all callers did in one window."""

    seconds: list[float]
    """Of each call of each caller."""
    vectors_per_s: float
    """Of all callers together."""
    failed: int = 0
    """Calls that were refused or failed, where they were allowed to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What callers do in one window."""

    batch: int
    """Texts a call."""
    seconds: float
    """They begin no call after that, and each makes at least one."""
    callers: int
    """The first so many."""
    fixed: bool = False
    """All ask for the same few batches again and again, instead of texts drawn anew."""
    parallel: int = 1
    """Calls that each caller has in flight over its one connection; above 1 only on asyncio."""
    may_fail: bool = False
    """Count what fails, instead of giving up."""


class Callers:
    """Processes that hold one client of each system.

    Args:
        number: Of processes.
        systems: How to open each, by name.
        texts: What is asked for; batches are drawn from them.

    Raises:
        CallerFailed: From any method: a system raised; says which and what.
    """

    def __init__(self, number: int, systems: Mapping[str, Opener], texts: Sequence[str]) -> None:
        self.number = number
        self._systems = dict(systems)
        self._texts = list(texts)
        self._seed = 0
        self._links: list[Connection] = []
        self._processes: list[multiprocessing.process.BaseProcess] = []

    def __enter__(self) -> Self:
        os.environ["PYTHONPATH"] = str(HERE)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["systems"])
        for _ in range(self.number):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, self._texts), daemon=True)
            process.start()
            theirs.close()
            self._links.append(ours)
            self._processes.append(process)
        return self

    def __exit__(self, *_: object) -> None:
        for link in self._links:
            link.close()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()

    def open(self, system: str) -> None:
        """Open *system* in every process."""
        for link in self._links:
            link.send(("open", system, self._systems[system]))
        self._answers(self._links)

    def first(self, system: str, texts: list[str]) -> NDArray[np.float32]:
        """Ask once, in the first process, and return the rows."""
        self._links[0].send(("first", system, texts))
        (found,) = self._answers(self._links[:1])
        if not isinstance(found, np.ndarray):
            raise TypeError(f"a caller answered {type(found)}")
        return found

    def window(self, system: str, asking: Asking) -> Window:
        """Let callers ask for a while, all from the same instant."""
        self._seed += 1
        begin = time.monotonic() + 0.01 + 0.002 * self.number
        links = self._links[: asking.callers]
        for number, link in enumerate(links):
            seed = 0 if asking.fixed else self._seed * 1000 + number
            link.send(("window", system, asking, begin, seed))
        windows = [each for each in self._answers(links) if isinstance(each, Window)]
        return Window(
            [second for each in windows for second in each.seconds],
            sum(each.vectors_per_s for each in windows),
            sum(each.failed for each in windows),
        )

    def once(self, system: str, batches: Sequence[list[str]]) -> list[float]:
        """Let each caller ask for its own batch once, all at the same instant; seconds of each."""
        begin = time.monotonic() + 0.05 + 0.002 * self.number
        used = self._links[: len(batches)]
        for link, batch in zip(used, batches, strict=True):
            link.send(("once", system, batch, begin))
        return [each for each in self._answers(used) if isinstance(each, float)]

    def _answers(self, links: Sequence[Connection]) -> list[object]:
        """One of each; all are read before a failure is raised, so that none is left over."""
        answers = [self._answer(link) for link in links]
        for answer in answers:
            if isinstance(answer, CallerFailed):
                raise answer
        return answers

    def _answer(self, link: Connection) -> object:
        if not link.poll(START_S):
            return CallerFailed(f"no answer within {START_S:g} s")
        try:
            answer: object = link.recv()
        except EOFError:
            return CallerFailed("the caller's process ended")
        return answer


def _serve(link: Connection, texts: list[str]) -> None:
    """A caller's process: obey until the other end closes."""
    caller = _Caller(texts)
    try:
        while True:
            message = link.recv()
            try:
                link.send(caller.obey(*message))
            except Exception as error:  # noqa: BLE001  # a peer may raise anything; the parent decides
                link.send(CallerFailed(f"{type(error).__name__}: {error}"[:500]))
    except (EOFError, KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        caller.close()


class _Caller:
    """A caller's process from inside. What is not awaitable is simply called, on an idle loop."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts
        self._systems: dict[str, System] = {}
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)

    def obey(self, what: str, *told: object) -> object:
        match what, told:
            case "open", (str(name), opener) if callable(opener):
                self._systems[name] = opener()
                return None
            case "first", (str(name), list(texts)):
                system = self._systems[name]
                return system.rows(self._runner.run(_asked(system, texts)))
            case "window", (str(name), Asking() as asking, float(begin), int(seed)):
                texts = self._texts
                return self._runner.run(_window(self._systems[name], texts, asking, begin, seed))
            case "once", (str(name), list(texts), float(begin)):
                return self._runner.run(_once(self._systems[name], texts, begin))
        raise ValueError(f"a caller knows no {what} {told}")

    def close(self) -> None:
        for system in self._systems.values():
            self._runner.run(_closed(system))
        self._runner.close()


async def _window(
    system: System, texts: list[str], asking: Asking, begin: float, seed: int
) -> Window:
    """Ask, wait, ask again.

    Args:
        begin: On the monotonic clock, which all processes share.
        seed: Draws the batches.
    """
    draw = random.Random(seed)
    number = FIXED if asking.fixed else PREPARED
    batches = [draw.sample(texts, asking.batch) for _ in range(number)]
    seconds: list[float] = []
    failed = 0
    await asyncio.sleep(max(0.0, begin - time.monotonic()))
    began = time.perf_counter()

    async def one_at_a_time(first: int) -> None:
        nonlocal failed
        now = time.perf_counter()
        for batch in cycle(batches[first:] + batches[:first]):
            start = now
            try:
                await _asked(system, batch)
            except Exception:
                if not asking.may_fail:
                    raise
                failed += 1
            now = time.perf_counter()
            seconds.append(now - start)
            if now - began >= asking.seconds:
                return

    await asyncio.gather(*(one_at_a_time(n % number) for n in range(asking.parallel)))
    took = time.perf_counter() - began
    return Window(seconds, (len(seconds) - failed) * asking.batch / took, failed)


async def _asked(system: System, texts: list[str]) -> object:
    answer = system.ask(texts)
    return await answer if isinstance(answer, Awaitable) else answer


async def _once(system: System, texts: list[str], begin: float) -> float:
    await asyncio.sleep(max(0.0, begin - time.monotonic()))
    start = time.perf_counter()
    await _asked(system, texts)
    return time.perf_counter() - start


async def _closed(system: System) -> None:
    ending = system.close()
    if isinstance(ending, Awaitable):
        await ending
