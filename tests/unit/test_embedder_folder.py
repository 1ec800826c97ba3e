"""Reading a model's folder, and saying what is wrong with it."""

import json
from pathlib import Path

import pytest

from embedkeep.embedder import folder
from embedkeep.embedder.folder import Dense, Normalize, Pooling
from embedkeep.errors import InvalidConfig

ST = "sentence_transformers.models."


def a_model(
    root: Path,
    *,
    config: dict[str, object] | None = None,
    pooling: dict[str, object] | None = None,
    after: tuple[str, ...] = ("Normalize",),
    module: dict[str, object] | None = None,
    dense: dict[str, object] | None = None,
    tokenizer: dict[str, object] | None = None,
) -> Path:
    """A folder as sentence-transformers writes it, without weights."""
    kinds = ("Transformer", "Pooling", *after)
    modules = [
        {"idx": n, "name": str(n), "path": f"{n}_{kind}" if n else "", "type": ST + kind}
        for n, kind in enumerate(kinds)
    ]
    default = {"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}
    files = {
        "modules.json": modules,
        "config.json": default | (config or {}),
        "1_Pooling/config.json": pooling or {"pooling_mode_mean_tokens": True},
        "tokenizer.json": {},
    }
    if module is not None:
        files["sentence_bert_config.json"] = module
    if tokenizer is not None:
        files["tokenizer_config.json"] = tokenizer
    if dense is not None:
        files["2_Dense/config.json"] = dense
        files["2_Dense/model.safetensors"] = {}
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_mean_tokens": True}, Pooling.MEAN),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, Pooling.CLS),
        ({"pooling_mode_max_tokens": True}, Pooling.MAX),
        ({"pooling_mode_lasttoken": True}, Pooling.LAST),
        ({"pooling_mode": "cls", "embedding_dimension": 384}, Pooling.CLS),
        ({"pooling_mode": ["mean"]}, Pooling.MEAN),
        ({"word_embedding_dimension": 384}, Pooling.MEAN),
    ],
)
def test_pooling_is_read_in_its_old_and_its_new_form(
    tmp_path: Path, pooling: dict[str, object], expected: Pooling
) -> None:
    assert folder.read(a_model(tmp_path, pooling=pooling)).pooling is expected


@pytest.mark.parametrize(
    ("pooling", "says"),
    [
        ({"pooling_mode_weightedmean_tokens": True}, "its pooling is weightedmean"),
        (
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            r"its pooling is cls \+ mean",
        ),
        ({"pooling_mode": "attention"}, "its pooling is attention; works: one of mean, cls"),
        ({"pooling_mode": "mean", "include_prompt": False}, "leaves the prompt out"),
    ],
)
def test_a_pooling_that_is_not_known_is_named(
    tmp_path: Path, pooling: dict[str, object], says: str
) -> None:
    with pytest.raises(InvalidConfig, match=says):
        folder.read(a_model(tmp_path, pooling=pooling))


def test_what_follows_pooling_is_kept_in_order(tmp_path: Path) -> None:
    dense: dict[str, object] = {"activation_function": "torch.nn.modules.linear.Identity"}

    found = folder.read(a_model(tmp_path, after=("Dense", "Normalize"), dense=dense))

    weights = tmp_path / "2_Dense/model.safetensors"
    assert found.steps == (Dense(weights=weights, activation="Identity"), Normalize())
    assert found.normalized


@pytest.mark.parametrize(
    ("after", "dense", "says"),
    [
        (("LayerNorm",), None, "it has a module LayerNorm"),
        (("Dense",), {"activation_function": "torch.nn.GELU"}, "Dense has activation GELU"),
        (("Dense",), {"use_residual": True}, "residual"),
        (("Dense",), {"module_input_name": "token_embeddings"}, "works on token_embeddings"),
    ],
)
def test_a_module_that_is_not_known_is_named(
    tmp_path: Path, after: tuple[str, ...], dense: dict[str, object] | None, says: str
) -> None:
    with pytest.raises(InvalidConfig, match=says):
        folder.read(a_model(tmp_path, after=after, dense=dense))


@pytest.mark.parametrize(
    ("files", "asked", "expected"),
    [
        ({"module": {"max_seq_length": 256}}, None, 256),
        ({"module": {"max_seq_length": 256}}, 100, 100),
        ({"module": {"max_seq_length": 256}}, 400, 400),
        ({"tokenizer": {"model_max_length": 128}}, None, 128),
        ({"tokenizer": {"model_max_length": 1e30}}, None, 512),
        ({"module": {"max_seq_length": 9000}}, None, 512),
        (
            {
                "config": {
                    "model_type": "roberta",
                    "max_position_embeddings": 514,
                    "pad_token_id": 1,
                }
            },
            None,
            512,
        ),
    ],
)
def test_the_length_is_what_was_asked_for_or_what_the_model_was_made_for(
    tmp_path: Path, files: dict[str, dict[str, object]], asked: int | None, expected: int
) -> None:
    root = a_model(
        tmp_path,
        config=files.get("config"),
        module=files.get("module"),
        tokenizer=files.get("tokenizer"),
    )

    assert folder.read(root, max_tokens=asked).max_tokens == expected


def test_more_tokens_than_positions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"model.max_tokens: 513 is more than the 512"):
        folder.read(a_model(tmp_path), max_tokens=513)


def test_a_module_outside_the_models_folder_is_refused(tmp_path: Path) -> None:
    root = a_model(tmp_path)
    modules = json.loads((root / "modules.json").read_text())
    modules[1]["path"] = "../other"
    (root / "modules.json").write_text(json.dumps(modules))

    with pytest.raises(InvalidConfig, match="leaves the folder"):
        folder.read(root)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("modules.json", "[", "modules.json"),
        ("config.json", '{"model_type": 3}', "model_type"),
        ("1_Pooling/config.json", None, "1_Pooling/config.json cannot be read"),
        ("tokenizer.json", None, "no tokenizer.json"),
    ],
)
def test_a_broken_folder_is_refused_by_the_name_of_the_file(
    tmp_path: Path, name: str, content: str | None, says: str
) -> None:
    root = a_model(tmp_path)
    if content is None:
        (root / name).unlink()
    else:
        (root / name).write_text(content)

    with pytest.raises(InvalidConfig, match=says):
        folder.read(root)
