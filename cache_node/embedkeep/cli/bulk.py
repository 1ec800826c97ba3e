"""Long runs of `embedkeep embed --bulk` and `embedkeep export`: files in, files out, resumable."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from embedkeep.cli.asking import Rows, Tally, ask
from embedkeep.cli.journal import Journal, Json, keeping
from embedkeep.cli.longrun import FAILURES, go
from embedkeep.cli.progress import duration
from embedkeep.cli.reading import Line, lines_of, total_of
from embedkeep.cli.writing import JsonLines, Npy, Writer, replacing, reporting
from embedkeep.client import CacheControl, CacheInfo, Client
from embedkeep.client.options import EmbedOptions
from embedkeep.errors import EmbedderUnavailable, InvalidConfig

INFO_S: Final = 30.0
"""How long the first answer may take: nothing is lost by giving up then."""
ROWS: Final = "part"


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
            "only what is cached": self.how.get("cache", CacheControl()).only_if_cached,
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
    if (total := total_of(bulk.source)) == 0:
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
        work = Embedding(bulk, client, info, journal)
        lines = lines_of(bulk.source, bulk.field)
        seconds = go(lines, work, journal, total=total, abandon=client.close)
        _deliver(bulk, journal)
    tally = work.tally
    failures = bulk.output.with_name(f"{bulk.output.name}.{FAILURES}")
    named = f" (named in {failures})" if tally.failed else ""
    return tally, (
        f"{bulk.output}: {tally}{named}; {tally.saved_device_s:.1f} device-seconds saved, "
        f"{tally.spent_device_s:.1f} spent, in {duration(seconds)}"
    )


class Embedding:
    """Work of a long run: embeds batches, writes them, counts."""

    def __init__(self, bulk: Bulk, client: Client, info: CacheInfo, journal: Journal) -> None:
        self._bulk = bulk
        self._client = client
        self._failures = journal.file(FAILURES)
        self._writer = _writer(bulk, journal, info)
        self.name = bulk.name
        self.tally = _tally(journal.start.state)

    def call(self, batch: list[Line]) -> Rows:
        """See `Work`."""
        return ask(self._client, batch, self._bulk.how)

    def take(self, batch: list[Line], result: Rows) -> None:
        """See `Work`."""
        self.tally.add(result, missing_is_fine=self._bulk.missing_is_fine)
        self._writer.write(result)
        for place, problem in sorted(result.problems.items()):
            if self._bulk.missing_is_fine and place in result.missing:
                continue
            record = {"line": batch[place].number, "error": problem}
            self._failures.write(json.dumps(record).encode() + b"\n")

    def finish(self) -> None:
        """See `Work`."""
        self._writer.finish()

    @property
    def state(self) -> dict[str, Json]:
        """See `Work`."""
        tally = self.tally
        return {
            "sources": {**tally.sources},
            "missing": tally.missing,
            "dimensions": tally.dimensions,
            "fingerprint": tally.fingerprint,
            "saved_device_s": tally.saved_device_s,
            "spent_device_s": tally.spent_device_s,
        }

    @property
    def note(self) -> str:
        """See `Work`."""
        tally = self.tally
        ratio = tally.hits / max(tally.inputs, 1)
        failed = f", {tally.failed:,} failed" if tally.failed else ""
        return f"{ratio:.1%} hits, {tally.saved_device_s:.1f} device-seconds saved{failed}"


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
