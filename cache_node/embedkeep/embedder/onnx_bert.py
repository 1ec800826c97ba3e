"""BERT-family safetensors to ONNX, without torch.

For models that bring no ONNX file. BERT, RoBERTa and XLM-R, MPNet and DistilBERT are one design
with other names: embeddings, then layers of self-attention and feed-forward, each followed by a
residual sum and a LayerNorm (Vaswani et al. 2017, arXiv 1706.03762; Devlin et al. 2018, arXiv
1810.04805). The graph holds standard operators of opset 20 only; ONNX Runtime fuses what it can.

What differs from training code, and changes no more than the last bits: the attention's
1/sqrt(head size) is multiplied into the query weights; the position and the (only) segment
vectors are added up beforehand; masked positions get -1e9 added, whose exponential is exactly 0.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors import SafetensorError
from safetensors.numpy import load_file

from embedkeep.embedder.fingerprint import content
from embedkeep.embedder.folder import FIELD, Folder, Transformer, positions
from embedkeep.embedder.onnx_files import kept
from embedkeep.errors import InvalidConfig

F32 = NDArray[np.float32]

CONVERTER: Final = 1
"""Version of the graph below; raised when it changes, so that old files are not used."""

_OPSET: Final = 20
"""The first with Gelu. ONNX Runtime knows it from 1.17 on."""
_IR_VERSION: Final = 10
_MASKED: Final = np.float32(-1e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Names:
    """Where a family keeps its weights."""

    layer: str = "encoder.layer.{}."
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    merge: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    output_norm: str = "output.LayerNorm"
    segments: bool = True
    """Has token_type_embeddings."""
    relative: str | None = None
    """Table of attention biases by distance."""


_BERT = _Names()
_FAMILIES: Mapping[str, _Names] = MappingProxyType(
    {
        "bert": _BERT,
        "roberta": _BERT,
        "xlm-roberta": _BERT,
        "camembert": _BERT,
        "mpnet": _Names(
            query="attention.attn.q",
            key="attention.attn.k",
            value="attention.attn.v",
            merge="attention.attn.o",
            attention_norm="attention.LayerNorm",
            segments=False,
            relative="encoder.relative_attention_bias.weight",
        ),
        "distilbert": _Names(
            layer="transformer.layer.{}.",
            query="attention.q_lin",
            key="attention.k_lin",
            value="attention.v_lin",
            merge="attention.out_lin",
            attention_norm="sa_layer_norm",
            up="ffn.lin1",
            down="ffn.lin2",
            output_norm="output_layer_norm",
            segments=False,
        ),
    }
)
_ACTIVATIONS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "gelu": {"op": "Gelu"},
        "gelu_new": {"op": "Gelu", "approximate": "tanh"},
        "gelu_pytorch_tanh": {"op": "Gelu", "approximate": "tanh"},
        "relu": {"op": "Relu"},
    }
)


def converted(folder: Folder, work_dir: Path) -> Path:
    """The model as an ONNX file under *work_dir*, converted now or before.

    Files are named by a hash of the weights and the configuration.

    Raises:
        InvalidConfig: The model's kind is unknown, its weights cannot be read, or *work_dir*
            cannot be written.
    """
    _check(folder)
    digest = hashlib.blake2b(f"onnx-bert {CONVERTER}".encode(), digest_size=16)
    for file in (folder.transformer / "config.json", *folder.safetensors):
        digest.update(content(file))
    return kept(work_dir, digest.hexdigest(), lambda: build(folder.config, load(folder)))


def load(folder: Folder) -> dict[str, F32]:
    """The transformer's weights as float32, without a leading name such as "bert."."""
    weights: dict[str, F32] = {}
    try:
        for file in folder.safetensors:
            weights.update(
                {name: np.asarray(w, dtype=np.float32) for name, w in load_file(file).items()}
            )
    except (OSError, SafetensorError, TypeError, KeyError) as error:
        raise InvalidConfig(
            f"{folder.safetensors[0]} cannot be read: {error}", field=FIELD
        ) from error
    probe = "embeddings.word_embeddings.weight"
    prefix = next((name[: -len(probe)] for name in weights if name.endswith(probe)), "")
    return {name.removeprefix(prefix): weight for name, weight in weights.items()}


def build(config: Transformer, weights: Mapping[str, F32]) -> onnx.ModelProto:
    """The graph: input_ids and attention_mask, int64 (batch, tokens), to last_hidden_state.

    Padding must be on the right: positions count from the first token.

    Raises:
        InvalidConfig: A weight is missing.
    """
    try:
        return _Graph(config, weights).build()
    except KeyError as error:
        raise InvalidConfig(f"the weights lack {error}", field=FIELD) from error


def unlike(folder: Folder) -> str | None:
    """Why the model is not written here, and what is; None: it is."""
    config = folder.config
    if config.model_type not in _FAMILIES:
        return (
            f"a model_type {config.model_type!r} is not converted here; works: "
            f"{', '.join(_FAMILIES)}"
        )
    plain = (config.position_embedding_type or "absolute") == "absolute" and not config.is_decoder
    activation = config.activation if config.dim else config.hidden_act
    if not plain or activation not in _ACTIVATIONS:
        return (
            f"position_embedding_type {config.position_embedding_type!r}, "
            f"is_decoder {config.is_decoder}, hidden_act {activation!r} is not converted here; "
            f"works: absolute, False, {', '.join(_ACTIVATIONS)}"
        )
    return None


def _check(folder: Folder) -> None:
    if (why := unlike(folder)) is not None:
        raise InvalidConfig(
            f"{folder.root} has no onnx/model.onnx, and {why}; or write one with "
            "`embedkeep embedder export`; or backend: torch",
            field=FIELD,
        )
    if not folder.safetensors:
        raise InvalidConfig(
            f"{folder.root} has neither model.safetensors nor onnx/model.onnx", field=FIELD
        )


def _buckets(length: int, *, buckets: int, most: int = 128) -> NDArray[np.int64]:
    """MPNet's bucket for each pair of positions, shape (length, length).

    One each for near distances, then by the distance's logarithm (Raffel et al. 2019, arXiv
    1910.10683, section 2.1).
    """
    distance = np.arange(length)[:, None] - np.arange(length)[None, :]
    half = buckets // 2
    exact = half // 2
    far = np.abs(distance)
    scale = np.log(np.maximum(far, 1).astype(np.float32) / exact) / math.log(most / exact)
    by_log = np.minimum(exact + (scale * (half - exact)).astype(np.int64), half - 1)
    made: NDArray[np.int64] = np.where(distance < 0, half, 0) + np.where(far < exact, far, by_log)
    return made


class _Graph:
    """One model's graph in the making."""

    def __init__(self, config: Transformer, weights: Mapping[str, F32]) -> None:
        self._config = config
        self._names = _FAMILIES[config.model_type]
        self._weights = weights
        self._hidden = config.hidden_size or config.dim
        self._layers = config.num_hidden_layers or config.n_layers
        self._heads = config.num_attention_heads or config.n_heads
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def build(self) -> onnx.ModelProto:
        head = self._hidden // self._heads
        self._constant("to_heads", np.array([0, 0, self._heads, head]))
        self._constant("from_heads", np.array([0, 0, self._hidden]))
        x = self._embeddings()
        bias = self._attention_bias()
        for number in range(self._layers):
            x = self._layer(x, bias, self._names.layer.format(number))
        self._op("Identity", [x], "last_hidden_state")
        shape = ["batch", "tokens"]
        graph = helper.make_graph(
            self._nodes,
            "transformer",
            [
                helper.make_tensor_value_info(name, TensorProto.INT64, shape)
                for name in ("input_ids", "attention_mask")
            ],
            [
                helper.make_tensor_value_info(
                    "last_hidden_state", TensorProto.FLOAT, [*shape, self._hidden]
                )
            ],
            list(self._constants.values()),
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
        )

    def _embeddings(self) -> str:
        table = self._weights["embeddings.position_embeddings.weight"]
        if (length := positions(self._config)) is not None:
            table = table[len(table) - length :]
        if self._names.segments:
            table = table + self._weights["embeddings.token_type_embeddings.weight"][0]
        words = self._constant("words", self._weights["embeddings.word_embeddings.weight"])
        x = self._op("Gather", [words, "input_ids"], "words_of")
        self._op("Shape", ["input_ids"], "length", start=1, end=2)
        places = [self._constant("positions", table), self._constant("zero", np.array([0]))]
        x = self._op("Add", [x, self._op("Slice", [*places, "length"], "positions_of")], "summed")
        return self._norm(x, "embeddings.LayerNorm")

    def _attention_bias(self) -> str:
        """What is added to the attention scores, shape (batch, 1 or heads, 1 or tokens, tokens)."""
        mask = self._op("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
        mask = self._op("Sub", [self._constant("one", np.float32(1)), mask], "unread")
        mask = self._op("Mul", [mask, self._constant("masked", _MASKED)], "mask_flat")
        axes = self._constant("head_and_row", np.array([1, 2]))
        mask = self._op("Unsqueeze", [mask, axes], "mask_bias")
        if self._names.relative is None:
            return mask
        table = self._weights[self._names.relative]
        length = positions(self._config) or len(table)
        buckets = _buckets(length, buckets=self._config.relative_attention_num_buckets)
        bias = self._constant("distances", table[buckets].transpose(2, 0, 1))
        self._op("Concat", ["length", "length"], "square", axis=0)
        start, axes = self._constant("corner", np.array([0, 0])), self._constant("rows", [1, 2])
        near = self._op("Slice", [bias, start, "square", axes], "distances_of")
        return self._op("Add", [mask, near], "bias")

    def _layer(self, x: str, bias: str, at: str) -> str:
        names = self._names
        scale = 1 / math.sqrt(self._hidden // self._heads)
        query = self._heads_of(self._dense(x, at + names.query, scale), [0, 2, 1, 3])
        key = self._heads_of(self._dense(x, at + names.key), [0, 2, 3, 1])
        value = self._heads_of(self._dense(x, at + names.value), [0, 2, 1, 3])
        scores = self._op("MatMul", [query, key], at + "scores")
        scores = self._op("Add", [scores, bias], at + "scores_read")
        shares = self._op("Softmax", [scores], at + "shares", axis=-1)
        mixed = self._op("MatMul", [shares, value], at + "mixed")
        mixed = self._op("Transpose", [mixed], at + "mixed_rows", perm=[0, 2, 1, 3])
        mixed = self._op("Reshape", [mixed, "from_heads"], at + "merged")
        x = self._add_norm(self._dense(mixed, at + names.merge), x, at + names.attention_norm)
        wide = self._dense(x, at + names.up)
        settings = dict(_ACTIVATIONS[self._activation])
        wide = self._op(settings.pop("op"), [wide], at + "activated", **settings)
        return self._add_norm(self._dense(wide, at + names.down), x, at + names.output_norm)

    @property
    def _activation(self) -> str:
        return self._config.activation if self._config.dim else self._config.hidden_act

    def _dense(self, x: str, name: str, scale: float = 1.0) -> str:
        matrix = self._constant(
            name + ".weight", self._weights[name + ".weight"].T * np.float32(scale)
        )
        bias = self._constant(name + ".bias", self._weights[name + ".bias"] * np.float32(scale))
        return self._op("Add", [self._op("MatMul", [x, matrix], name + ".product"), bias], name)

    def _heads_of(self, x: str, order: list[int]) -> str:
        split = self._op("Reshape", [x, "to_heads"], x + ".split")
        return self._op("Transpose", [split], x + ".heads", perm=order)

    def _add_norm(self, x: str, residual: str, name: str) -> str:
        return self._norm(self._op("Add", [x, residual], name + ".sum"), name)

    def _norm(self, x: str, name: str) -> str:
        weights = [
            self._constant(name + part, self._weights[name + part]) for part in (".weight", ".bias")
        ]
        epsilon = self._config.layer_norm_eps
        return self._op("LayerNormalization", [x, *weights], name, epsilon=epsilon)

    def _constant(self, name: str, value: object) -> str:
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def _op(
        self, kind: str, inputs: list[str], output: str, **attributes: float | str | list[int]
    ) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))  # type: ignore[arg-type]  # the stub takes them for its name and domain
        return output
