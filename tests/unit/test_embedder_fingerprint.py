"""What counts as the same model."""

import shutil
from pathlib import Path

import pytest

from embedkeep.config import Backend, Dtype
from embedkeep.embedder import folder
from embedkeep.embedder.fingerprint import fingerprint

FILES = {
    "modules.json": '[{"path": "", "type": "x.Transformer"}, {"path": "p", "type": "x.Pooling"}]',
    "config.json": '{"model_type": "bert", "max_position_embeddings": 512}',
    "p/config.json": '{"pooling_mode": "mean"}',
    "tokenizer.json": "{}",
    "model.safetensors": "weights",
    "README.md": "for people",
}


def a_model(root: Path, **changed: str) -> Path:
    for name, content in (FILES | changed).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def of(
    root: Path,
    *,
    max_tokens: int | None = None,
    revision: str | None = None,
    backend: Backend = Backend.ONNX,
    dtype: Dtype = Dtype.FLOAT32,
    int8: tuple[str, ...] = (),
) -> str:
    found = folder.read(root, max_tokens=max_tokens)
    return fingerprint(
        found,
        weights=found.safetensors,
        revision=revision,
        backend=backend,
        dtype=dtype,
        int8=int8,
    )


def test_equal_content_has_an_equal_fingerprint_wherever_it_lies(tmp_path: Path) -> None:
    here = of(a_model(tmp_path / "here"))
    shutil.copytree(tmp_path / "here", tmp_path / "there/deep")

    assert here == of(tmp_path / "there/deep")
    assert len(here) == 32
    assert int(here, 16)


@pytest.mark.parametrize(
    "changed",
    [
        {"model.safetensors": "other weights"},
        {"tokenizer.json": '{"added_tokens": []}'},
        {"config.json": FILES["config.json"].replace("512", "256")},
        {"p/config.json": '{"pooling_mode": "cls"}'},
        {"sentence_bert_config.json": '{"do_lower_case": true}'},
    ],
)
def test_whatever_moves_vectors_moves_the_fingerprint(
    tmp_path: Path, changed: dict[str, str]
) -> None:
    assert of(a_model(tmp_path / "a")) != of(a_model(tmp_path / "b", **changed))


def test_settings_move_the_fingerprint_too(tmp_path: Path) -> None:
    root = a_model(tmp_path)

    found = {
        of(root),
        of(root, max_tokens=128),
        of(root, revision="r1"),
        of(root, backend=Backend.TORCH),
        of(root, backend=Backend.TORCH, dtype=Dtype.FLOAT16),
        of(root, int8=("1", "8", "linux", "x86_64", "avx2", "avx_vnni")),
        of(root, int8=("1", "7", "linux", "x86_64", "avx2")),
        of(root, int8=("2", "7", "linux", "x86_64", "avx2")),
    }

    assert len(found) == 8


def test_what_people_read_does_not_move_it(tmp_path: Path) -> None:
    assert of(a_model(tmp_path / "a")) == of(a_model(tmp_path / "b", **{"README.md": "new"}))


def test_a_float32_model_keeps_the_fingerprint_it_had(tmp_path: Path) -> None:
    """One that moves empties every cache that was filled under it."""
    assert of(a_model(tmp_path)) == "e9944a5ecf3b6d03ee4002d4736f63d0"
