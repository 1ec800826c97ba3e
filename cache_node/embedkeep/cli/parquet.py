"""Parquet, through pyarrow: texts and pairs from columns, rows into a file.

A Parquet file is whole only when its footer is written, so a long run appends Arrow record batches
(the IPC streaming format, which may end after any of them) and makes the Parquet file of them at
its end.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from embedkeep.cli import reading
from embedkeep.cli.asking import Rows
from embedkeep.cli.pairs import Pair, Pairs
from embedkeep.cli.reading import Line
from embedkeep.cli.writing import Writer
from embedkeep.client import Source
from embedkeep.errors import InvalidConfig

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise InvalidConfig(
        f"Parquet needs {error.name}, which is not installed: pip install 'embedkeep[parquet]'"
    ) from error

READ_ROWS: Final = 1024
GROUP_BYTES: Final = 64 << 20
"""Of vectors in a row group: what a reader holds at once."""


def opened(file: Path, *, columns: list[str], flag: str = "--file") -> Any:
    """A `pyarrow.parquet.ParquetFile` that has *columns*.

    Raises:
        InvalidConfig: It cannot be read, is none, or lacks one.
    """
    reading.opened(file, flag=flag).close()  # its errors are in better words
    try:
        found = pq.ParquetFile(file)
    except pa.ArrowException as error:
        raise InvalidConfig(f"{file} is no Parquet file: {error}", field=flag) from error
    names = found.schema_arrow.names
    for column in columns:
        if column not in names:
            raise InvalidConfig(
                f"{file} has no column {column!r}; it has {', '.join(names)}", field=flag
            )
    return found


def from_parquet(file: Path, field: str) -> Iterator[Line]:
    """The text in column *field* of each row."""
    source = opened(file, columns=[field])
    _expect_text(file, field, source.schema_arrow.field(field).type)
    number = 0
    for batch in source.iter_batches(batch_size=READ_ROWS, columns=[field]):
        for text in batch.column(0).to_pylist():
            number += 1
            if text is None:
                yield Line(number=number, problem=f"has no text in {field!r}")
            else:
                yield Line(number=number, text=text)


def count_rows(file: Path) -> int:
    """Rows of a Parquet file."""
    return int(opened(file, columns=[]).metadata.num_rows)


def _expect_text(file: Path, column: str, kind: Any) -> None:
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InvalidConfig(f"column {column!r} of {file} is {kind}, not text")


class ParquetPairs(Pairs):
    """A column of texts beside one of vectors: lists, of fixed size or not, of any float.

    Columns `tokens` and `truncated` are read too where they stand there.
    """

    def __init__(self, file: Path, *, text_field: str, vector_field: str) -> None:
        self._file, self._text, self._vector = file, text_field, vector_field
        schema = opened(file, columns=[text_field, vector_field], flag="FILE").schema_arrow
        _expect_text(file, text_field, schema.field(text_field).type)
        kind = schema.field(vector_field).type
        lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        if not (any(each(kind) for each in lists) and pa.types.is_floating(kind.value_type)):
            raise InvalidConfig(
                f"column {vector_field!r} of {file} is {kind}, not lists of floats",
                field="--vector-field",
            )
        self._more = [
            name
            for name, fits in (("tokens", pa.types.is_integer), ("truncated", pa.types.is_boolean))
            if name in schema.names and fits(schema.field(name).type)
        ]

    def total(self) -> int:
        """See `Pairs`."""
        return count_rows(self._file)

    def read(self, only: Collection[int] | None = None) -> Iterator[Pair]:
        """See `Pairs`."""
        columns = [self._text, self._vector, *self._more]
        source = opened(self._file, columns=columns, flag="FILE")
        number = 0
        for batch in source.iter_batches(batch_size=READ_ROWS, columns=columns):
            first, number = number + 1, number + batch.num_rows
            places = [at for at in range(batch.num_rows) if only is None or first + at in only]
            if not places:
                continue
            texts, vectors = batch.column(self._text), batch.column(self._vector)
            more = {name: batch.column(name) for name in self._more}
            for at in places:
                yield self._pair(
                    first + at, texts[at], vectors[at], {name: more[name][at] for name in more}
                )

    def _pair(self, number: int, text: Any, vector: Any, more: dict[str, Any]) -> Pair:
        place = f"{self._file} row {number}"
        if not text.is_valid or not vector.is_valid or vector.values.null_count:
            return Pair(number=number, place=place, problem="has no text or no vector")
        tokens = more["tokens"].as_py() if "tokens" in more else None
        return Pair(
            number=number,
            place=place,
            text=text.as_py(),
            vector=vector.values.to_numpy(zero_copy_only=False).astype(np.float32),
            tokens=tokens if tokens is not None and 0 <= tokens < 1 << 32 else 0,
            truncated="truncated" in more and more["truncated"].as_py() is True,
        )


class ArrowRows(Writer):
    """Columns line, text, vector, tokens, truncated, as an Arrow stream. Failed inputs have none.

    Args:
        file: Empty, or what an earlier one has written, at whose end it stands.
        dimensions: Of every vector.
        fingerprint: Of the model; kept in the schema's metadata.
    """

    def __init__(
        self, file: BinaryIO, *, dimensions: int, with_text: bool, fingerprint: str
    ) -> None:
        super().__init__(file)
        self._dimensions = dimensions
        text = [pa.field("text", pa.string())] if with_text else []
        self._schema = pa.schema(
            [
                pa.field("line", pa.int64()), *text,
                pa.field("vector", pa.list_(pa.float32(), dimensions)),
                pa.field("tokens", pa.uint32()), pa.field("truncated", pa.bool_()),
            ],
            metadata={"embedkeep.fingerprint": fingerprint},
        )  # fmt: skip
        if file.tell() == 0:
            file.write(self._schema.serialize())

    def write(self, rows: Rows) -> None:
        """See `Writer`."""
        places = [at for at, source in enumerate(rows.sources) if source is not Source.NONE]
        if not places:
            return
        flat = np.ascontiguousarray(rows.vectors[places], np.float32).reshape(-1)
        columns: dict[str, Any] = {
            "line": pa.array([rows.lines[at].number for at in places], pa.int64()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(flat), self._dimensions),
            "tokens": pa.array([rows.tokens[at] for at in places], pa.uint32()),
            "truncated": pa.array([at in rows.truncated for at in places], pa.bool_()),
        }
        if "text" in self._schema.names:
            columns["text"] = pa.array([rows.lines[at].text for at in places], pa.string())
        batch = pa.record_batch([columns[name] for name in self._schema.names], schema=self._schema)
        self._file.write(batch.serialize())

    def finish(self) -> None:
        """See `Writer`."""


def to_parquet(stream: Path, file: BinaryIO) -> None:
    """Write what an `ArrowRows` has left at *stream* as Parquet, in row groups of bounded size."""
    with pa.OSFile(str(stream), "rb") as source:
        reader = pa.ipc.open_stream(source)
        most = max(GROUP_BYTES // (4 * reader.schema.field("vector").type.list_size), 1)
        # A dictionary finds nothing in the bits of a vector.
        with pq.ParquetWriter(file, reader.schema, use_dictionary=False) as writer:
            held: list[Any] = []
            for batch in reader:
                held.append(batch)
                if sum(each.num_rows for each in held) >= most:
                    writer.write_table(pa.Table.from_batches(held), row_group_size=most)
                    held = []
            if held:
                writer.write_table(pa.Table.from_batches(held), row_group_size=most)
