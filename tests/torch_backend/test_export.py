"""Models that only torch can export, held to what torch computes."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from embedkeep.cli.processes import embedder
from embedkeep.config import Backend, EmbedderConfig
from embedkeep.embedder import onnx_bert
from embedkeep.embedder.export import export
from embedkeep.embedder.folder import Folder
from embedkeep.embedder.main import open_backend
from embedkeep.embedder.onnx_bert import F32
from embedkeep.errors import InvalidConfig
from support.embedder import PACKAGE

torch = pytest.importorskip("torch")
sentence_transformers = pytest.importorskip("sentence_transformers")
models = pytest.importorskip("sentence_transformers.models")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.torch,
    pytest.mark.timeout(600),  # torch's exporter takes its time
    # torch and transformers warn about themselves; that is not ours to fix.
    pytest.mark.filterwarnings("ignore"),
]

TEXTS = ["?", "Where is my card?", "東京の天気はどうですか", "word " * 40, "long " * 1000]
SIZES = {
    "vocab_size": 30522,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
KINDS: dict[str, tuple[str, dict[str, object], str]] = {
    "ALBERT": ("AlbertConfig", {"embedding_size": 16}, "cls"),
    "ModernBERT": (
        "ModernBertConfig",
        {"cls_token_id": 101, "sep_token_id": 102, "bos_token_id": 101, "eos_token_id": 102},
        "mean",
    ),
    "Qwen3": ("Qwen3Config", {"num_key_value_heads": 2, "head_dim": 8}, "lasttoken"),
}


@pytest.fixture
def minilm() -> Path:
    """The folder of the packaged model."""
    package = pytest.importorskip(PACKAGE)
    return Path(package.__path__[0]) / "model"


@pytest.mark.parametrize("kind", KINDS)
def test_what_torch_exports_is_what_sentence_transformers_computes(
    minilm: Path, tmp_path: Path, kind: str
) -> None:
    torch.manual_seed(2)
    name, more, pooling = KINDS[kind]
    model = transformers.AutoModel.from_config(getattr(transformers, name)(**SIZES, **more))
    model.save_pretrained(tmp_path / "base")
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (tmp_path / "base" / file).write_bytes((minilm / file).read_bytes())
    theirs = sentence_transformers.SentenceTransformer(
        modules=[
            models.Transformer(str(tmp_path / "base"), max_seq_length=128),
            models.Pooling(32, pooling_mode=pooling),
        ],
        device="cpu",
    )
    theirs.save(str(tmp_path / "saved"))

    done = export(str(tmp_path / "saved"), tmp_path / "made")

    assert done.written_by == "torch"
    assert done.to_torch is not None
    assert done.to_torch > 0.999999
    ours = open_backend(
        EmbedderConfig.model_validate(
            {
                "model": {"name": kind, "source": {"path": tmp_path / "made"}},
                "backend": Backend.ONNX,
            }
        )
    )
    rows = [row.ids for row in ours.tokenize(TEXTS)]
    x, y = ours.embed(rows).astype(np.float64), theirs.encode(TEXTS).astype(np.float64)
    cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert cosines.min() > 1 - 1e-6


def test_the_command_exports_the_real_model_and_says_how_near_it_is(tmp_path: Path) -> None:
    said = CliRunner().invoke(
        embedder,
        ["export", PACKAGE, "--output", str(tmp_path / "made"), "--quantize", "int8"],
        catch_exceptions=False,
    )

    assert said.exit_code == 0
    lines = said.stdout.splitlines()
    assert lines[0] == f"{tmp_path / 'made'}: written by embedkeep"
    assert float(lines[1].removeprefix("cosine to torch, at worst: ")) > 0.999999
    assert 0.99 < float(lines[2].removeprefix("cosine of int8 to float32, at worst: ")) < 1
    assert lines[3] == f"use it: spec.model.source.path: {tmp_path / 'made'}"


def test_an_export_that_torch_disagrees_with_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_a_layer(folder: Folder) -> dict[str, F32]:
        weights = load(folder)
        weights["encoder.layer.3.output.dense.weight"][:] = 0
        return weights

    load = onnx_bert.load
    monkeypatch.setattr(onnx_bert, "load", without_a_layer)

    with pytest.raises(InvalidConfig, match=r"to torch on a canary text, 0\.9999 is needed"):
        export(PACKAGE, tmp_path / "made")

    assert list(tmp_path.iterdir()) == []
