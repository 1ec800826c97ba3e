"""`embedkeep import`: vectors that exist already, into a cache."""

import itertools
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Unpack

import click
import numpy as np

from embedkeep import pairs as rules
from embedkeep.cli import langchain_store
from embedkeep.cli.connecting import PATIENCE_S, Reach, connected, reaching
from embedkeep.cli.journal import Json, keeping
from embedkeep.cli.longrun import FAILURES, go
from embedkeep.cli.pairs import Chained, JsonPairs, Pairs, StorePairs
from embedkeep.cli.progress import duration
from embedkeep.cli.sending import Sending, problem_of, vector_in
from embedkeep.cli.writing import reporting
from embedkeep.client import CacheControl, CacheInfo, Client, Priority
from embedkeep.client.options import EmbedOptions, ImportOptions
from embedkeep.errors import (
    EmbedderUnavailable,
    InvalidConfig,
    InvalidRequest,
    InvalidVector,
)

EPILOG = """
\b
Examples:
  embedkeep import --prompt document chunks.parquet
  embedkeep import --text-field body --vector-field embedding chunks.jsonl
  embedkeep import --dry-run chunks.jsonl
  embedkeep import --langchain-store ./cache --namespace my-model --texts chunks.txt
  embedkeep import --langchain-store redis://localhost:6379 --key-encoder sha256 --texts chunks.txt

\b
Exit status: 0, every pair is in the cache; 1, some are not (FILE.import.failures.jsonl names
them) or the cache could not be reached; 2, the vectors are not the model's, the cache takes no
imports, or the command line is wrong.
"""

SAMPLE: Final = 64
"""Texts compared before anything is sent: all of another model are found by one; if 1 in 20 is
wrong, 64 miss it once in 27 times."""
INFO_S: Final = 30.0
"""How long the first answer may take."""

_FILE = click.Path(path_type=Path, dir_okay=False)


class Flags(Reach):
    """The command's options."""

    text_field: str
    vector_field: str
    langchain_store: str | None
    texts: Path | None
    field: str
    namespace: str
    store_namespace: str
    key_encoder: str
    sample: int
    dry_run: bool
    overwrite: bool
    timeout: float
    restart: bool


@click.command("import", epilog=EPILOG)
@click.argument("files", nargs=-1, type=_FILE, metavar="[FILE]...")
@click.option(
    "--text-field", default="text", show_default=True, help="Where a line or row has its text."
)
@click.option(
    "--vector-field", default="vector", show_default=True,
    help="Where it has its vector: a list of numbers; in JSON also base64 of float32.",
)  # fmt: skip
@click.option(
    "--langchain-store", metavar="FOLDER|redis://...",
    help="What LangChain's CacheBackedEmbeddings has written: a LocalFileStore's folder, or a "
    "RedisStore's server. It holds hashes of texts only: --texts gives the texts.",
)  # fmt: skip
@click.option("--texts", type=_FILE, help="Texts to look up in the store: as --file of `embed`.")
@click.option("--field", default="text", show_default=True, help="Where --texts has its texts.")
@click.option("--namespace", default="", help="The namespace given to CacheBackedEmbeddings.")
@click.option("--store-namespace", default="", help="The namespace given to RedisStore.")
@click.option(
    "--key-encoder", type=click.Choice([*langchain_store.HASHES]), default="sha1",
    show_default=True, help="The key_encoder given to CacheBackedEmbeddings.",
)  # fmt: skip
@reaching
@click.option(
    "--sample", type=click.IntRange(min=1), default=SAMPLE, show_default=True,
    help="Pairs compared with the model before a single one is sent. Nodes draw their own beside.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Check all, keep nothing.")
@click.option("--overwrite", is_flag=True, help="Replace what is cached already.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=PATIENCE_S,
    show_default=True, metavar="SECONDS", help="Longest wait for one batch, with its retries.",
)  # fmt: skip
@click.option("--restart", is_flag=True, help="Begin anew, whatever an earlier run has done.")
def import_(files: tuple[Path, ...], **flags: Unpack[Flags]) -> None:
    """Import vectors that the model has returned elsewhere.

    FILE is JSON lines, or Parquet where its name ends in .parquet. A random sample is compared
    with the model before anything is sent, and the node compares more as it goes: vectors of
    another model, another prompt or another length are refused. The cache's resource must allow
    imports (spec.security.imports). What is cached already stays.

    A run that is stopped or killed goes on where it was when the same command is given again.
    """
    with (
        _pairs(files, flags) as pairs,
        connected(flags, patience_s=flags["timeout"]) as client,
    ):
        base = flags["texts"] if flags["langchain_store"] else files[0]
        assert base is not None  # noqa: S101  # `_pairs` has seen to it
        failed = _run(pairs, client, flags, base)
    if failed:
        sys.exit(1)


def _run(pairs: Pairs, client: Client, flags: Flags, base: Path) -> int:
    """Compare, then import; returns how many pairs failed."""
    if (total := pairs.total()) == 0:
        raise InvalidConfig("no pairs: the input is empty", field="FILE")
    info = client.info(timeout_s=INFO_S)
    if not info.imports:
        raise InvalidRequest(
            f"the cache of {info.model} takes no imports; spec.security.imports: true allows them"
        )
    if not info.dimensions:
        raise EmbedderUnavailable(
            "no embedder was seen yet: try again when `embedkeep status` shows one"
        )
    compared, worst = spot_check(pairs, client, info, flags, total)
    click.echo(
        f"{compared:,} of {total:,} compared with the model: worst cosine {worst:.7f}", err=True
    )
    base = base.with_name(f"{base.name}.import")
    with (
        reporting(str(base), flag="FILE"),
        keeping(base, (FAILURES,), _task(flags, info), restart=flags["restart"]) as journal,
    ):
        how = ImportOptions(
            model=flags["model"], prompt=flags["prompt"], fingerprint=info.fingerprint,
            overwrite=flags["overwrite"], dry_run=flags["dry_run"], timeout_s=flags["timeout"],
        )  # fmt: skip
        work = Sending(client, info, how, journal)
        seconds = go(pairs.read(), work, journal, total=total, abandon=client.close)
        journal.finish()
    named = f" (named in {base}.{FAILURES})" if work.counts.failed else ""
    what = "checked" if flags["dry_run"] else "imported"
    click.echo(f"{what} in {duration(seconds)}: {work.counts}{named}", err=True)
    return work.counts.failed


def spot_check(
    pairs: Pairs, client: Client, info: CacheInfo, flags: Flags, total: int
) -> tuple[int, float]:
    """Compare a random sample with the model.

    Returns:
        How many were compared, and the worst cosine.

    Raises:
        InvalidVector: One differs; says which, and how many more.
        InvalidConfig: There is no pair that could be compared.
    """
    wanted = frozenset(
        random.SystemRandom().sample(range(1, total + 1), min(flags["sample"], total))
    )
    drawn = [pair for pair in pairs.read(wanted) if not problem_of(pair, info)]
    if not drawn:  # most of the texts are not in the store, or most lines are broken
        sound = (pair for pair in pairs.read() if not problem_of(pair, info))
        drawn = list(itertools.islice(sound, flags["sample"]))
    if not drawn:
        one = next(pairs.read())
        raise InvalidConfig(
            f"not one pair that could be the model's: {one.place}: {problem_of(one, info)}",
            field="FILE",
        )
    how = EmbedOptions(
        model=flags["model"], prompt=flags["prompt"], priority=Priority.BULK,
        cache=CacheControl(no_cache=True, no_store=True), timeout_s=flags["timeout"],
    )  # fmt: skip
    answer = client.embed_detailed([pair.text for pair in drawn], **how)
    failed = {failure.index for failure in answer.failed}
    rows = [at for at in range(len(drawn)) if at not in failed]
    if not rows:
        answer.raise_failures()
    given = np.stack([vector_in(drawn[at]) for at in rows])
    computed = answer.vectors[rows]
    wrong = rules.differences(given, computed, min_cosine=info.min_cosine)
    if wrong:
        first = min(wrong)
        raise InvalidVector(
            f"{drawn[rows[first]].place}: {wrong[first]} {len(wrong)} of {len(rows)} compared "
            f"differ from {info.model}. Nothing was sent"
        )
    return len(rows), float(rules.cosines(given, computed).min())


def _task(flags: Flags, info: CacheInfo) -> dict[str, Json]:
    """What decides what is in the cache afterwards, beside the input."""
    return {
        "address": flags["address"],
        "model": flags["model"],
        "model's fingerprint": info.fingerprint,
        "epoch (which invalidating everything moves)": info.epoch,
        "prompt": flags["prompt"],
        "text field": flags["text_field"],
        "vector field": flags["vector_field"],
        "store": flags["langchain_store"] is not None,
        "overwrite": flags["overwrite"],
        "dry run": flags["dry_run"],
    }


@contextmanager
def _pairs(files: tuple[Path, ...], flags: Flags) -> Iterator[Pairs]:
    where, texts = flags["langchain_store"], flags["texts"]
    if where is None:
        if texts is not None:
            raise InvalidConfig("is for --langchain-store", field="--texts")
        if not files:
            raise InvalidConfig("give files of pairs, or --langchain-store", field="FILE")
        yield Chained([_file(file, flags) for file in files])
        return
    if files:
        raise InvalidConfig("give files or --langchain-store, not both", field="FILE")
    if texts is None:
        raise InvalidConfig(
            "is needed: such a store holds hashes of texts, not the texts", field="--texts"
        )
    with langchain_store.opened(where, namespace=flags["store_namespace"]) as store:
        yield StorePairs(
            texts,
            store,
            field=flags["field"],
            namespace=flags["namespace"],
            encoder=flags["key_encoder"],
        )


def _file(file: Path, flags: Flags) -> Pairs:
    if file.suffix == ".parquet":
        from embedkeep.cli.parquet import ParquetPairs  # noqa: PLC0415  # an extra

        return ParquetPairs(
            file, text_field=flags["text_field"], vector_field=flags["vector_field"]
        )
    return JsonPairs(file, text_field=flags["text_field"], vector_field=flags["vector_field"])
