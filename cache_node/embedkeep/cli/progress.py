"""How far a long run is: a bar on a terminal, a line every few seconds elsewhere. To stderr."""

import sys
import time
from types import TracebackType
from typing import Final, Self

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

EVERY_S: Final = 5.0
"""Between lines."""


class Shown:
    """Progress of one run.

    Args:
        name: What is being done.
        total: Items, as far as is known now.
        done: Items that an earlier run has done.
    """

    def __init__(self, name: str, *, total: int, done: int) -> None:
        self._name = name
        self._total = total
        self._first = done
        self._started = self._said_at = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}/s"), TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"), console=Console(stderr=True),
            )  # fmt: skip
            self._task = self._bar.add_task(
                self._name, total=self._total, completed=self._first, rate="-", note=""
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, note: str) -> None:
        """So many items are done; *note* says what of interest."""
        now = time.monotonic()
        rate = (done - self._first) / max(now - self._started, 1e-9)
        if self._bar is not None:
            total = max(self._total, done)
            self._bar.update(
                self._task, completed=done, total=total, rate=f"{rate:,.0f}", note=note
            )
        elif now - self._said_at >= EVERY_S:
            self._said_at = now
            click.echo(said(self._name, done, self._total, rate, note), err=True)


def said(name: str, done: int, total: int, rate: float, note: str) -> str:
    """One line of progress."""
    part = done / total if total else 1.0
    left = f", {duration((total - done) / rate)} left" if rate > 0 and total > done else ""
    return f"{name}: {done:,} of {total:,} ({part:.0%}), {rate:,.0f} a second{left}; {note}"


def duration(seconds: float) -> str:
    """As h:mm:ss or m:ss."""
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"
