"""sentence-transformers on torch: cuda, mps or cpu; float16 and bfloat16 on a GPU.

Computes a batch as it comes, shorter rows padded; unlike ONNX Runtime's float32, a vector's low
bits move with its batch's shape (within cosine 1e-6 in float32).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from embedkeep.config import Backend as BackendName
from embedkeep.config import Dtype, EmbedderConfig
from embedkeep.embedder.backends import (
    CPU_MOST_TOKENS,
    CPU_RUN_TOKENS,
    About,
    Tokens,
    Vectors,
    runs,
)
from embedkeep.embedder.fingerprint import fingerprint
from embedkeep.embedder.folder import FIELD, Folder
from embedkeep.embedder.tokens import Tokenize
from embedkeep.errors import InvalidConfig

try:
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar
except ImportError as error:
    raise InvalidConfig(
        f"torch needs embedkeep[embedder] installed ({error}); onnx does without",
        field="backend",
    ) from error

_DTYPES: Final = {
    Dtype.FLOAT32: torch.float32,
    Dtype.FLOAT16: torch.float16,
    Dtype.BFLOAT16: torch.bfloat16,
}
_RUN_COSTS: Final = {
    "cpu": {"run_tokens": CPU_RUN_TOKENS, "most_tokens": CPU_MOST_TOKENS},
    # Launching a model's kernels takes as long as computing thousands of tokens; memory for
    # attention is what limits a run.
    "gpu": {"run_tokens": 4096, "most_tokens": 65536},
}


class TorchBackend:
    """A sentence-transformers model. Implements `embedkeep.embedder.backends.Backend`.

    The transformer computes in the dtype asked for; pooling and what follows always in float32,
    so that a mean over thousands of tokens and the last scaling keep their bits.

    Raises:
        InvalidConfig: The device is not there, the dtype needs a GPU, or the model cannot be
            loaded.
    """

    def __init__(self, config: EmbedderConfig, folder: Folder) -> None:
        device = _device(config.device)
        if device == "cpu" and config.dtype is not Dtype.FLOAT32:
            raise InvalidConfig(f"{config.dtype} needs a GPU; on cpu: float32", field="dtype")
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        weights = folder.safetensors
        if not weights:
            raise InvalidConfig(f"{folder.root} has no model.safetensors", field=FIELD)
        self._tokenize = Tokenize(folder)
        self._device = device
        self._costs = _RUN_COSTS["cpu" if device == "cpu" else "gpu"]
        self._transformer, *self._tail = _load(folder, device)
        self._transformer.to(_DTYPES[config.dtype])
        self.about = About(
            fingerprint=fingerprint(
                folder,
                weights=weights,
                revision=config.model.revision,
                backend=BackendName.TORCH,
                dtype=config.dtype,
            ),
            dimensions=len(self._run([[0, 1]])[0]),
            max_tokens=folder.max_tokens,
            normalized=folder.normalized,
            backend=BackendName.TORCH,
            device=device,
            dtype=config.dtype,
        )

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """See `Backend.tokenize`."""
        return self._tokenize(texts)

    def detokenize(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """See `Backend.detokenize`."""
        return self._tokenize.texts_of(rows)

    def embed(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """See `Backend.embed`."""
        vectors = np.empty((len(rows), self.about.dimensions), np.float32)
        for run in runs([len(row) for row in rows], **self._costs):
            vectors[run] = self._run([rows[row] for row in run])
        return vectors

    def _run(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """One run of the model, shorter rows padded on the right."""
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
        mask = np.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        features = {
            "input_ids": torch.from_numpy(ids).to(self._device),
            "attention_mask": torch.from_numpy(mask).to(self._device),
        }
        with torch.inference_mode():
            features = self._transformer(features)
            features["token_embeddings"] = features["token_embeddings"].float()
            for module in self._tail:
                features = module(features)
            # Copying to the host also waits for the device, so that time is measured whole.
            vectors: Vectors = features["sentence_embedding"].cpu().numpy()
        return vectors


def _device(asked: str | None) -> str:
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    usable = [name for name, found in there.items() if found]
    if asked is None:
        return usable[0]
    if asked not in usable:
        raise InvalidConfig(
            f"{asked!r} is not there; usable here: {', '.join(usable)}", field="device"
        )
    return asked


def _load(folder: Folder, device: str) -> list[torch.nn.Module]:
    """The model's modules, in order, in float32, without dropout."""
    disable_progress_bar()  # logs go to files
    try:
        model = SentenceTransformer(str(folder.root), device=device, local_files_only=True)
    except Exception as error:  # the library's errors share no narrower base
        raise InvalidConfig(
            f"sentence-transformers cannot load {folder.root}: {error}", field=FIELD
        ) from error
    return [module.float().eval() for module in model]
