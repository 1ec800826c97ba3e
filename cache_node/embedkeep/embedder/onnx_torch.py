"""Any transformer to ONNX, by torch's exporter: for models that `onnx_bert` does not know."""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import onnx

from embedkeep.embedder.folder import FIELD, Folder
from embedkeep.embedder.onnx_files import NAME, load
from embedkeep.errors import InvalidConfig

try:
    import onnxscript  # noqa: F401  # torch asks for it only once it is half-way
    import torch
    from sentence_transformers import SentenceTransformer
except ImportError as error:
    raise InvalidConfig(
        f"only torch can export this model: embedkeep[embedder] must be installed ({error})",
        field=FIELD,
    ) from error

_OPSET: Final = 20
"""As `onnx_bert` has it."""
_INPUTS: Final = ("input_ids", "attention_mask")
_TRIAL: Final = (2, 7)
"""Texts and tokens that the exporter runs the model on. Neither is 1, which it would take for a
size that never changes."""


class _TokenVectors(torch.nn.Module):  # type: ignore[misc]  # torch is not looked into
    """A transformer with two inputs and one output."""

    def __init__(self, transformer: "torch.nn.Module") -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: "torch.Tensor", attention_mask: "torch.Tensor") -> "torch.Tensor":
        return self.transformer(input_ids=input_ids, attention_mask=attention_mask)[0]


def exported(folder: Folder) -> onnx.ModelProto:
    """The transformer, in float32: input_ids and attention_mask to last_hidden_state.

    Raises:
        InvalidConfig: The model cannot be loaded or exported; carries what torch says.
    """
    model = _load(folder)
    ids = torch.arange(_TRIAL[0] * _TRIAL[1]).reshape(_TRIAL)
    mask = torch.ones_like(ids)
    mask[1, _TRIAL[1] // 2 :] = 0
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    with tempfile.TemporaryDirectory(prefix="embedkeep-export-") as place:
        file = Path(place, NAME)
        try:
            with _quiet():
                torch.onnx.export(
                    model,
                    (ids, mask),
                    file,
                    input_names=_INPUTS,
                    output_names=["last_hidden_state"],
                    opset_version=_OPSET,
                    dynamic_shapes=(sizes, sizes),
                    dynamo=True,
                    verbose=False,
                )
        except Exception as error:  # the exporter's errors share no narrower base
            said = str(error).strip().splitlines() or [""]
            raise InvalidConfig(
                f"torch cannot export a model_type {folder.config.model_type!r}: "
                f"{type(error).__name__}: {said[0]}; use backend: torch",
                field=FIELD,
            ) from error
        return load(file)


def _load(folder: Folder) -> _TokenVectors:
    try:
        with _quiet():
            model = SentenceTransformer(
                str(folder.root),
                device="cpu",
                local_files_only=True,
                # Plain operators: the fused ones read their mask's values while they run.
                model_kwargs={"attn_implementation": "eager"},
            )
    except Exception as error:  # as above
        raise InvalidConfig(
            f"sentence-transformers cannot load {folder.root}: {error}", field=FIELD
        ) from error
    transformer = model[0].auto_model.float().eval()
    transformer.config.use_cache = False  # a decoder would hand out its keys and values too
    return _TokenVectors(transformer)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What torch and transformers tell of their own parts helps nobody here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
