"""Where the rows of one call come together, whatever order they arrive in."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedkeep.client.near import Identity, NearRow
from embedkeep.client.results import Embedded, InputFailed, Source
from embedkeep.client.wire import Answer, at_index
from embedkeep.errors import EmbedKeepError, InvalidResponse

_FLOAT32: Final = np.dtype("<f4")


class Gathered:
    """Rows, sources, tokens and errors of *count* inputs, by index."""

    def __init__(self, count: int) -> None:
        self.errors: dict[int, EmbedKeepError] = {}
        self.fingerprint = ""
        self.epoch = 0
        self.dimensions = 0
        """What the model has, where no row shows it; 0: unknown."""
        self._count = count
        self._vectors: NDArray[np.float32] | None = None
        self._sources = [Source.NONE] * count
        self._tokens = [0] * count
        self._truncated: set[int] = set()
        self._imported: set[int] = set()
        self._saved_device_s = 0.0
        self._spent_device_s = 0.0

    def missing(self) -> list[int]:
        """Inputs with neither a row nor an error."""
        if self._vectors is None and not self.errors:
            return list(range(self._count))
        return [
            index
            for index, source in enumerate(self._sources)
            if source is Source.NONE and index not in self.errors
        ]

    def put_near(self, rows: Mapping[int, NearRow]) -> None:
        """Rows from the near cache, at least one, by index."""
        block = np.frombuffer(b"".join(row.vector for row in rows.values()), dtype="<f4")
        block = block.reshape(len(rows), -1)
        self._room(block.shape[1])[list(rows)] = block
        for index, row in rows.items():
            self._sources[index] = Source.NEAR
            self._tokens[index] = row.tokens
            if row.truncated:
                self._truncated.add(index)
            if row.imported:
                self._imported.add(index)

    def put_answer(self, inputs: Sequence[int], answer: Answer) -> None:
        """What a node said about *inputs*; its failed rows are the caller's business.

        Raises:
            InvalidResponse: Another number of dimensions than the rows before.
        """
        self._saved_device_s += answer.saved_device_s
        self._spent_device_s += answer.spent_device_s
        self.epoch = max(self.epoch, answer.epoch)
        if len(answer.errors) == len(inputs):
            return
        self.fingerprint = answer.fingerprint
        if len(inputs) == self._count and not answer.errors:
            self._put_all(answer)  # the usual call: inputs ascend, so these are all in their order
            return
        good = [place for place in range(len(inputs)) if place not in answer.errors]
        self._room(answer.rows.shape[1])[[inputs[place] for place in good]] = answer.rows[good]
        for place in good:
            index = inputs[place]
            self._sources[index] = answer.sources[place]
            self._tokens[index] = answer.tokens[place]
            if place in answer.truncated:
                self._truncated.add(index)
            if place in answer.imported:
                self._imported.add(index)

    def _put_all(self, answer: Answer) -> None:
        """The same for an answer to the whole call; row by row it would take the longest part."""
        self._vectors = np.array(answer.rows)  # a copy: the array is the caller's own, to write to
        self._sources, self._tokens = list(answer.sources), list(answer.tokens)
        self._truncated, self._imported = set(answer.truncated), set(answer.imported)

    def put_fallback(self, inputs: Sequence[int], rows: NDArray[np.float32]) -> None:
        """Rows from the fallback.

        Raises:
            InvalidResponse: Another number of dimensions than the rows before.
        """
        self._room(rows.shape[1])[list(inputs)] = rows
        for index in inputs:
            self.errors.pop(index, None)
            self._sources[index] = Source.FALLBACK

    def near_rows(self, inputs: Sequence[int]) -> Iterator[tuple[int, NearRow]]:
        """Those of *inputs* that have a row, as the near cache keeps it."""
        if self._vectors is None:
            return
        for index in inputs:
            if self._sources[index] is not Source.NONE:
                yield (
                    index,
                    NearRow(
                        vector=self._vectors[index].tobytes(),
                        tokens=self._tokens[index],
                        truncated=index in self._truncated,
                        imported=index in self._imported,
                    ),
                )

    def result(self) -> Embedded:
        """All of it. Takes the rows away: called once."""
        vectors, self._vectors = self._vectors, None
        if vectors is None:
            vectors = np.full((self._count, self.dimensions), np.nan, dtype=np.float32)
        return Embedded(
            vectors=vectors,
            sources=tuple(self._sources),
            tokens=tuple(self._tokens),
            truncated=tuple(sorted(self._truncated)),
            imported=tuple(sorted(self._imported)),
            failed=tuple(
                InputFailed(index=index, error=at_index(self.errors[index], index))
                for index in sorted(self.errors)
            ),
            fingerprint=self.fingerprint,
            epoch=self.epoch,
            saved_device_s=self._saved_device_s,
            spent_device_s=self._spent_device_s,
        )

    def _room(self, dimensions: int) -> NDArray[np.float32]:
        """The array, made when the first row shows its width."""
        if self._vectors is None:
            self._vectors = np.full((self._count, dimensions), np.nan, dtype=np.float32)
        if self._vectors.shape[1] != dimensions:
            raise InvalidResponse(
                f"rows of {self._vectors.shape[1]} and of {dimensions} dimensions for one call"
            )
        return self._vectors


def near_answer(identity: Identity, rows: Sequence[NearRow]) -> Embedded:
    """The answer to a call that the near cache has all *rows* of, at least one."""
    # A bytearray and not bytes: the array is the caller's own, to write to.
    block = np.frombuffer(bytearray().join([row.vector for row in rows]), dtype=_FLOAT32)
    return Embedded(
        vectors=block.reshape(len(rows), -1),
        sources=(Source.NEAR,) * len(rows),
        tokens=tuple([row.tokens for row in rows]),
        truncated=tuple([index for index, row in enumerate(rows) if row.truncated]),
        imported=tuple([index for index, row in enumerate(rows) if row.imported]),
        failed=(),
        fingerprint=identity.fingerprint,
        epoch=identity.epoch,
        saved_device_s=0.0,
        spent_device_s=0.0,
    )
