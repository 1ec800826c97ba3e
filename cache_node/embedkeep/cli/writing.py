"""Rows of `embedkeep embed` as JSON lines or .npy, written as they come."""

import errno
import json
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from embedkeep.cli.reading import Line
from embedkeep.errors import InvalidConfig


class Writer(ABC):
    """Takes batches in order, then is finished."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    @abstractmethod
    def write(
        self,
        lines: Sequence[Line],
        vectors: NDArray[np.float32],
        sources: Sequence[str],
        tokens: Sequence[int],
    ) -> None:
        """One batch.

        Args:
            vectors: Shape [n, d], float32; a failed row is NaN, and its source "none".
        """

    @abstractmethod
    def finish(self) -> None:
        """No more batches come."""


class JsonLines(Writer):
    """One object a line: line, text, vector, source, tokens. Failed inputs have none.

    Components are written with the fewest digits that read back as the same float32.

    Args:
        with_text: Put the text beside its vector.
    """

    def __init__(self, file: BinaryIO, *, with_text: bool) -> None:
        super().__init__(file)
        self._with_text = with_text

    def write(
        self,
        lines: Sequence[Line],
        vectors: NDArray[np.float32],
        sources: Sequence[str],
        tokens: Sequence[int],
    ) -> None:
        """See `Writer`."""
        for line, row, source, count in zip(lines, vectors, sources, tokens, strict=True):
            if source == "none":
                continue
            head = json.dumps({"line": line.number} | self._text(line))
            tail = json.dumps({"source": source, "tokens": count})
            components = ",".join(row.astype("U").tolist())
            record = f'{head[:-1]}, "vector": [{components}], {tail[1:]}\n'
            self._file.write(record.encode())
        self._file.flush()

    def finish(self) -> None:
        """See `Writer`."""

    def _text(self, line: Line) -> dict[str, str]:
        return {"text": line.text} if self._with_text else {}


class Npy(Writer):
    """A float32 array, one row an input; rows of failed inputs are NaN.

    How many rows come is known only at the end; the header has room to say it then.
    Source of the format: NumPy Enhancement Proposal 1.

    Args:
        file: Empty, and able to seek.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._rows = 0
        self._dimensions = 0

    def write(
        self,
        lines: Sequence[Line],
        vectors: NDArray[np.float32],
        sources: Sequence[str],
        tokens: Sequence[int],
    ) -> None:
        """See `Writer`."""
        del lines, sources, tokens
        if self._dimensions == 0 and vectors.shape[1]:
            self._dimensions = vectors.shape[1]
            self._header()
            # Inputs that failed before the width was known get their rows now.
            blank = np.full(self._dimensions, np.nan, dtype="<f4").tobytes()
            for _ in range(self._rows):
                self._file.write(blank)
        self._rows += len(vectors)
        if self._dimensions:
            rows = (
                vectors if vectors.shape[1] else np.full((len(vectors), self._dimensions), np.nan)
            )
            self._file.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())

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
def reporting(output: str) -> Iterator[None]:
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
        raise InvalidConfig(
            f"{name} cannot be written: {error.strerror}", field="--output"
        ) from error


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
