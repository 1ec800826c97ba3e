"""What long runs share: batches under way, checkpoints, progress, and how they stop."""

import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol, TypeVar

import click

from embedkeep.cli.journal import Checkpoint, Journal, Json, Witness, uninterrupted
from embedkeep.cli.pipeline import Item, in_order
from embedkeep.cli.progress import Shown
from embedkeep.errors import EmbedKeepError, InvalidConfig

WINDOW: Final = 4
"""Batches under way at once: one is computed, one waits for it, two are read or written."""
FAILURES: Final = "failures.jsonl"


class Witnessed(Item, Protocol):
    """An item of the input."""

    @property
    def evidence(self) -> bytes:
        """What tells it from another one that might stand in its place."""


ItemT = TypeVar("ItemT", bound=Witnessed)
ResultT = TypeVar("ResultT")


class Work(Protocol[ItemT, ResultT]):
    """What is done with each batch."""

    @property
    def name(self) -> str:
        """For people."""

    def call(self, batch: list[ItemT], /) -> ResultT:
        """Ask the cache; several at once, in threads."""

    def take(self, batch: list[ItemT], result: ResultT, /) -> None:
        """Write and count what came of it; in the order of the input."""

    def finish(self) -> None:
        """All batches were taken."""

    @property
    def state(self) -> dict[str, Json]:
        """What the next run must know."""

    @property
    def note(self) -> str:
        """What of interest has been done so far."""


def go(
    items: Iterator[ItemT],
    work: Work[ItemT, ResultT],
    journal: Journal,
    *,
    total: int,
    abandon: Callable[[], None],
) -> float:
    """Do the rest of a run.

    Args:
        items: From the first on; those that are done are passed over.
        abandon: Makes calls under way end soon.

    Returns:
        How long it took, all runs together, seconds.

    Raises:
        InvalidConfig: What is done is not what it was.
        KeyboardInterrupt: After a last checkpoint.
        Exception: What the work raises; what was done before is noted.
    """
    started, before_s = time.monotonic(), float(str(journal.start.state.get("seconds", 0.0)))
    done, witness, whole = journal.start.done, passed(items, journal.start), True

    def seconds() -> float:
        return before_s + time.monotonic() - started

    def save() -> None:
        state = work.state | {"seconds": seconds()}
        journal.save(done=done, digest=witness.digest, state=state)

    batches = in_order(items, work.call, window=WINDOW, abandon=abandon)
    try:
        with Shown(work.name, total=total, done=done) as shown:
            for batch, result in batches:
                with uninterrupted():
                    whole = False
                    work.take(batch, result)
                    for item in batch:
                        witness.add(item.evidence)
                    done += len(batch)
                    whole = True
                    if journal.due:
                        save()
                shown.update(done, work.note)
        work.finish()
    except (EmbedKeepError, KeyboardInterrupt):
        if done:
            click.echo(
                f"{work.name}: stopped after {done:,} of {total:,}; the same command goes on from "
                "there",
                err=True,
            )
        raise
    finally:
        batches.close()
        if whole and done:  # else the last checkpoint stands
            with uninterrupted():
                save()
    return seconds()


def passed(items: Iterator[ItemT], start: Checkpoint) -> Witness:
    """Pass over what is done already.

    Raises:
        InvalidConfig: It is not what it was then.
    """
    witness = Witness()
    for _ in range(start.done):
        if (item := next(items, None)) is None:
            break
        witness.add(item.evidence)
    if start.done and witness.digest != start.digest:
        raise InvalidConfig(
            f"the input has changed since an earlier run: its first {start.done:,} items, which "
            "are done, are not the same any more; --restart begins anew"
        )
    return witness
