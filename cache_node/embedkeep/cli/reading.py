"""Texts: from arguments, lines, JSON lines or a Parquet column."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from embedkeep.errors import InvalidConfig

MAX_LINE_BYTES: Final = 4 << 20
"""A longer line is no text that a cache takes; it is passed over without being kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One input and where it stood."""

    number: int
    """From 1."""
    text: str = ""
    problem: str = ""
    """Why there is no text; empty: there is one."""

    @property
    def cost(self) -> int:
        """About what it takes of memory, bytes."""
        return len(self.text)

    @property
    def evidence(self) -> bytes:
        """What tells it from another line that might stand in its place."""
        return self.text.encode(errors="surrogatepass") or b"\0" + self.problem.encode()


def from_arguments(texts: Iterable[str]) -> Iterator[Line]:
    """One line for each argument."""
    for number, text in enumerate(texts, start=1):
        yield Line(number=number, text=text)


def from_lines(file: BinaryIO) -> Iterator[Line]:
    """Each line of a text file, as it is, without its end (LF or CR LF)."""
    for number, raw in enumerate(_raw_lines(file), start=1):
        yield _decoded(number, raw)


def from_jsonl(file: BinaryIO, field: str) -> Iterator[Line]:
    """The string at *field* of each line's JSON object."""
    for line in from_lines(file):
        if line.problem:
            yield line
            continue
        try:
            record = json.loads(line.text)
        except ValueError as error:
            yield Line(number=line.number, problem=f"is no JSON: {error}")
            continue
        text = record.get(field) if isinstance(record, dict) else None
        if isinstance(text, str):
            yield Line(number=line.number, text=text)
        else:
            yield Line(number=line.number, problem=f"has no string at {field!r} (see --field)")


def count_lines(file: BinaryIO) -> int:
    """How many lines `from_lines` yields, unless one is too long to be kept."""
    count, last = 0, b"\n"
    while block := file.read(1 << 20):
        count += block.count(b"\n")
        last = block[-1:]
    return count + (last != b"\n")


def lines_of(source: Path, field: str) -> Iterator[Line]:
    """The texts of a file, by the kind that its name says it is.

    Raises:
        InvalidConfig: It cannot be read, or has no such column.
    """
    if source.suffix == ".parquet":
        from embedkeep.cli.parquet import from_parquet  # noqa: PLC0415  # an extra

        yield from from_parquet(source, field)
        return
    with opened(source) as file:
        yield from from_jsonl(file, field) if source.suffix == ".jsonl" else from_lines(file)


def total_of(source: Path) -> int:
    """How many lines `lines_of` yields.

    Raises:
        InvalidConfig: It cannot be read.
    """
    if source.suffix == ".parquet":
        from embedkeep.cli.parquet import count_rows  # noqa: PLC0415  # an extra

        return count_rows(source)
    with opened(source) as file:
        return count_lines(file)


def opened(file: Path, *, flag: str = "--file") -> BinaryIO:
    """*file*, for reading.

    Raises:
        InvalidConfig: It cannot be read; names the *flag* that it was given with.
    """
    try:
        return file.open("rb")
    except OSError as error:
        raise InvalidConfig(f"{file} cannot be read: {error.strerror}", field=flag) from error


def _raw_lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Lines without their ends; None for one that is too long."""
    while raw := _read(file, MAX_LINE_BYTES + 2):
        if len(raw.rstrip(b"\r\n")) <= MAX_LINE_BYTES:
            yield raw.removesuffix(b"\n").removesuffix(b"\r")
            continue
        while raw and not raw.endswith(b"\n"):
            raw = _read(file, MAX_LINE_BYTES)
        yield None


def _read(file: BinaryIO, size: int) -> bytes:
    try:
        return file.readline(size)
    except OSError as error:
        raise InvalidConfig(f"cannot be read: {error.strerror}", field="--file") from error


def _decoded(number: int, raw: bytes | None) -> Line:
    if raw is None:
        return Line(number=number, problem=f"is longer than {MAX_LINE_BYTES} bytes")
    try:
        return Line(number=number, text=raw.decode())
    except UnicodeDecodeError as error:
        return Line(number=number, problem=f"is not UTF-8 (byte {error.start})")
