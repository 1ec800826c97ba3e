"""What makes two embedders the same model: a hash of all that decides their vectors.

Taken into it: weights, tokenizer, the descriptions of the modules, each by its name inside the
model's folder and its content; the revision asked for, max_tokens, pooling, dtype and backend; and
of an int8 model how it was rounded, and what of the CPU decides its bits. Left out: paths, times,
and for all others machines. Equal content gives an equal fingerprint anywhere.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from embedkeep.config import Backend, Dtype
from embedkeep.embedder.folder import Dense, Folder

PIPELINE: Final = 1
"""Raised when this package itself begins to compute other vectors from the same files."""

_CHUNK_BYTES: Final = 1 << 20


def fingerprint(  # noqa: PLR0913  # each decides vectors
    folder: Folder,
    *,
    weights: Iterable[Path],
    revision: str | None,
    backend: Backend,
    dtype: Dtype,
    int8: Sequence[str] = (),
) -> str:
    """32 hexadecimal digits.

    Args:
        weights: The transformer's weight files that this backend reads.
        revision: As asked for; None: whatever the source holds.
        int8: What decides a quantized model's integers and kernels. Empty: it is not quantized.
    """
    dense = [step.weights for step in folder.steps if isinstance(step, Dense)]
    digest = _digest()
    for name, value in (
        ("pipeline", str(PIPELINE)),
        ("revision", revision or ""),
        ("max_tokens", str(folder.max_tokens)),
        ("pooling", folder.pooling),
        ("lower_case", str(folder.lower_case)),
        ("dtype", dtype),
        ("backend", backend),
        *((("int8", " ".join(int8)),) if int8 else ()),
    ):
        _field(digest, name.encode(), value.encode())
    for file in sorted({*folder.files, folder.tokenizer, *dense, *weights}):
        _field(digest, file.relative_to(folder.root).as_posix().encode(), content(file))
    return digest.hexdigest()


def of_upstream(identity: Iterable[tuple[str, str]], *, revision: str | None) -> str:
    """32 hexadecimal digits, for a model that somebody else runs.

    Where it is reached is none of it: whether another place computes the same, canaries tell.

    Args:
        identity: Names and values of what decides its vectors, as far as it is known.
        revision: As the resource says; its change is how a new model is accepted.
    """
    digest = _digest()
    for name, value in (("upstream", ""), ("revision", revision or ""), *identity):
        _field(digest, name.encode(), value.encode())
    return digest.hexdigest()


def _digest() -> "hashlib.blake2b":
    return hashlib.blake2b(digest_size=16, person=b"ek-model")


def content(file: Path) -> bytes:
    """32-byte hash of a file's bytes."""
    digest = hashlib.blake2b(digest_size=32)
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.digest()


def _field(digest: "hashlib.blake2b", name: bytes, value: bytes) -> None:
    """Length-prefixed, so that no two lists of fields share a byte string."""
    for part in (name, value):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
