"""Which model's vectors a cache holds, agreed once and kept in Valkey. Pure.

The first embedder that a cache ever sees sets its space: fingerprint, dimensions, and the vectors
of a few canary texts. From then on a node serves hits of that space whether an embedder lives or
not, and takes new vectors only from embedders that compute the same.
"""

import base64
import hashlib
import json
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embedkeep.config import NodeConfig
from embedkeep.errors import InvalidResponse
from embedkeep.v1 import embedder_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What all vectors of a cache have in common."""

    fingerprint: str
    dimensions: int
    max_tokens: int
    normalized: bool
    """The model's pipeline ends with a normalization."""
    min_canary_cosine: float
    canaries: NDArray[np.float32] = field(repr=False, compare=False)
    """Shape (texts, dimensions); compared by cosine, since other devices round otherwise."""


def from_description(described: embedder_pb2.DescribeResponse) -> Space:
    """The space of one embedder.

    Raises:
        InvalidResponse: The description does not fit itself.
    """
    if not described.fingerprint or not described.dimensions:
        raise InvalidResponse("an embedder described itself without fingerprint or dimensions")
    if not described.canaries or len(described.canaries) % (4 * described.dimensions):
        raise InvalidResponse(
            f"an embedder's canaries are {len(described.canaries)} bytes: "
            f"no rows of {described.dimensions} float32"
        )
    return Space(
        fingerprint=described.fingerprint,
        dimensions=described.dimensions,
        max_tokens=described.max_tokens,
        normalized=described.normalized,
        min_canary_cosine=described.min_canary_cosine,
        canaries=np.frombuffer(described.canaries, "<f4").reshape(-1, described.dimensions),
    )


def drift(agreed: Space, seen: Space) -> str | None:
    """Why vectors of *seen* must not stand beside those of *agreed*; None: they may."""
    if agreed.fingerprint != seen.fingerprint:
        return (
            f"the embedder's fingerprint is {seen.fingerprint}, this cache was filled under "
            f"{agreed.fingerprint}: to accept the new model, give spec.model.revision a new value"
        )
    if agreed.canaries.shape != seen.canaries.shape:
        return f"canaries are {seen.canaries.shape}, {agreed.canaries.shape} expected"
    a, b = agreed.canaries.astype(np.float64), seen.canaries.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = np.sum(a * b, axis=1) / np.where(lengths == 0, 1, lengths)
    # Written so that a NaN is drift.
    if not (worst := float(cosines.min())) >= agreed.min_canary_cosine:
        return (
            f"under the same fingerprint a canary text lies at cosine {worst:.6f} from what was "
            f"agreed, {agreed.min_canary_cosine:g} is needed: the embedder's device or libraries "
            "compute something else"
        )
    return None


def agreement_key(config: NodeConfig) -> bytes:
    """Where in Valkey the agreement of this cache stands."""
    wanted = config.agreement or config.model.model_dump_json(exclude={"prompts"})
    return b"embedkeep:space:" + hashlib.sha256(wanted.encode()).hexdigest()[:32].encode()


def encode(space: Space) -> bytes:
    """As it stands in Valkey."""
    return json.dumps(
        {
            "fingerprint": space.fingerprint,
            "dimensions": space.dimensions,
            "max_tokens": space.max_tokens,
            "normalized": space.normalized,
            "min_canary_cosine": space.min_canary_cosine,
            "canaries": base64.b64encode(space.canaries.astype("<f4").tobytes()).decode(),
        }
    ).encode()


def decode(record: bytes) -> Space:
    """The inverse of `encode`.

    Raises:
        InvalidResponse: It is no agreement.
    """
    try:
        found = json.loads(record)
        dimensions = int(found["dimensions"])
        canaries = np.frombuffer(base64.b64decode(found["canaries"], validate=True), "<f4")
        return Space(
            fingerprint=str(found["fingerprint"]),
            dimensions=dimensions,
            max_tokens=int(found["max_tokens"]),
            normalized=bool(found["normalized"]),
            min_canary_cosine=float(found["min_canary_cosine"]),
            canaries=canaries.reshape(-1, dimensions),
        )
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InvalidResponse(f"the agreement in Valkey cannot be read: {error}") from error
