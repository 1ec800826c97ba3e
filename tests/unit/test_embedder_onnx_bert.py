"""The converter: its files, its families, its limits. Its numbers are checked against torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from embedkeep.embedder import folder, onnx_bert, onnx_files
from embedkeep.embedder.folder import Folder
from embedkeep.errors import InvalidConfig

HIDDEN, LAYERS, HEADS, WIDE, WORDS, LENGTH = 8, 2, 2, 16, 50, 12
SIZES = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": LENGTH,
    "layer_norm_eps": 1e-5,
}


def bert_weights(prefix: str = "") -> dict[str, NDArray[np.float32]]:
    draw = np.random.default_rng(3)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (WORDS, HIDDEN),
        "embeddings.position_embeddings.weight": (LENGTH, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
    }
    norms = ["embeddings.LayerNorm"]
    for n in range(LAYERS):
        at = f"encoder.layer.{n}."
        dense = {
            "attention.self.query": (HIDDEN, HIDDEN),
            "attention.self.key": (HIDDEN, HIDDEN),
            "attention.self.value": (HIDDEN, HIDDEN),
            "attention.output.dense": (HIDDEN, HIDDEN),
            "intermediate.dense": (WIDE, HIDDEN),
            "output.dense": (HIDDEN, WIDE),
        }
        for name, shape in dense.items():
            shapes[f"{at}{name}.weight"], shapes[f"{at}{name}.bias"] = shape, shape[:1]
        norms += [f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"]
    for name in norms:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (HIDDEN,)
    return {
        prefix + name: draw.normal(0, 0.5, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def a_model(
    root: Path,
    weights: dict[str, NDArray[np.float32]] | None = None,
    **config: object,
) -> Folder:
    files = {
        "modules.json": [{"path": "", "type": "x.Transformer"}, {"path": "p", "type": "x.Pooling"}],
        "p/config.json": {"pooling_mode": "mean"},
        "tokenizer.json": {},
        "config.json": {"model_type": "bert", "pad_token_id": 0, **SIZES, **config},
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content))
    save_file(bert_weights() if weights is None else weights, root / "model.safetensors")
    return folder.read(root)


def run(file: Path, ids: list[list[int]], mask: list[list[int]]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    feeds = {"input_ids": np.array(ids), "attention_mask": np.array(mask)}
    hidden: NDArray[np.float32] = session.run(None, feeds)[0]
    return hidden


def in_numpy(weights: dict[str, NDArray[np.float32]], ids: list[int]) -> NDArray[np.float32]:
    """BERT as its paper has it, in float64, one text."""

    def norm(x: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        shifted: NDArray[np.float32] = scaled * weights[name + ".weight"] + weights[name + ".bias"]
        return shifted

    def dense(x: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        return x @ weights[name + ".weight"].T.astype(np.float64) + weights[name + ".bias"]

    table = "embeddings.{}_embeddings.weight"
    x = weights[table.format("word")][ids] + weights[table.format("position")][: len(ids)]
    x = norm(
        (x + weights[table.format("token_type")][0]).astype(np.float64), "embeddings.LayerNorm"
    )
    for n in range(LAYERS):
        at = f"encoder.layer.{n}."
        q, k, v = (
            dense(x, f"{at}attention.self.{part}").reshape(len(ids), HEADS, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(HIDDEN / HEADS))
        mixed = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(ids), -1)
        x = norm(x + dense(mixed, f"{at}attention.output.dense"), f"{at}attention.output.LayerNorm")
        wide = np.maximum(dense(x, f"{at}intermediate.dense"), 0)
        x = norm(x + dense(wide, f"{at}output.dense"), f"{at}output.LayerNorm")
    return x


def test_the_graph_computes_bert_and_looks_past_padding(tmp_path: Path) -> None:
    model = a_model(tmp_path / "model", hidden_act="relu")
    file = onnx_bert.converted(model, tmp_path / "work")

    hidden = run(file, [[3, 9, 4, 17], [5, 6, 0, 0]], [[1, 1, 1, 1], [1, 1, 0, 0]])

    weights = bert_weights()
    np.testing.assert_allclose(hidden[0], in_numpy(weights, [3, 9, 4, 17]), atol=1e-5)
    np.testing.assert_allclose(hidden[1, :2], in_numpy(weights, [5, 6]), atol=1e-5)


def test_weights_under_another_models_name_are_found(tmp_path: Path) -> None:
    plain = onnx_bert.converted(a_model(tmp_path / "a"), tmp_path / "work")
    prefixed = a_model(tmp_path / "b", bert_weights("bert."))

    file = onnx_bert.converted(prefixed, tmp_path / "work")

    given = ([[3, 4]], [[1, 1]])
    np.testing.assert_array_equal(run(file, *given), run(plain, *given))


def test_a_conversion_is_kept_by_content_and_used_again(tmp_path: Path) -> None:
    work = tmp_path / "work"
    first = onnx_bert.converted(a_model(tmp_path / "a"), work)
    written = first.stat().st_mtime_ns

    same = onnx_bert.converted(a_model(tmp_path / "elsewhere"), work)
    other = onnx_bert.converted(a_model(tmp_path / "c", hidden_act="relu"), work)

    assert same == first
    assert first.stat().st_mtime_ns == written
    assert other != first
    assert sorted(work.iterdir()) == sorted([first.parent, other.parent])


CONVERT = """
import sys
from pathlib import Path
from embedkeep.embedder import folder, onnx_bert
sys.stdin.readline()
print(onnx_bert.converted(folder.read(Path(sys.argv[1])), Path(sys.argv[2])))
"""


def test_processes_that_convert_at_once_all_get_one_whole_file(tmp_path: Path) -> None:
    model, work = a_model(tmp_path / "model"), tmp_path / "work"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONVERT, model.root, work],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]

    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    found = {process.communicate(timeout=60)[0].strip() for process in processes}

    assert found == {str(onnx_bert.converted(model, tmp_path / "work"))}
    assert len(list(work.iterdir())) == 1
    assert run(Path(found.pop()), [[3]], [[1]]).shape == (1, 1, HIDDEN)


def test_large_weights_lie_beside_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = a_model(tmp_path / "model")
    given = ([[3, 4]], [[1, 1]])
    whole = run(onnx_bert.converted(model, tmp_path / "whole"), *given)
    monkeypatch.setattr(onnx_files, "_WHOLE_BYTES", 1)

    file = onnx_bert.converted(model, tmp_path / "parts")

    assert (file.parent / "model.onnx_data").is_file()
    np.testing.assert_array_equal(run(file, *given), whole)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "t5"}, "model_type 't5' is not converted here; works: bert, roberta"),
        ({"hidden_act": "swish"}, "hidden_act 'swish'"),
        ({"position_embedding_type": "relative_key"}, "'relative_key'"),
        ({"is_decoder": True}, "is_decoder True"),
    ],
)
def test_what_is_not_converted_is_named_with_what_is(
    tmp_path: Path, config: dict[str, object], says: str
) -> None:
    model = a_model(tmp_path / "model", None, **config)

    with pytest.raises(InvalidConfig, match=says):
        onnx_bert.converted(model, tmp_path / "work")


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    model = a_model(tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()

    with pytest.raises(InvalidConfig, match=r"neither model.safetensors nor onnx/model.onnx"):
        onnx_bert.converted(model, tmp_path / "work")


def test_weights_that_lack_a_part_leave_nothing_behind(tmp_path: Path) -> None:
    weights = bert_weights()
    del weights["encoder.layer.1.output.dense.bias"]
    model = a_model(tmp_path / "model", weights)

    with pytest.raises(
        InvalidConfig, match=r"the weights lack 'encoder.layer.1.output.dense.bias'"
    ):
        onnx_bert.converted(model, tmp_path / "work")

    assert list((tmp_path / "work").iterdir()) == []
