"""How a stored vector is handed out: cut, scaled, encoded. Every view is made from one entry."""

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from embedkeep.errors import InvalidRequest


class Encoding(Enum):
    """Component type on the wire; values are numpy dtypes."""

    FLOAT32 = "<f4"
    FLOAT16 = "<f2"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a caller wants of each vector."""

    dimensions: int = 0
    """Keep so many components; 0: all."""
    normalize: bool | None = None
    """Scale to length 1. None: as the model does; uncut vectors then stay bit for bit."""
    encoding: Encoding = Encoding.FLOAT32


class TooManyDimensions(InvalidRequest):
    """More were asked for than the model has."""


def resolve(view: View, *, model_dimensions: int, model_normalizes: bool) -> View:
    """*view* with every choice made for a model.

    Raises:
        TooManyDimensions: More than the model has.
    """
    if view.dimensions > model_dimensions:
        raise TooManyDimensions(
            f"dimensions is {view.dimensions}; this model has {model_dimensions}: ask for 1 to "
            f"{model_dimensions}, or leave it out for all"
        )
    dimensions = view.dimensions or model_dimensions
    cut = dimensions < model_dimensions
    normalize = view.normalize
    if normalize is None:
        normalize = cut and model_normalizes
    elif normalize and model_normalizes and not cut:
        normalize = False  # it has length 1 already; scaling again would only change low bits
    return View(dimensions=dimensions, normalize=normalize, encoding=view.encoding)


def apply(view: View, rows: NDArray[np.float32]) -> NDArray[np.floating]:
    """*rows* as *view*: shape (n, view's dimensions), little-endian, contiguous.

    The same array where nothing is to be changed.

    Args:
        view: Resolved.
        rows: Shape (n, d), float32; rows of NaN stay NaN.

    A row of length 0 stays 0. Cut first: scaling first would leave a length below 1.
    Source of cutting: Kusupati et al. 2022, arXiv 2205.13147.
    """
    rows = rows[:, : view.dimensions]
    if view.normalize:
        wide = rows.astype(np.float64)
        length = np.linalg.norm(wide, axis=1, keepdims=True)
        rows = (wide / np.where(length == 0, 1, length)).astype(np.float32)
    return np.ascontiguousarray(rows, dtype=view.encoding.value)
