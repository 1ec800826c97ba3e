"""Texts for `embedkeep embed`: from arguments or from lines, in batches of bounded size."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from embedkeep.errors import InvalidConfig

BATCH_INPUTS: Final = 512
"""Inputs a call: enough to keep a node busy, few enough to be answered in time."""
BATCH_CHARS: Final = 2 << 20
"""Characters of a batch, unless one text alone has more."""
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


def batches(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Group *lines*, in order, so that no more than one batch is held at a time."""
    batch: list[Line] = []
    size = 0
    for line in lines:
        if batch and (len(batch) == BATCH_INPUTS or size + len(line.text) > BATCH_CHARS):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += len(line.text)
    if batch:
        yield batch


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
