"""How texts are sent to an upstream, and how its answers are read. Pure.

An answer is trusted in nothing: it is read whole, or refused as a whole with what does not fit.
Numbers that come as JSON are float64 and are rounded to the nearest float32, ties to even; base64
holds float32 as it is.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Final, Protocol

import numpy as np
from pydantic_core import from_json

from embedkeep.config import Protocol as ProtocolName
from embedkeep.config import Upstream
from embedkeep.embedder.backends import Vectors
from embedkeep.embedder.upstream.failures import Failure, Kind

MOST_DECIMALS: Final = 1 << 16
"""Numbers that are read from one answer of decimals: reading them keeps the interpreter for itself,
and everybody else waits. benchmarks/upstream_answers.py has how long."""

OPENAI_INPUTS: Final = 2048
OPENAI_TOKENS: Final = 300_000
"""Of a request, by OpenAI's reference of the embeddings API."""
TEI_INPUTS: Final = 32
"""What TEI takes at once unless it was started otherwise; /info says it."""


_MOST_NUMBER_BYTES: Final = 32
"""Of a component as JSON, with what parts it from the next."""
_MOST_FRAME_BYTES: Final = 64 << 10
"""Of an answer, beside its numbers."""


class Misfit(ValueError):
    """An answer that does not fit the question; the message says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Vectors that were read."""

    vectors: Vectors
    """Shape (inputs, dimensions); a row that is not finite stands as it came."""
    tokens: int
    """Of all inputs together; 0: not said."""
    decimals: bool = True
    """It came as numbers in JSON, not as base64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What an upstream says of itself, or what its protocol says for it."""

    max_inputs: int
    """A request."""
    max_tokens: int | None
    """A request. None: no limit that concerns a caller."""
    max_input_tokens: int = 0
    """An input; 0: not known."""
    dtype: str = ""
    identity: tuple[tuple[str, str], ...] = ()
    """What decides its vectors, as far as it says."""


class Wire(Protocol):
    """One protocol."""

    @property
    def path(self) -> str:
        """Appended to the base URL."""
        ...

    @property
    def info_path(self) -> str | None:
        """Where it says its terms. None: nowhere."""
        ...

    def terms(self, body: bytes) -> Terms:
        """Read what it says of itself.

        Args:
            body: Of the answer at `info_path`; empty where there is none.

        Raises:
            Misfit: It says nothing that can be used.
        """
        ...

    def body(self, texts: Sequence[str]) -> bytes:
        """What to post."""
        ...

    def read(self, body: bytes, headers: Mapping[str, str], *, inputs: int) -> Answer:
        """Read an answer to *inputs* texts.

        Raises:
            Misfit: It does not fit.
        """
        ...


def read(
    wire: Wire, headers: Mapping[str, str], body: bytes, *, inputs: int, dimensions: int | None
) -> Answer | Failure:
    """What an upstream answered, if it fits.

    Args:
        headers: Names in lower case, or found in any.
        dimensions: That it must have. None: any.
    """
    try:
        answer = wire.read(body, headers, inputs=inputs)
    except Misfit as error:
        return Failure(kind=Kind.NONSENSE, said=str(error))
    found = answer.vectors.shape[1]
    if dimensions is not None and found != dimensions:
        return Failure(kind=Kind.NONSENSE, said=f"{found} dimensions instead of {dimensions}")
    return answer


def most_answer_bytes(inputs: int, dimensions: int) -> int:
    """An answer that is larger fits no question."""
    return inputs * dimensions * _MOST_NUMBER_BYTES + _MOST_FRAME_BYTES


def wire(upstream: Upstream, *, model: str) -> Wire:
    """The protocol of *upstream*.

    Args:
        model: Name that callers know it by, and that is sent unless another is given.
    """
    if upstream.protocol is ProtocolName.TEI:
        return Tei()
    return OpenAI(model=upstream.model or model, dimensions=upstream.dimensions)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAI:
    """POST /v1/embeddings, as OpenAI and many others serve it."""

    model: str
    dimensions: int | None
    path: str = "/embeddings"
    info_path: str | None = None

    def terms(self, body: bytes) -> Terms:
        """What the protocol says: there is nowhere to ask."""
        del body
        asked = (("dimensions", str(self.dimensions)),) if self.dimensions is not None else ()
        return Terms(
            max_inputs=OPENAI_INPUTS,
            max_tokens=OPENAI_TOKENS,
            identity=(("model", self.model), *asked),
        )

    def body(self, texts: Sequence[str]) -> bytes:
        """All texts in one request; base64 is a quarter of the bytes, and no number is rounded."""
        asked: dict[str, object] = {
            "model": self.model,
            "input": list(texts),
            "encoding_format": "base64",
        }
        if self.dimensions is not None:
            asked["dimensions"] = self.dimensions
        return json.dumps(asked, ensure_ascii=False).encode()

    def read(self, body: bytes, headers: Mapping[str, str], *, inputs: int) -> Answer:
        """Rows are put in the order of their index."""
        del headers
        data = _json(body)
        items = data.get("data") if isinstance(data, dict) else None
        if not isinstance(items, list):
            raise Misfit("it is no object with a list `data`")
        if len(items) != inputs:
            raise Misfit(f"{len(items)} vectors for {inputs} inputs")
        rows: dict[int, object] = {}
        for item in items:
            index = item.get("index") if isinstance(item, dict) else None
            if type(index) is not int or not 0 <= index < inputs or index in rows:
                raise Misfit("each index from 0 must stand in it once")
            rows[index] = item.get("embedding")
        usage = data.get("usage") if isinstance(data, dict) else None
        return Answer(
            vectors=_vectors([rows[index] for index in range(inputs)]),
            tokens=_tokens(usage),
            decimals=not all(isinstance(row, str) for row in rows.values()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tei:
    """POST /embed of text-embeddings-inference.

    `truncate` cuts what is too long, as a model that runs here does; which inputs were cut it does
    not say. `normalize` is what its clients get unless they ask otherwise, and what its own
    OpenAI endpoint gives.
    """

    path: str = "/embed"
    info_path: str | None = "/info"

    def terms(self, body: bytes) -> Terms:
        """What /info says."""
        info = _json(body)
        if not isinstance(info, dict) or not isinstance(name := info.get("model_id"), str):
            raise Misfit("it is no object with a text `model_id`")
        kind = info.get("model_type")
        if not isinstance(kind, dict) or not kind.keys() & {"embedding", "Embedding"}:
            raise Misfit(f"{name} is no model that embeds")
        length = _count(info.get("max_input_length"))
        return Terms(
            max_inputs=_count(info.get("max_client_batch_size")) or TEI_INPUTS,
            max_tokens=None,
            max_input_tokens=length,
            dtype=str(info.get("model_dtype") or ""),
            identity=(
                ("model", name),
                ("sha", str(info.get("model_sha") or "")),
                ("dtype", str(info.get("model_dtype") or "")),
                ("type", json.dumps(kind, sort_keys=True)),
                ("length", str(length)),
                # A cache of ours that stands there says more than TEI does.
                ("fingerprint", str(info.get("fingerprint") or "")),
            ),
        )

    def body(self, texts: Sequence[str]) -> bytes:
        """All texts in one request."""
        asked = {"inputs": list(texts), "truncate": True, "normalize": True}
        return json.dumps(asked, ensure_ascii=False).encode()

    def read(self, body: bytes, headers: Mapping[str, str], *, inputs: int) -> Answer:
        """Rows in the order of the inputs; tokens stand in a header."""
        rows = _json(body)
        if not isinstance(rows, list):
            raise Misfit("it is no list")
        if len(rows) != inputs:
            raise Misfit(f"{len(rows)} vectors for {inputs} inputs")
        counted = headers.get("x-compute-tokens", "")
        known = counted.isascii() and counted.isdigit() and len(counted) < 16
        return Answer(vectors=_vectors(rows), tokens=int(counted) if known else 0)


def _json(body: bytes) -> object:
    try:
        # The same values as json.loads, in a quarter of its time for an answer of decimals.
        found: object = from_json(body)
    except ValueError as error:
        raise Misfit("it is no JSON") from error
    return found


def _vectors(rows: Sequence[object]) -> Vectors:
    if not rows:
        raise Misfit("it holds no vector")
    read = [_vector(row) for row in rows]
    lengths = {len(row) for row in read}
    if len(lengths) > 1:
        raise Misfit(f"vectors of {min(lengths)} and of {max(lengths)} dimensions in one answer")
    if lengths == {0}:
        raise Misfit("its vectors have no dimensions")
    return np.stack(read)


def _vector(row: object) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    if isinstance(row, str):
        try:
            data = base64.b64decode(row, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Misfit("a vector is no base64") from error
        if len(data) % 4:
            raise Misfit("a vector in base64 is no row of float32")
        return np.frombuffer(data, "<f4").astype(np.float32)
    if not isinstance(row, list):
        raise Misfit("a vector is neither a list nor base64")
    if not (kinds := {*map(type, row)}) <= {float, int, NoneType}:
        raise Misfit("a vector holds something that is no number")
    # A model that computed NaN has nothing else to write in JSON than null.
    numbers = [np.nan if each is None else each for each in row] if NoneType in kinds else row
    try:
        with np.errstate(over="ignore"):  # becomes infinity, which is refused as such
            return np.array(numbers, np.float64).astype(np.float32)
    except OverflowError as error:
        raise Misfit("a vector holds a number beyond float64") from error


def _tokens(usage: object) -> int:
    if not isinstance(usage, dict):
        return 0
    return _count(usage.get("total_tokens")) or _count(usage.get("prompt_tokens"))


def _count(value: object) -> int:
    return value if type(value) is int and 0 < value < 1 << 53 else 0
