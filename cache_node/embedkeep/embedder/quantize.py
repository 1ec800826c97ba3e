"""An ONNX model's matrices as 8-bit integers, for ONNX Runtime on the CPU.

A product with constant weights is computed with integers. Weights are rounded once, with a scale
for each column. What comes in is rounded as it runs, with a scale and an offset for each row, that
is for each token; so a token's numbers hang on nothing else in its batch. Sums of integer products
are exact. Embedding tables, attention scores, sums and norms stay float32.

ONNX Runtime's own dynamic quantization has one scale for a whole run; what that costs, and what
the offset buys, stands in docs/decisions.md.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from embedkeep.embedder.fingerprint import content
from embedkeep.embedder.folder import FIELD
from embedkeep.embedder.onnx_files import kept, load
from embedkeep.errors import InvalidConfig

F32 = NDArray[np.float32]

QUANTIZER: Final = 1
"""Version of the arithmetic below; raised when it changes, for old files and old vectors are then
not used."""

BITS_KEY: Final = "embedkeep.weight_bits"
"""In the file's metadata: how many bits its integer weights have."""

_STEPS: Final = 255
"""From a row's smallest number to its largest."""
_SMALLEST_SCALE: Final = np.float32(1e-20)
"""For rows of one number only, whose range is 0: 0 / 0 has no integer that all CPUs agree on."""
_AXES_ARE_INPUT: Final = 18
"""The opset from which on ReduceMax and ReduceMin take their axes as an input."""


def as_int8(file: Path, work_dir: Path, *, made_of: Iterable[Path], bits: int) -> Path:
    """*file* with integer matrices, under *work_dir*, made now or before.

    Args:
        made_of: Files whose content decides that of *file*: names the result.
        bits: Of a weight; see `embedkeep.embedder.cpu.weight_bits`.

    Raises:
        InvalidConfig: It cannot be read, has no matrices, or *work_dir* cannot be written.
    """
    digest = hashlib.blake2b(f"int8 {QUANTIZER} {bits}".encode(), digest_size=16)
    for part in made_of:
        digest.update(content(part))
    return kept(work_dir, digest.hexdigest(), lambda: quantized(load(file), bits=bits))


def quantized(model: onnx.ModelProto, *, bits: int) -> onnx.ModelProto:
    """*model* with its matrices as integers; *model* itself is used up.

    One that was quantized here before stays as it is.

    Raises:
        InvalidConfig: It has no product with constant weights.
    """
    if any(known.key == BITS_KEY for known in model.metadata_props):
        return model
    rewriting = _Rewriting(model, most=2 ** (bits - 1) - 1)
    rewriting.run()
    helper.set_model_props(model, {BITS_KEY: str(bits)})
    return model


@dataclass(frozen=True, slots=True)
class _Product:
    """x @ matrix + bias."""

    x: str
    matrix: F32
    """Shape (in, out)."""
    bias: F32 | None
    output: str


@dataclass(frozen=True, slots=True)
class _Rounded:
    """The names of a tensor in integers: x = integers * scale + offset, by rows."""

    integers: str
    scale: str
    offset: str


class _Rewriting:
    """One model's graph, made anew node by node."""

    def __init__(self, model: onnx.ModelProto, *, most: int) -> None:
        self._model = model
        self._graph = graph = model.graph
        self._most = most
        """The largest integer weight."""
        self._opset = next(known.version for known in model.opset_import if not known.domain)
        self._given = {tensor.name: tensor for tensor in graph.initializer}
        self._readers = Counter(name for node in graph.node for name in node.input)
        self._readers.update(output.name for output in graph.output)
        self._sums = {
            name: node for node in graph.node if node.op_type == "Add" for name in node.input
        }
        self._absorbed: set[str] = set()
        """Sums that became a product's bias."""
        self._rows: dict[str, _Rounded] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def run(self) -> None:
        found = False
        for node in self._graph.node:
            if node.output[0] in self._absorbed:
                continue
            if (product := self._product(node)) is None:
                self._nodes.append(node)
                continue
            found = True
            self._multiply(product)
        if not found:
            raise InvalidConfig("the model has no matrices to make integers of", field=FIELD)
        nodes, graph = self._nodes, self._graph
        read = {name for node in nodes for name in node.input}
        given = [tensor for name, tensor in self._given.items() if name in read]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(nodes)
        graph.initializer.extend([*given, *self._constants.values()])
        if all(known.domain != "com.microsoft" for known in self._model.opset_import):
            self._model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    def _product(self, node: onnx.NodeProto) -> _Product | None:
        """*node* as a product with constant weights and what is added next; None: it is none."""
        if node.op_type == "MatMul":
            matrix, bias = self._weights(node.input[1], dimensions=2), None
        elif node.op_type == "Gemm":
            settings = {each.name: helper.get_attribute_value(each) for each in node.attribute}
            if settings.get("transA") or {settings.get(n, 1.0) for n in ("alpha", "beta")} != {1.0}:
                return None
            matrix = self._weights(node.input[1], dimensions=2)
            if matrix is not None and settings.get("transB"):
                matrix = matrix.T
            bias = self._weights(node.input[2], dimensions=1) if len(node.input) > 2 else None
            if len(node.input) > 2 and bias is None:
                return None
        else:
            return None
        if matrix is None:
            return None
        output = node.output[0]
        if bias is None and self._readers[output] == 1 and (then := self._sums.get(output)):
            other = then.input[0] if then.input[1] == output else then.input[1]
            bias = self._weights(other, dimensions=1)
            if bias is not None and len(bias) == matrix.shape[1]:
                output = then.output[0]
                self._absorbed.add(output)
            else:
                bias = None
        return _Product(node.input[0], matrix, bias, output)

    def _weights(self, name: str, *, dimensions: int) -> F32 | None:
        tensor = self._given.get(name)
        if tensor is None or tensor.data_type != TensorProto.FLOAT:
            return None
        return numpy_helper.to_array(tensor) if len(tensor.dims) == dimensions else None

    def _multiply(self, product: _Product) -> None:
        matrix, rows, name = product.matrix, self._rounded(product.x), product.output + ".int8"
        scales = np.abs(matrix).max(axis=0) / np.float32(self._most)
        scales[scales == 0] = 1
        integers = np.rint(matrix / scales).astype(np.int8)
        # What a row's offset adds: the same to all its numbers, so times each column's sum.
        offsets = (integers.sum(axis=0, dtype=np.int64) * scales.astype(np.float64)).astype(
            np.float32
        )
        inputs = [rows.integers, self._constant(name + ".weights", integers), self._one]
        inputs += [self._constant(name + ".scales", scales), self._zero]
        times = self._op("MatMulIntegerToFloat", inputs, name + ".product", "com.microsoft")
        times = self._op("Mul", [times, rows.scale], name + ".scaled")
        column_sums = self._constant(name + ".offsets", offsets)
        moved = self._op("Mul", [rows.offset, column_sums], name + ".offset")
        if product.bias is None:
            self._op("Add", [times, moved], product.output)
        else:
            bias = self._constant(name + ".bias", product.bias)
            self._op("Add", [self._op("Add", [times, moved], name + ".sum"), bias], product.output)

    def _rounded(self, x: str) -> _Rounded:
        """*x* in integers, once for all who multiply it."""
        if x not in self._rows:
            name = x + ".int8"
            least = self._by_row("ReduceMin", x, name + ".least")
            span = self._op("Sub", [self._by_row("ReduceMax", x, name + ".most"), least],
                            name + ".span")  # fmt: skip
            step = self._constant("int8.step", np.float32(1 / _STEPS))
            tiny = self._constant("int8.tiny", _SMALLEST_SCALE)
            scale = self._op("Mul", [span, step], name + ".step")
            scale = self._op("Max", [scale, tiny], name + ".scale")
            above = self._op("Sub", [x, least], name + ".above")
            steps = self._op("Reciprocal", [scale], name + ".steps")
            above = self._op("Mul", [above, steps], name + ".real")
            integers = self._op("QuantizeLinear", [above, self._one, self._zero], name + ".whole")
            self._rows[x] = _Rounded(integers, scale, least)
        return self._rows[x]

    def _by_row(self, kind: str, x: str, name: str) -> str:
        if self._opset < _AXES_ARE_INPUT:
            return self._op(kind, [x], name, axes=[-1], keepdims=1)
        return self._op(kind, [x, self._constant("int8.last", np.array([-1]))], name, keepdims=1)

    @property
    def _one(self) -> str:
        return self._constant("int8.one", np.float32(1))

    @property
    def _zero(self) -> str:
        return self._constant("int8.zero", np.uint8(0))

    def _constant(self, name: str, value: object) -> str:
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def _op(
        self, kind: str, inputs: list[str], output: str, domain: str = "", **settings: object
    ) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **settings))  # type: ignore[arg-type]  # the stub takes them for its name
        return output
