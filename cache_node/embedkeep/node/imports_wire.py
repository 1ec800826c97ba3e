"""Import on the wire, in terms of `imports`."""

import numpy as np

from embedkeep.errors import InvalidRequest, ModelDrift, code_of
from embedkeep.node.imports import Pairs, Taken
from embedkeep.node.space import Space
from embedkeep.v1 import cache_pb2

MESSAGE_CHARS = 300
"""Longest message of one row's error."""


def batch_of(request: cache_pb2.ImportRequest, *, prompt: str, space: Space) -> Pairs:
    """The request in our terms.

    Args:
        prompt: The one it names, resolved.

    Raises:
        InvalidRequest: A field does not fit the others, or the model; names it.
        ModelDrift: The vectors are said to be another model's.
    """
    count, dimensions = len(request.inputs), space.dimensions
    if request.fingerprint and request.fingerprint != space.fingerprint:
        raise ModelDrift(
            f"fingerprint: the vectors are {request.fingerprint}'s; this cache holds those of "
            f"{space.fingerprint}"
        )
    if request.dimensions != dimensions:
        raise InvalidRequest(
            f"dimensions: {request.dimensions} were given; this model has {dimensions}, and only "
            "its full output can be imported"
        )
    if len(request.vectors) != 4 * count * dimensions:
        raise InvalidRequest(
            f"vectors: {len(request.vectors)} bytes; {count} rows of {dimensions} float32 are "
            f"{4 * count * dimensions}"
        )
    if len(request.tokens) not in {0, count}:
        raise InvalidRequest(
            f"tokens: {len(request.tokens)} counts for {count} inputs; give one each, or none"
        )
    if any(index >= count for index in request.truncated):
        raise InvalidRequest(f"truncated: an index is out of range; there are {count} inputs")
    return Pairs(
        texts=list(request.inputs),
        prompt=prompt,
        vectors=np.frombuffer(request.vectors, "<f4").reshape(count, dimensions),
        tokens=list(request.tokens) or [0] * count,
        truncated=frozenset(request.truncated),
        overwrite=request.overwrite,
        dry_run=request.dry_run,
    )


def response_of(taken: Taken) -> cache_pb2.ImportResponse:
    """What became of a batch, for the wire."""
    return cache_pb2.ImportResponse(
        errors=[
            cache_pb2.InputError(
                index=index,
                code=code_of(error),
                reason=error.reason,
                message=str(error)[:MESSAGE_CHARS],
            )
            for index, error in sorted(taken.errors.items())
        ],
        stored=taken.stored,
        present=taken.present,
        withdrawn=taken.withdrawn,
        sampled=taken.sampled,
        worst_cosine=taken.worst_cosine,
        spent_device_seconds=taken.spent_ns / 1e9,
        fingerprint=taken.space.fingerprint,
        epoch=taken.epoch,
    )
