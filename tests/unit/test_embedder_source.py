"""Finding a model."""

import sys
from pathlib import Path

import pytest

from embedkeep.config import Backend, ModelSpec
from embedkeep.embedder.source import resolve
from embedkeep.errors import InvalidConfig


def spec(source: dict[str, object] | None = None) -> ModelSpec:
    return ModelSpec.model_validate({"name": "nobody/no-such-model", "source": source or {}})


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[]")

    assert resolve(spec({"path": str(tmp_path)}), backend=Backend.ONNX) == tmp_path


def test_a_path_that_is_not_there_is_named() -> None:
    with pytest.raises(InvalidConfig, match=r"model.source.path: /no/where is no folder"):
        resolve(spec({"path": "/no/where"}), backend=Backend.ONNX)


def test_a_path_without_a_model_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"holds no modules.json; give the folder of"):
        resolve(spec({"path": str(tmp_path)}), backend=Backend.ONNX)


def test_a_packages_model_is_found_without_running_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "carrier_a/inner/model"
    model.mkdir(parents=True)
    (model / "modules.json").write_text("[]")
    (tmp_path / "carrier_a/__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))

    assert resolve(spec({"package": "carrier_a"}), backend=Backend.ONNX) == model
    assert "carrier_a" not in sys.modules


@pytest.mark.parametrize("name", ["no_such_package", "no.such.package", "", "json.decoder"])
def test_a_package_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(InvalidConfig, match=f"model.source.package: no package '{name}'"):
        resolve(spec({"package": name}), backend=Backend.ONNX)


def test_a_package_without_a_model_is_told_apart() -> None:
    with pytest.raises(InvalidConfig, match="package 'json' holds no sentence-transformers folder"):
        resolve(spec({"package": "json"}), backend=Backend.ONNX)


def test_a_package_with_two_models_asks_for_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / "carrier_b" / name).mkdir(parents=True)
        (tmp_path / "carrier_b" / name / "modules.json").write_text("[]")
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(InvalidConfig, match="holds several models: one, two"):
        resolve(spec({"package": "carrier_b"}), backend=Backend.ONNX)


def test_without_a_network_a_hub_model_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    with pytest.raises(InvalidConfig, match=r"nobody/no-such-model is not in the local hub cache"):
        resolve(spec({"cache_dir": str(tmp_path)}), backend=Backend.ONNX)


def test_a_hub_model_in_the_local_cache_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    kept = tmp_path / "models--nobody--no-such-model"
    snapshot = kept / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs/main").write_text("0" * 40)
    (snapshot / "modules.json").write_text("[]")

    assert resolve(spec({"cache_dir": str(tmp_path)}), backend=Backend.ONNX) == snapshot


def test_a_token_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"model.source.token_file: .*none cannot be read"):
        resolve(spec({"token_file": str(tmp_path / "none")}), backend=Backend.ONNX)
