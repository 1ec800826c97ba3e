"""From token vectors to one vector."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from embedkeep.embedder import folder
from embedkeep.embedder.pooling import normalize, tail
from embedkeep.errors import InvalidConfig

TOKENS = np.array([[1, -2, 3], [5, 6, -7], [0, 2, 1]], np.float32)


def a_folder(root: Path, mode: str, *after: str, activation: str = "Identity") -> folder.Folder:
    kinds = ("Transformer", "Pooling", *after)
    modules = [{"path": str(n), "type": f"x.{kind}"} for n, kind in enumerate(kinds)]
    files: dict[str, object] = {
        "modules.json": modules,
        "0/config.json": {"model_type": "bert", "max_position_embeddings": 8},
        "0/tokenizer.json": {},
        "1/config.json": {"pooling_mode": mode},
        "2/config.json": {"activation_function": f"torch.nn.{activation}"},
    }
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(json.dumps(content))
    matrix = np.array([[1, 0, 2], [0, -1, 0]], np.float32)
    bias = np.array([0.5, 0], np.float32)
    save_file({"linear.weight": matrix, "linear.bias": bias}, root / "2/model.safetensors")
    return folder.read(root)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("mean", [2, 2, -1]), ("cls", [1, -2, 3]), ("max", [5, 6, 3]), ("lasttoken", [0, 2, 1])],
)
def test_each_pooling_takes_what_its_name_says(
    tmp_path: Path, mode: str, expected: list[float]
) -> None:
    np.testing.assert_array_equal(tail(a_folder(tmp_path, mode))(TOKENS), expected)


def test_steps_follow_in_their_order(tmp_path: Path) -> None:
    apply = tail(a_folder(tmp_path, "mean", "Dense", "Normalize"))

    # mean (2, 2, -1); dense (2 - 2 + .5, -2); length sqrt(4.25)
    np.testing.assert_allclose(apply(TOKENS), np.array([0.5, -2]) / np.sqrt(4.25), rtol=1e-6)


def test_a_dense_layer_applies_its_activation(tmp_path: Path) -> None:
    apply = tail(a_folder(tmp_path, "mean", "Dense", activation="Tanh"))

    np.testing.assert_allclose(apply(TOKENS), np.tanh([0.5, -2]), rtol=1e-6)


def test_dense_weights_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    found = a_folder(tmp_path, "mean", "Dense")
    (tmp_path / "2/model.safetensors").write_text("no weights")

    with pytest.raises(InvalidConfig, match=r"2/model.safetensors cannot be read"):
        tail(found)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=50))
def test_normalizing_gives_length_one_or_keeps_zero(values: list[float]) -> None:
    vector = np.array(values, np.float32)

    scaled = normalize(vector)

    assert scaled.dtype == np.float32
    length = np.linalg.norm(scaled.astype(np.float64))
    if np.linalg.norm(vector.astype(np.float64)) > 1e-6:
        assert length == pytest.approx(1, abs=1e-5)
    elif not vector.any():
        assert length == 0
