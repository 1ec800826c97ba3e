"""What follows the transformer, in numpy, one text at a time.

One text at a time and without its padding, so that a vector's bits depend on nothing else in its
batch.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from embedkeep.embedder.folder import FIELD, Dense, Folder, Pooling, Step
from embedkeep.errors import InvalidConfig

F32 = NDArray[np.float32]

_SMALLEST_NORM = np.float32(1e-12)
"""As torch.nn.functional.normalize: a zero vector stays one."""


def tail(folder: Folder) -> Callable[[F32], F32]:
    """The function from a text's token vectors, shape (tokens, hidden), to its vector.

    Raises:
        InvalidConfig: A Dense module's weights cannot be read.
    """
    pool = _POOL[folder.pooling]
    steps = [_step(step) for step in folder.steps]

    def apply(tokens: F32) -> F32:
        vector = pool(tokens)
        for step in steps:
            vector = step(vector)
        return vector

    return apply


def normalize(vector: F32) -> F32:
    """Scale to length 1; the sum of squares in float64, so that long vectors lose no bits."""
    norm = np.float32(np.sqrt(np.square(vector, dtype=np.float64).sum()))
    return vector / max(norm, _SMALLEST_NORM)


def _mean(tokens: F32) -> F32:
    # Row by row in order: axis 0 of a C-ordered array is no pairwise sum.
    total: F32 = tokens.sum(axis=0, dtype=np.float32)
    return total / np.float32(len(tokens))


def _max(tokens: F32) -> F32:
    highest: F32 = tokens.max(axis=0)
    return highest


_POOL: dict[Pooling, Callable[[F32], F32]] = {
    Pooling.MEAN: _mean,
    Pooling.CLS: lambda tokens: tokens[0].copy(),
    Pooling.MAX: _max,
    Pooling.LAST: lambda tokens: tokens[-1].copy(),
}


def _step(step: Step) -> Callable[[F32], F32]:
    if not isinstance(step, Dense):
        return normalize
    try:
        weights = load_file(step.weights)
        matrix = np.ascontiguousarray(weights["linear.weight"], dtype=np.float32)
    except (OSError, SafetensorError, KeyError) as error:
        raise InvalidConfig(f"{step.weights} cannot be read: {error}", field=FIELD) from error
    bias = np.asarray(weights.get("linear.bias", np.zeros(len(matrix))), dtype=np.float32)
    tanh = step.activation == "Tanh"

    def dense(vector: F32) -> F32:
        out: F32 = matrix @ vector + bias
        return np.tanh(out) if tanh else out

    return dense
