"""Matrices as integers: what they compute, and what is left as it was."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from embedkeep.embedder.onnx_files import save
from embedkeep.embedder.quantize import BITS_KEY, as_int8, quantized
from embedkeep.errors import InvalidConfig

F32 = NDArray[np.float32]
IN, OUT = 48, 20
DRAW = np.random.default_rng(4)
MATRIX = DRAW.normal(0, 0.2, (IN, OUT)).astype(np.float32)
BIAS = DRAW.normal(0, 1, OUT).astype(np.float32)


def a_graph(
    *nodes: onnx.NodeProto, opset: int = 20, shape: tuple[str | int, ...] = ("batch", "tokens", IN)
) -> onnx.ModelProto:
    """A model from x to y, with MATRIX, its transpose, BIAS, and two_biases for two rows."""
    constants = {"w": MATRIX, "wt": MATRIX.T.copy(), "b": BIAS, "two_biases": np.stack([BIAS] * 2)}
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in read],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(kind: str, inputs: str, output: str, **settings: float) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **settings)  # type: ignore[arg-type]  # the stub takes them for its name


def run(model: onnx.ModelProto, x: F32) -> F32:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(["y"], {"x": x})
    found: F32 = y
    return found


def kinds(model: onnx.ModelProto) -> set[str]:
    return {each.op_type for each in model.graph.node}


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_a_product_and_its_bias_are_computed_within_the_rounding(opset: int) -> None:
    model = a_graph(node("MatMul", "x w", "p"), node("Add", "b p", "y"), opset=opset)
    x = DRAW.normal(0.3, 1, (2, 5, IN)).astype(np.float32)
    x[1, 2, 7] = 60  # one number that is far larger than its row's others
    exact = run(model, x)

    made = quantized(model, bits=8)

    assert "MatMul" not in kinds(made)
    assert made.graph.node[-1].output[0] == "y"
    off = np.abs(run(made, x) - exact).max(axis=-1)
    # A step is 1/255 of a row's range; errors of IN products add up like their root.
    steps = (x.max(axis=-1) - x.min(axis=-1)) / 255
    bound = 3 * np.sqrt(IN) * (steps * 0.2 / 2 + 1.5 * np.abs(MATRIX).max() / 127 / 2)
    assert (off < bound).all()


def test_a_token_is_rounded_by_itself_whatever_stands_beside_it() -> None:
    made = quantized(a_graph(node("MatMul", "x w", "y")), bits=8)
    x = DRAW.normal(0, 1, (4, 9, IN)).astype(np.float32)
    x[3] *= 1000

    together = run(made, x)

    for text in range(4):
        for token in range(9):
            alone = run(made, x[text : text + 1, token : token + 1])
            assert alone.tobytes() == together[text, token].tobytes()


def test_rows_and_columns_of_one_number_are_finite() -> None:
    model = a_graph(node("MatMul", "x w", "p"), node("Add", "p b", "y"))
    flat = MATRIX.copy()
    flat[:, 3] = 0
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(flat, "w"))
    x = np.zeros((1, 3, IN), np.float32)
    x[0, 1], x[0, 2] = 5, -7

    found = run(quantized(model, bits=8), x)

    np.testing.assert_allclose(found[0, 0], BIAS, atol=1e-6)
    np.testing.assert_allclose(found, x @ flat + BIAS, atol=0.3)
    np.testing.assert_allclose(found[..., 3], np.broadcast_to(BIAS[3], (1, 3)), atol=1e-6)


def test_a_gemm_is_a_product_too() -> None:
    x = DRAW.normal(0, 1, (6, IN)).astype(np.float32)

    made = quantized(a_graph(node("Gemm", "x wt b", "y", transB=1), shape=("n", IN)), bits=8)

    assert "Gemm" not in kinds(made)
    np.testing.assert_allclose(run(made, x), x @ MATRIX + BIAS, atol=0.1)


@pytest.mark.parametrize(
    ("nodes", "stays"),
    [
        ([node("Gemm", "x wt b", "q", transB=1, alpha=0.5)], "Gemm"),
        ([node("Transpose", "x", "xt"), node("MatMul", "x xt", "q")], "MatMul"),
    ],
    ids=["a scaled Gemm", "a product of two inputs"],
)
def test_what_is_no_plain_product_stays_as_it_was(nodes: list[onnx.NodeProto], stays: str) -> None:
    model = a_graph(*nodes, node("MatMul", "x w", "y"), shape=("n", IN))

    assert stays in kinds(quantized(model, bits=8))


def test_a_sum_that_others_read_or_that_is_no_bias_stays_a_sum() -> None:
    model = a_graph(node("MatMul", "x w", "p"), node("Add", "p two_biases", "y"), shape=(2, IN))
    x = DRAW.normal(0, 1, (2, IN)).astype(np.float32)

    np.testing.assert_allclose(run(quantized(model, bits=8), x), x @ MATRIX + BIAS, atol=0.1)

    model = a_graph(
        node("MatMul", "x w", "p"), node("Add", "p b", "s"), node("Mul", "s p", "y"),
        shape=("n", IN),
    )  # fmt: skip
    exact = run(model, x)
    np.testing.assert_allclose(run(quantized(model, bits=8), x), exact, atol=0.3)


def test_products_of_one_tensor_round_it_once() -> None:
    model = a_graph(node("MatMul", "x w", "p"), node("MatMul", "x w", "q"), node("Mul", "p q", "y"))

    made = quantized(model, bits=8)

    assert [each.op_type for each in made.graph.node].count("QuantizeLinear") == 1


@pytest.mark.parametrize(("bits", "most"), [(8, 127), (7, 63)])
def test_weights_have_the_bits_asked_for_and_the_file_says_so(bits: int, most: int) -> None:
    made = quantized(a_graph(node("MatMul", "x w", "y")), bits=bits)

    weights = [
        numpy_helper.to_array(tensor)
        for tensor in made.graph.initializer
        if tensor.data_type == TensorProto.INT8
    ]
    assert [np.abs(each.astype(int)).max() for each in weights] == [most]
    assert {each.key: each.value for each in made.metadata_props} == {BITS_KEY: str(bits)}
    assert "w" not in {tensor.name for tensor in made.graph.initializer}


def test_a_model_without_matrices_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="no matrices to make integers of"):
        quantized(a_graph(node("Mul", "x x", "y")), bits=8)


def test_a_file_is_kept_by_what_it_was_made_of_and_how(tmp_path: Path) -> None:
    file, work = tmp_path / "model.onnx", tmp_path / "work"
    save(a_graph(node("MatMul", "x w", "y")), file)

    first = as_int8(file, work, made_of=[file], bits=8)
    written = first.stat().st_mtime_ns
    again = as_int8(file, work, made_of=[file], bits=8)
    seven = as_int8(file, work, made_of=[file], bits=7)

    assert (again, again.stat().st_mtime_ns) == (first, written)
    assert seven != first
    assert sorted(work.iterdir()) == sorted([first.parent, seven.parent])


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"no model at all")

    with pytest.raises(InvalidConfig, match=r"model\.onnx cannot be read"):
        as_int8(file, tmp_path / "work", made_of=[file], bits=8)

    assert list((tmp_path / "work").iterdir()) == []
