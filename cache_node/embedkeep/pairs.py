"""What vectors that were computed elsewhere must be, to stand for the model's own. Pure.

Used by the node, which decides, and by the command, which looks before it sends anything. Two
vectors of one text count as the same model's where their cosine is at least the space's bound and
their lengths differ by no more than that bound allows: for vectors of length 1, a cosine c is a
distance of sqrt(2 - 2c), and a length may differ by as much.
"""

import math

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
"""Shape (n, dimensions), float32."""


def slack(min_cosine: float) -> float:
    """By how much a length may differ, relative to it."""
    return math.sqrt(2 * max(1 - min_cosine, 0.0))


def faults(rows: Rows, *, normalized: bool, min_cosine: float) -> dict[int, str]:
    """Rows that the model cannot have returned, whatever their text; what is wrong, by index.

    Args:
        normalized: The model's vectors have length 1.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    found: dict[int, str] = {}
    for index in np.flatnonzero(~np.isfinite(lengths)).tolist():
        found[index] = "its vector holds NaN or infinity"
    for index in np.flatnonzero(lengths == 0).tolist():
        found[index] = "its vector has length 0"
    if normalized:
        off = np.isfinite(lengths) & (lengths > 0) & (np.abs(lengths - 1) > slack(min_cosine))
        for index in np.flatnonzero(off).tolist():
            found[index] = f"its vector has length {lengths[index]:.4g}; the model's have length 1"
    return found


def cosines(given: Rows, computed: Rows) -> NDArray[np.float64]:
    """Of each pair of rows, shape (n,); 0 where one has length 0, NaN where one has NaN."""
    a, b = given.astype(np.float64), computed.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found: NDArray[np.float64] = np.sum(a * b, axis=1) / np.where(lengths == 0, 1, lengths)
    return found


def differences(given: Rows, computed: Rows, *, min_cosine: float) -> dict[int, str]:
    """Rows of *given* that are not what the model returned now; how they differ, by index."""
    near = cosines(given, computed)
    wanted = np.linalg.norm(computed.astype(np.float64), axis=1)
    length = np.linalg.norm(given.astype(np.float64), axis=1)
    found: dict[int, str] = {}
    for index, cosine in enumerate(near.tolist()):
        if not cosine >= min_cosine:  # written so that NaN differs
            found[index] = (
                f"its vector lies at cosine {cosine:.6f} from what the model returns; at least "
                f"{min_cosine:g} is needed: was it made by this model, with this prompt?"
            )
        elif not abs(length[index] - wanted[index]) <= slack(min_cosine) * wanted[index]:
            found[index] = (
                f"its vector has length {length[index]:.6g}, and what the model returns "
                f"{wanted[index]:.6g}: was it scaled?"
            )
    return found
