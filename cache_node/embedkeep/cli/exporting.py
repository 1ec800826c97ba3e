"""`embedkeep export`: what a cache holds of some texts, into a file."""

import sys
from pathlib import Path
from typing import Unpack

import click

from embedkeep.cli.bulk import Bulk, run
from embedkeep.cli.connecting import PATIENCE_S, Reach, connected, naming, reaching
from embedkeep.client import CacheControl, Priority
from embedkeep.client.options import EmbedOptions
from embedkeep.errors import InvalidConfig

EPILOG = """
\b
Examples:
  embedkeep export --texts chunks.txt --output chunks.parquet
  embedkeep export --texts chunks.jsonl --field body --prompt document --output chunks.jsonl.vec

\b
Exit status: 0, all that is cached was written, be it nothing; 1, some texts are none (each is named
in OUTPUT.failures.jsonl) or the cache could not be reached; 2, the command line is wrong.
"""


class Flags(Reach):
    """The command's options."""

    texts: Path
    field: str
    output: Path
    format: str | None
    with_text: bool
    timeout: float
    restart: bool


@click.command("export", epilog=EPILOG)
@click.option(
    "--texts", type=click.Path(path_type=Path, dir_okay=False), required=True,
    help="Which texts: one a line; one JSON object a line where the name ends in .jsonl; a column "
    "where it ends in .parquet.",
)  # fmt: skip
@click.option(
    "--field", default="text", show_default=True, help="Where a line or row has its text."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE",
    help="Where to.",
)  # fmt: skip
@click.option(
    "--format", type=click.Choice(["jsonl", "parquet"]),
    help="line, text, vector, tokens, truncated of each text that is cached. "
    "[default: parquet where the output's name ends in .parquet, otherwise jsonl]",
)  # fmt: skip
@click.option("--with-text/--no-text", default=True, help="Put texts beside vectors. [default: on]")
@reaching
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=PATIENCE_S,
    show_default=True, metavar="SECONDS", help="Longest wait for one batch, with its retries.",
)  # fmt: skip
@click.option("--restart", is_flag=True, help="Begin anew, whatever an earlier run has done.")
def export(**flags: Unpack[Flags]) -> None:
    """Write what is cached for some texts. Nothing is computed.

    A cache keeps no texts, only keys made of them, so you say which texts you mean; how many of
    them are not cached is counted. `embedkeep import` reads what this writes, bit for bit.
    """
    output = flags["output"]
    if flags["format"] is None and output.suffix == ".npy":
        raise InvalidConfig(
            f"{output}: export writes Parquet or JSON lines; name it so, or give --format",
            field="--output",
        )
    task = Bulk(
        name="export",
        source=flags["texts"],
        field=flags["field"],
        output=output,
        format=flags["format"] or ("parquet" if output.suffix == ".parquet" else "jsonl"),
        with_text=flags["with_text"],
        how=EmbedOptions(
            model=flags["model"],
            prompt=flags["prompt"],
            priority=Priority.BULK,
            cache=CacheControl(only_if_cached=True),
            timeout_s=flags["timeout"],
        ),
        missing_is_fine=True,
    )
    # The texts are read as `embed` reads them, whose flag has another name.
    with (
        naming({"--file": "--texts"}),
        connected(flags, patience_s=flags["timeout"]) as client,
    ):
        tally, summary = run(task, client, restart=flags["restart"])
    click.echo(summary, err=True)
    if tally.failed:
        sys.exit(1)
