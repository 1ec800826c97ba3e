"""Long runs of `embedkeep embed --bulk` and `embedkeep export`: files in, files out, resumable."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import click

from embedkeep.cli.asking import Rows, Tally, ask
from embedkeep.cli.journal import Checkpoint, Journal, Json, Witness, keeping, uninterrupted
from embedkeep.cli.pipeline import in_order
from embedkeep.cli.progress import Shown, duration
from embedkeep.cli.reading import Line, lines_of, total_of
from embedkeep.cli.writing import JsonLines, Npy, Writer, replacing, reporting
from embedkeep.client import CacheInfo, Client
from embedkeep.client.options import EmbedOptions
from embedkeep.errors import EmbedderUnavailable, EmbedKeepError, InvalidConfig

WINDOW: Final = 4
"""Batches under way at once: one is computed, one waits for it, two are read or written."""
INFO_S: Final = 30.0
"""How long the first answer may take: nothing is lost by giving up then."""
ROWS, FAILURES = "part", "failures.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bulk:
    """What one run is to do."""

    name: str
    source: Path
    field: str
    output: Path
    format: str
    with_text: bool
    how: EmbedOptions
    missing_is_fine: bool = False
    """Inputs that are not cached are left out and counted, and are no failures."""

    @property
    def task(self) -> dict[str, Json]:
        """What decides the output, beside the input."""
        return {
            "do": self.name,
            "kind of input": self.source.suffix,
            "field": self.field,
            "format": self.format,
            "with text": self.with_text,
            "model": self.how.get("model"),
            "prompt": self.how.get("prompt"),
            "dimensions": self.how.get("dimensions"),
            "normalize": self.how.get("normalize"),
        }


def run(bulk: Bulk, client: Client, *, restart: bool) -> tuple[Tally, str]:
    """Do it, from the beginning or from where an earlier run has stopped.

    Returns:
        What was done, all runs together, and that in words.

    Raises:
        InvalidConfig: A file cannot be read or written, or the earlier run cannot be gone on from.
        ModelDrift: The model was replaced meanwhile.
        EmbedKeepError: The cache does not answer in time, or refuses the call.
        KeyboardInterrupt: After a last checkpoint.
    """
    started = time.monotonic()
    total = total_of(bulk.source)
    if total == 0:
        raise InvalidConfig("no texts: the input is empty", field="--file")
    if bulk.output.is_dir():
        raise InvalidConfig(f"{bulk.output} is a folder", field="--output")
    info = client.info(timeout_s=INFO_S)
    if not info.dimensions:
        raise EmbedderUnavailable(
            "no embedder was seen yet: try again when `embedkeep status` shows one"
        )
    task = bulk.task | {"model's fingerprint": info.fingerprint}
    with (
        reporting(str(bulk.output)),
        keeping(bulk.output, (ROWS, FAILURES), task, restart=restart) as journal,
    ):
        lines = lines_of(bulk.source, bulk.field)
        witness = passed(lines, journal.start)
        going = _Run(bulk, journal, _writer(bulk, journal, info), witness)
        try:
            with Shown(bulk.name, total=total, done=going.done) as shown:
                going.go(client, lines, shown)
        except (EmbedKeepError, KeyboardInterrupt):
            if going.done:
                click.echo(
                    f"{bulk.name}: stopped after {going.done:,} of {total:,}; the same command "
                    "goes on from there",
                    err=True,
                )
            raise
        _deliver(bulk, journal)
    seconds = going.seconds + time.monotonic() - started
    failures = bulk.output.with_name(f"{bulk.output.name}.{FAILURES}")
    named = f" (named in {failures})" if going.tally.failed else ""
    return going.tally, (
        f"{bulk.output}: {going.tally}{named}; {going.tally.saved_device_s:.1f} device-seconds "
        f"saved, {going.tally.spent_device_s:.1f} spent, in {duration(seconds)}"
    )


def passed(items: Iterator[Line], start: Checkpoint) -> Witness:
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
            f"has changed since an earlier run: its first {start.done:,} inputs, which are done, "
            "are not the same any more; --restart begins anew",
            field="--file",
        )
    return witness


class _Run:
    """One run under way."""

    def __init__(self, bulk: Bulk, journal: Journal, writer: Writer, witness: Witness) -> None:
        self._bulk = bulk
        self._journal = journal
        self._writer = writer
        self._witness = witness
        self.done = journal.start.done
        self.tally = _tally(journal.start.state)
        self.seconds = float(str(journal.start.state.get("seconds", 0.0)))
        """What earlier runs took."""

    def go(self, client: Client, lines: Iterator[Line], shown: Shown) -> None:
        """Embed and write the rest."""
        started = time.monotonic()
        batches = in_order(
            lines,
            partial(_ask, client, self._bulk.how),
            window=WINDOW,
            abandon=client.close,
        )
        whole = True
        try:
            for batch, rows in batches:
                with uninterrupted():
                    whole = False
                    self._take(batch, rows)
                    whole = True
                    if self._journal.due:
                        self._save(time.monotonic() - started)
                shown.update(self.done, self._note())
            self._writer.finish()
        finally:
            batches.close()
            if whole and self.done:  # else the last checkpoint stands
                with uninterrupted():
                    self._save(time.monotonic() - started)

    def _take(self, batch: list[Line], rows: Rows) -> None:
        self.tally.add(rows, missing_is_fine=self._bulk.missing_is_fine)
        self._writer.write(rows)
        failures = self._journal.file(FAILURES)
        for place, problem in sorted(rows.problems.items()):
            if self._bulk.missing_is_fine and place in rows.missing:
                continue
            record = {"line": batch[place].number, "error": problem}
            failures.write(json.dumps(record).encode() + b"\n")
        for line in batch:
            self._witness.add(line.evidence)
        self.done += len(batch)

    def _save(self, seconds: float) -> None:
        tally = self.tally
        self._journal.save(
            done=self.done,
            digest=self._witness.digest,
            state={
                "sources": {**tally.sources},
                "missing": tally.missing,
                "dimensions": tally.dimensions,
                "fingerprint": tally.fingerprint,
                "saved_device_s": tally.saved_device_s,
                "spent_device_s": tally.spent_device_s,
                "seconds": self.seconds + seconds,
            },
        )

    def _note(self) -> str:
        tally = self.tally
        ratio = tally.hits / max(tally.inputs, 1)
        failed = f", {tally.failed:,} failed" if tally.failed else ""
        return f"{ratio:.1%} hits, {tally.saved_device_s:.1f} device-seconds saved{failed}"


def _ask(client: Client, how: EmbedOptions, lines: list[Line]) -> Rows:
    return ask(client, lines, how)


def _tally(state: dict[str, Json]) -> Tally:
    if not state:
        return Tally()
    sources = state["sources"]
    assert isinstance(sources, dict)  # noqa: S101  # written by `_save` of this version
    return Tally(
        sources=Counter({name: int(str(count)) for name, count in sources.items()}),
        missing=int(str(state["missing"])),
        dimensions=int(str(state["dimensions"])),
        fingerprint=str(state["fingerprint"]),
        saved_device_s=float(str(state["saved_device_s"])),
        spent_device_s=float(str(state["spent_device_s"])),
    )


def _writer(bulk: Bulk, journal: Journal, info: CacheInfo) -> Writer:
    file = journal.file(ROWS)
    if bulk.format == "npy":
        before = _tally(journal.start.state)
        return Npy(file, rows=journal.start.done, dimensions=before.dimensions)
    if bulk.format == "parquet":
        from embedkeep.cli.parquet import ArrowRows  # noqa: PLC0415  # an extra

        return ArrowRows(
            file,
            dimensions=bulk.how.get("dimensions") or info.dimensions,
            with_text=bulk.with_text,
            fingerprint=info.fingerprint,
        )
    return JsonLines(file, with_text=bulk.with_text, with_source=False)


def _deliver(bulk: Bulk, journal: Journal) -> None:
    """Put the whole file in its place."""
    part = bulk.output.with_name(f"{bulk.output.name}.{ROWS}")
    if bulk.format == "parquet":
        from embedkeep.cli.parquet import to_parquet  # noqa: PLC0415  # an extra

        with replacing(bulk.output) as file:
            to_parquet(part, file)
        journal.finish()
        part.unlink()
        return
    # In this order: a run that is killed between the two begins anew, and finds all of it cached.
    journal.finish()
    part.replace(bulk.output)
