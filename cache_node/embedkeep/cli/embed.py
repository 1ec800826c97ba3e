"""`embedkeep embed`: texts in, vectors out."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, Final, Unpack

import click

from embedkeep.cli.asking import Tally, ask
from embedkeep.cli.bulk import Bulk, run
from embedkeep.cli.connecting import PATIENCE_S, Reach, connected, reaching
from embedkeep.cli.pipeline import Batches
from embedkeep.cli.reading import Line, from_arguments, from_lines, lines_of, opened
from embedkeep.cli.writing import JsonLines, Npy, Writer, replacing, reporting, spooled
from embedkeep.client import CacheControl, Priority
from embedkeep.client.options import EmbedOptions
from embedkeep.errors import InvalidConfig

BATCH_INPUTS: Final = 512
"""Inputs a call: enough to keep a node busy, few enough to be answered in time."""
TIMEOUT_S: Final = 60.0

EPILOG = """
\b
Examples:
  embedkeep embed "how do I reset my password?"
  embedkeep embed --address quickstart "how do I reset my password?" | jq .vector
  embedkeep embed --file questions.txt --output questions.npy
  embedkeep embed --bulk --file chunks.jsonl --field body --output chunks.parquet
  embedkeep embed --file docs.jsonl --field body --prompt document --output docs.jsonl.vec
  cut -f2 log.tsv | embedkeep embed --only-if-cached --output known.npy
  embedkeep embed --address dns:///docs.prod.svc:50051 --api-key-file key --tls-ca ca.pem "hi"

\b
Exit status: 0, all inputs have a vector; 1, some have none (each is named on stderr) or the
cache could not be reached; 2, the command line is wrong.
"""


class Flags(Reach):
    """The command's options."""

    file: Path | None
    field: str
    output: str
    format: str | None
    with_text: bool
    dimensions: int | None
    normalize: bool | None
    priority: str | None
    no_cache: bool
    only_if_cached: bool
    no_store: bool
    timeout: float | None
    bulk: bool
    restart: bool


@click.command("embed", epilog=EPILOG)
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option(
    "-f", "--file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Read texts from here instead: one a line; one JSON object a line where the name ends in "
    ".jsonl; a column where it ends in .parquet. `-`, or neither TEXT nor --file: standard input, "
    "one a line.",
)  # fmt: skip
@click.option(
    "--field", default="text", show_default=True, help="Where a JSON line or a row has its text."
)
@click.option(
    "-o", "--output", default="-", show_default=True, metavar="FILE",
    help="Where to. A file appears only once it is whole.",
)  # fmt: skip
@click.option(
    "--format", type=click.Choice(["jsonl", "npy", "parquet"]),
    help="jsonl: one object a line with line, text, vector, source and tokens (with --bulk no "
    "source); failed inputs are left out. npy: float32 [inputs, dimensions]; rows of failed inputs "
    "are NaN. parquet, with --bulk: line, text, vector, tokens, truncated; failed inputs are left "
    "out. [default: by the output's name: .npy, .parquet, otherwise jsonl]",
)  # fmt: skip
@click.option("--with-text/--no-text", default=True, help="Put texts beside vectors. [default: on]")
@reaching
@click.option(
    "--dimensions", type=click.IntRange(min=1), help="Keep the first so many (Matryoshka models)."
)
@click.option(
    "--normalize/--no-normalize", default=None, help="Scale to length 1. [default: as the model]"
)
@click.option(
    "--priority", type=click.Choice([each.value for each in Priority]),
    help="Who waits. [default: interactive for TEXT, bulk for lines]",
)  # fmt: skip
@click.option("--no-cache", is_flag=True, help="Compute anew, even what is cached.")
@click.option("--only-if-cached", is_flag=True, help="Compute nothing.")
@click.option("--no-store", is_flag=True, help="Keep nothing of this in the cache.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
    help=f"Longest wait for one batch, with its retries. [default: {TIMEOUT_S:g}; with --bulk "
    f"{PATIENCE_S:g}, so that a node that is overrun or restarts is waited for]",
)  # fmt: skip
@click.option(
    "--bulk", is_flag=True,
    help="For long files: --file to --output, resumable. OUTPUT.part grows, OUTPUT.checkpoint says "
    "how far it is, OUTPUT.failures.jsonl names what failed.",
)  # fmt: skip
@click.option("--restart", is_flag=True, help="With --bulk: begin anew, whatever is there already.")
def embed(texts: tuple[str, ...], **flags: Unpack[Flags]) -> None:
    """Embed texts through a cache.

    Lines are read, embedded and written in batches, so files may be of any length. For a long one,
    --bulk keeps several batches under way, shows how far it is, and can be stopped and killed: the
    same command then goes on where it was.
    """
    how = _how(flags, interactive=bool(texts))
    if flags["bulk"]:
        _bulk(texts, flags, how)
        return
    if flags["restart"]:
        raise InvalidConfig("is for --bulk", field="--restart")
    tally = Tally()
    with (
        connected(flags) as client,
        _lines(texts, flags) as lines,
        _writer(flags) as writer,
    ):
        batches = Batches(lines)
        while batch := batches.take(BATCH_INPUTS):
            rows = ask(client, batch, how)
            tally.add(rows)
            for place, problem in sorted(rows.problems.items()):
                click.echo(f"line {batch[place].number}: {problem}", err=True)
            writer.write(rows)
        if not tally.inputs:
            raise InvalidConfig("no texts: the input is empty", field="--file")
        writer.finish()
    if flags["output"] != "-":
        click.echo(f"{flags['output']}: {tally}", err=True)
    if tally.failed:
        sys.exit(1)


def _bulk(texts: tuple[str, ...], flags: Flags, how: EmbedOptions) -> None:
    file, output = flags["file"], flags["output"]
    if texts or file is None or str(file) == "-":
        raise InvalidConfig(
            "needs --file FILE: what comes another way cannot be gone on with", field="--bulk"
        )
    if output == "-":
        raise InvalidConfig(
            "needs --output FILE: a run goes on from what is in it already", field="--bulk"
        )
    task = Bulk(
        name="embed",
        source=file,
        field=flags["field"],
        output=Path(output),
        format=_format(flags),
        with_text=flags["with_text"],
        how=how,
    )
    patience_s = flags["timeout"] or PATIENCE_S
    with connected(flags, patience_s=patience_s) as client:
        tally, summary = run(task, client, restart=flags["restart"])
    click.echo(summary, err=True)
    if tally.failed:
        sys.exit(1)


@contextmanager
def _lines(texts: tuple[str, ...], flags: Flags) -> Iterator[Iterator[Line]]:
    file = flags["file"]
    if texts:
        if file is not None:
            raise InvalidConfig("give texts as arguments or with --file, not both", field="--file")
        yield from_arguments(texts)
        return
    if file is None and sys.stdin.isatty():
        raise InvalidConfig(
            "no texts: give them as arguments, with --file, or on standard input", field="TEXT"
        )
    if file is None or str(file) == "-":
        yield from_lines(sys.stdin.buffer)
    else:
        opened(file).close()  # found out before anything is written
        yield lines_of(file, flags["field"])


def _format(flags: Flags) -> str:
    suffix = Path(flags["output"]).suffix.removeprefix(".")
    return flags["format"] or (suffix if suffix in {"npy", "parquet"} else "jsonl")


@contextmanager
def _writer(flags: Flags) -> Iterator[Writer]:
    output, form = flags["output"], _format(flags)
    if form == "parquet":
        raise InvalidConfig("Parquet is written with --bulk", field="--format")
    is_npy = form == "npy"
    file: AbstractContextManager[BinaryIO]
    if output != "-":
        file = replacing(Path(output))
    elif not is_npy:
        file = nullcontext(sys.stdout.buffer)
    elif sys.stdout.isatty():
        raise InvalidConfig("npy is not for a terminal: give --output FILE.npy", field="--format")
    else:
        file = spooled(sys.stdout.buffer)
    with reporting(output), file as stream:
        yield Npy(stream) if is_npy else JsonLines(stream, with_text=flags["with_text"])


def _how(flags: Flags, *, interactive: bool) -> EmbedOptions:
    if flags["no_cache"] and flags["only_if_cached"]:
        raise InvalidConfig(
            "computes nothing, and --no-cache computes all: give one", field="--only-if-cached"
        )
    priority = flags["priority"] or (Priority.INTERACTIVE if interactive else Priority.BULK)
    return EmbedOptions(
        model=flags["model"],
        prompt=flags["prompt"],
        dimensions=flags["dimensions"],
        normalize=flags["normalize"],
        priority=Priority(priority),
        cache=CacheControl(
            no_store=flags["no_store"],
            no_cache=flags["no_cache"],
            only_if_cached=flags["only_if_cached"],
        ),
        timeout_s=flags["timeout"] or (PATIENCE_S if flags["bulk"] else TIMEOUT_S),
    )
