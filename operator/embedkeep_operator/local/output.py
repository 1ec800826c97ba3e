"""Where the lines of the child processes go: prefixed to the terminal, or into files.

Writing happens in a thread, because a terminal may be held (Ctrl-S) and a disk may be slow. What
waits is bounded: beyond it the oldest lines are dropped and counted.
"""

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TextIO

MAX_WAITING_LINES: Final = 10_000
MAX_FILE_BYTES: Final = 32 << 20
"""Then a log file becomes NAME.log.1, and a new one begins."""


class Output:
    """Writes lines of processes, in order.

    Args:
        folder: Where NAME.log is written. None: to this process's stdout and stderr, prefixed.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._waiting: deque[tuple[str, str, str]] = deque()
        self._dropped = 0
        self._more = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin. `close` must be awaited later."""
        self._task = asyncio.create_task(self._drain(), name="write logs")

    def line(self, process: str, stream: str, text: str) -> None:
        """Write one line soon. Never blocks."""
        if len(self._waiting) >= MAX_WAITING_LINES:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append((process, stream, text))
        self._more.set()

    async def close(self) -> None:
        """Write what waits, and end."""
        self._closing = True
        self._more.set()
        if self._task is not None:
            await self._task

    async def _drain(self) -> None:
        while not (self._closing and not self._waiting):
            await self._more.wait()
            self._more.clear()
            batch = [*self._waiting]
            self._waiting.clear()
            if self._dropped:
                batch.insert(0, ("embedkeep", "stderr", f"{self._dropped} lines were dropped"))
                self._dropped = 0
            await asyncio.to_thread(self._write, batch)

    def _write(self, batch: list[tuple[str, str, str]]) -> None:
        with contextlib.suppress(OSError, ValueError):  # a closed terminal, a full disk: go on
            if self.folder is None:
                _to_terminal(batch)
            else:
                self._to_files(batch, self.folder)

    def _to_files(self, batch: list[tuple[str, str, str]], folder: Path) -> None:
        for process, lines in _by_process(batch):
            file = folder / f"{process}.log"
            if file.exists() and file.stat().st_size > MAX_FILE_BYTES:
                file.replace(file.with_suffix(".log.1"))
            with file.open("a", encoding="utf-8") as writer:
                writer.writelines(f"{line}\n" for line in lines)


def _to_terminal(batch: list[tuple[str, str, str]]) -> None:
    streams: dict[str, TextIO] = {"stdout": sys.stdout, "stderr": sys.stderr}
    for process, stream, text in batch:
        streams[stream].write(f"{process:<8} | {text}\n")
    for writer in streams.values():
        writer.flush()


def _by_process(batch: list[tuple[str, str, str]]) -> Iterator[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for process, _, text in batch:
        found.setdefault(process, []).append(text)
    yield from found.items()
