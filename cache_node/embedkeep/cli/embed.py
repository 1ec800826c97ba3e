"""`embedkeep embed`: texts in, vectors out."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, Final, TypedDict, Unpack

import click
import numpy as np
from numpy.typing import NDArray

from embedkeep.cli.finding import Target, target_of
from embedkeep.cli.reading import Line, batches, from_arguments, from_jsonl, from_lines
from embedkeep.cli.writing import JsonLines, Npy, Writer, replacing, reporting, spooled
from embedkeep.client import CacheControl, Client, Priority, Source
from embedkeep.client.options import EmbedOptions
from embedkeep.config import ClientTls
from embedkeep.errors import EmbedKeepError, InvalidConfig, InvalidInput, ModelDrift, Unavailable
from embedkeep.runs import default_root

EPILOG = """
\b
Examples:
  embedkeep embed "how do I reset my password?"
  embedkeep embed --address quickstart "how do I reset my password?" | jq .vector
  embedkeep embed --file questions.txt --output questions.npy
  embedkeep embed --file docs.jsonl --field body --prompt document --output docs.jsonl.vec
  cut -f2 log.tsv | embedkeep embed --only-if-cached --output known.npy
  embedkeep embed --address dns:///docs.prod.svc:50051 --api-key-file key --tls-ca ca.pem "hi"

\b
Exit status: 0, all inputs have a vector; 1, some have none (each is named on stderr) or the
cache could not be reached; 2, the command line is wrong.
"""


class Flags(TypedDict):
    """The command's options."""

    file: Path | None
    field: str
    output: str
    format: str | None
    with_text: bool
    address: str | None
    state_dir: Path | None
    api_key_file: Path | None
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    tls_name: str | None
    model: str | None
    prompt: str | None
    dimensions: int | None
    normalize: bool | None
    priority: str | None
    no_cache: bool
    only_if_cached: bool
    no_store: bool
    timeout: float


_CLOSED: Final = "Socket closed"
"""How gRPC says that the other side took the connection and then ended it."""

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("embed", epilog=EPILOG)
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option(
    "-f", "--file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Read texts from here instead: one a line, or one JSON object a line where the name ends "
    "in .jsonl. `-`, or neither TEXT nor --file: standard input, one a line.",
)  # fmt: skip
@click.option(
    "--field", default="text", show_default=True, help="Where a .jsonl line has its text."
)
@click.option(
    "-o", "--output", default="-", show_default=True, metavar="FILE",
    help="Where to. A file appears only once it is whole.",
)  # fmt: skip
@click.option(
    "--format", type=click.Choice(["jsonl", "npy"]),
    help="jsonl: one object a line with line, text, vector, source and tokens; failed inputs are "
    "left out. npy: float32 [inputs, dimensions]; rows of failed inputs are NaN. "
    "[default: npy where the output's name ends in .npy, otherwise jsonl]",
)  # fmt: skip
@click.option(
    "--with-text/--no-text", default=True, help="Put texts into JSON lines. [default: on]"
)
@click.option(
    "-a", "--address", envvar="EMBEDKEEP_ADDRESS", metavar="HOST:PORT[,...]|NAME",
    help="A node, several with commas between them, or the name of a cache that `embedkeep up` "
    "runs here. "
    "[default: the only one that runs here]",
)  # fmt: skip
@click.option(
    "--state-dir", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Where `embedkeep up` keeps its state.  [default: $XDG_STATE_HOME/embedkeep]",
)  # fmt: skip
@click.option(
    "--api-key-file", type=_FILE, envvar="EMBEDKEEP_API_KEY_FILE",
    help="The first word in it is your API key. Needed where the cache has tenants.",
)  # fmt: skip
@click.option("--tls-ca", type=_FILE, help="Authority to trust; turns TLS on.")
@click.option("--tls-cert", type=_FILE, help="Certificate to show, with --tls-key; turns TLS on.")
@click.option("--tls-key", type=_FILE, help="Its key.")
@click.option("--tls-name", help="Name in the node's certificate. [default: the host dialled]")
@click.option("--model", help="The resource's name, name:prompt, or the model's full name.")
@click.option("--prompt", help="Name of one of the resource's prompts, put before each text.")
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
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True,
    metavar="SECONDS", help="Longest wait for one batch, with its retries.",
)  # fmt: skip
def embed(texts: tuple[str, ...], **flags: Unpack[Flags]) -> None:
    """Embed texts through a cache.

    Lines are read, embedded and written in batches, so files may be of any length.
    """
    how = _how(flags, interactive=bool(texts))
    target = target_of(flags["address"], flags["state_dir"] or default_root())
    with (
        _hinting(target, flags),
        _lines(texts, flags) as lines,
        _writer(flags) as writer,
        Client(target.address, api_key=flags["api_key_file"], tls=_tls(target, flags)) as client,
    ):
        run = Run(client, writer, how)
        for batch in batches(lines):
            run.embed(batch)
        if not run.inputs:
            raise InvalidConfig("no texts: the input is empty", field="--file")
        writer.finish()
    if flags["output"] != "-":
        click.echo(run.summary(flags["output"]), err=True)
    if run.failed:
        sys.exit(1)


class Run:
    """Embeds batches and writes them, and counts.

    All rows of a run are made by one model.
    """

    def __init__(self, client: Client, writer: Writer, how: EmbedOptions) -> None:
        self._client = client
        self._writer = writer
        self._how = how
        self._sources: Counter[Source] = Counter()
        self._fingerprint = ""
        self._dimensions = 0

    @property
    def inputs(self) -> int:
        """All that were seen."""
        return self._sources.total()

    @property
    def failed(self) -> int:
        """Inputs without a vector."""
        return self._sources[Source.NONE]

    def embed(self, batch: list[Line]) -> None:
        """One batch; inputs that fail are named on stderr.

        Raises:
            EmbedKeepError: It failed as a whole.
        """
        for line in batch:
            if line.problem:
                _complain(line, line.problem)
        good = [place for place, line in enumerate(batch) if not line.problem]
        sources = [Source.NONE] * len(batch)
        tokens = [0] * len(batch)
        rows: NDArray[np.float32] = np.empty((0, 0), dtype=np.float32)
        if good:
            answer = self._client.embed_detailed([batch[place].text for place in good], **self._how)
            self._same_model(answer.fingerprint, batch[0])
            rows = answer.vectors
            for place, source, count in zip(good, answer.sources, answer.tokens, strict=True):
                sources[place], tokens[place] = source, count
            for failure in answer.failed:
                _complain(batch[good[failure.index]], _problem(failure.error))
        self._dimensions = max(self._dimensions, rows.shape[1])
        vectors = np.full((len(batch), self._dimensions), np.nan, dtype=np.float32)
        if rows.shape[1]:
            vectors[good] = rows
        self._sources.update(sources)
        self._writer.write(batch, vectors, sources, tokens)

    def summary(self, output: str) -> str:
        """What was done, in a line."""
        counts = ", ".join(
            f"{count:,} {'failed' if source is Source.NONE else f'from {source}'}"
            for source, count in self._sources.most_common()
            if count
        )
        return f"{output}: {self.inputs:,} inputs, {self._dimensions} dimensions; {counts}"

    def _same_model(self, fingerprint: str, line: Line) -> None:
        if self._fingerprint and fingerprint and fingerprint != self._fingerprint:
            raise ModelDrift(
                f"the model was replaced before line {line.number}: run this again, so that all "
                "vectors are of one model"
            )
        self._fingerprint = self._fingerprint or fingerprint


def _complain(line: Line, problem: str) -> None:
    click.echo(f"line {line.number}: {problem}", err=True)


def _problem(error: EmbedKeepError) -> str:
    """*error* without an index, which would be the one in its batch."""
    text = str(error)
    if isinstance(error, InvalidInput) and error.index is not None:
        text = text.removeprefix(f"input {error.index} ")
    return text


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
    with _opened(file) as stream:
        jsonl = file is not None and file.suffix == ".jsonl"
        yield from_jsonl(stream, flags["field"]) if jsonl else from_lines(stream)


def _opened(file: Path | None) -> AbstractContextManager[BinaryIO]:
    if file is None or str(file) == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return file.open("rb")
    except OSError as error:
        raise InvalidConfig(f"{file} cannot be read: {error.strerror}", field="--file") from error


@contextmanager
def _writer(flags: Flags) -> Iterator[Writer]:
    output = flags["output"]
    is_npy = (flags["format"] or ("npy" if output.endswith(".npy") else "jsonl")) == "npy"
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


@contextmanager
def _hinting(target: Target, flags: Flags) -> Iterator[None]:
    """Say what may be the reason when a plain connection is closed by the other side."""
    try:
        yield
    except Unavailable as error:
        if _tls(target, flags) is None and _CLOSED in str(error):
            raise Unavailable(f"{error}; if the node speaks TLS, give --tls-ca FILE") from error
        raise


def _tls(target: Target, flags: Flags) -> ClientTls | None:
    if not any((flags["tls_ca"], flags["tls_cert"], flags["tls_key"], flags["tls_name"])):
        return target.tls
    return ClientTls(
        ca_file=flags["tls_ca"],
        cert_file=flags["tls_cert"],
        key_file=flags["tls_key"],
        server_name=flags["tls_name"],
    )


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
        timeout_s=flags["timeout"],
    )
