"""Rows of `embedkeep embed` as JSON lines or .npy, written as they come."""

import errno
import json
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from embedkeep.cli.asking import Rows
from embedkeep.client import Source
from embedkeep.errors import InvalidConfig


class Writer(ABC):
    """Takes batches in order, then is finished."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    @abstractmethod
    def write(self, rows: Rows) -> None:
        """One batch."""

    @abstractmethod
    def finish(self) -> None:
        """No more batches come."""


class JsonLines(Writer):
    """One object a line: line, text, vector, source, tokens. Failed inputs have none.

    Components are written with 9 digits, which read back as the same float32.

    Args:
        with_text: Put the text beside its vector.
        with_source: Say where it came from; a long run leaves it out, because it differs between a
            run that was interrupted and one that was not.
    """

    def __init__(self, file: BinaryIO, *, with_text: bool, with_source: bool = True) -> None:
        super().__init__(file)
        self._with_text = with_text
        self._with_source = with_source

    def write(self, rows: Rows) -> None:
        """See `Writer`."""
        for place, (line, row) in enumerate(zip(rows.lines, rows.vectors, strict=True)):
            if (source := rows.sources[place]) is Source.NONE:
                continue
            head: dict[str, object] = {"line": line.number}
            if self._with_text:
                head["text"] = line.text
            tail: dict[str, object] = {"source": source} if self._with_source else {}
            tail["tokens"] = rows.tokens[place]
            if place in rows.truncated:
                tail["truncated"] = True
            components = _components(row)
            record = f'{json.dumps(head)[:-1]}, "vector": [{components}], {json.dumps(tail)[1:]}\n'
            self._file.write(record.encode())
        self._file.flush()

    def finish(self) -> None:
        """See `Writer`."""


def _components(row: NDArray[np.float32]) -> str:
    """As JSON numbers: one call for all of a row takes a quarter of the time of one for each."""
    if row.all():
        return ",".join(["%.9g"] * len(row)) % tuple(row.tolist())
    # "%.9g" makes "-0" of -0.0, which reads back as an integer, without its sign.
    return ",".join(row.astype("U").tolist())


class Npy(Writer):
    """A float32 array, one row an input; rows of failed inputs are NaN.

    How many rows come is known only at the end; the header has room to say it then.
    Source of the format: NumPy Enhancement Proposal 1.

    Args:
        file: Able to seek. Empty, or at the end of *rows* rows of *dimensions*.
    """

    def __init__(self, file: BinaryIO, *, rows: int = 0, dimensions: int = 0) -> None:
        super().__init__(file)
        self._rows = rows
        self._dimensions = dimensions

    def write(self, rows: Rows) -> None:
        """See `Writer`."""
        vectors = rows.vectors
        if self._dimensions == 0 and vectors.shape[1]:
            self._dimensions = vectors.shape[1]
            self._header()
            # Inputs that failed before the width was known get their rows now.
            blank = np.full(self._dimensions, np.nan, dtype="<f4").tobytes()
            for _ in range(self._rows):
                self._file.write(blank)
        self._rows += len(vectors)
        if self._dimensions:
            if not vectors.shape[1]:
                vectors = np.full((len(vectors), self._dimensions), np.nan, np.float32)
            self._file.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())

    def finish(self) -> None:
        """See `Writer`."""
        self._file.seek(0)
        self._header()
        self._file.seek(0, 2)

    def _header(self) -> None:
        npy.write_array_header_1_0(
            self._file,
            {"descr": "<f4", "fortran_order": False, "shape": (self._rows, self._dimensions)},
        )


@contextmanager
def reporting(output: str, *, flag: str = "--output") -> Iterator[None]:
    """Name *output* where writing fails in the block, whose reading reports its own failures.

    Raises:
        InvalidConfig: It cannot be written: a folder, no right to, a full disk.
        BrokenPipeError: Its reader left, which is no fault.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        name = "standard output" if output == "-" else output
        raise InvalidConfig(f"{name} cannot be written: {error.strerror}", field=flag) from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that stands at *path* only once the block has ended well.

    Raises:
        OSError: It cannot be written; found out before the block where that is possible.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w+b") as file:
            yield file
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def spooled(stream: BinaryIO) -> Iterator[BinaryIO]:
    """A file on disk that is copied to *stream* once the block has ended well."""
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        shutil.copyfileobj(file, stream)
        stream.flush()
