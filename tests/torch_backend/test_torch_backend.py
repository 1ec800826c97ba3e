"""What torch and sentence-transformers compute is the truth that everything else is held to."""

import gzip
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embedkeep.config import Backend, EmbedderConfig
from embedkeep.embedder.backends import Backend as LoadedBackend
from embedkeep.embedder.main import open_backend
from embedkeep.errors import InvalidConfig
from support.embedder import PACKAGE

torch = pytest.importorskip("torch")
sentence_transformers = pytest.importorskip("sentence_transformers")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.torch,
    # torch and transformers warn about themselves; that is not ours to fix.
    pytest.mark.filterwarnings("ignore"),
]

TEXTS = [
    "?",
    "Where is my card?",
    "I am still waiting, it should have come two weeks ago.",
    "Der Überweisungsbetrag stimmt nicht: 12,50 € statt 125 €.",
    "東京の天気はどうですか",
    "a\0b\tc\r\n  d",
    "🙂🙃 ¯\\_(ツ)_/¯",
    "The quick brown fox jumps over the lazy dog, again and again. " * 12,
    "long " * 1000,
]


def texts() -> list[str]:
    """Real questions where there are some, beside those above."""
    data = os.environ.get("EMBEDKEEP_DATA")
    if data is None:
        return TEXTS
    with gzip.open(Path(data) / "intents_banking77.jsonl.gz", "rt") as lines:
        found = [json.loads(line)["text"] for line in lines]
    return TEXTS + random.Random(5).sample(found, 120)  # repeatable, not secret


def opened(
    source: dict[str, object], work_dir: Path, backend: Backend, **fields: object
) -> LoadedBackend:
    return open_backend(
        EmbedderConfig.model_validate(
            {
                "model": {"name": "model", "source": source},
                "backend": backend,
                "work_dir": work_dir,
                **fields,
            }
        )
    )


def embedded(backend: LoadedBackend, some: list[str]) -> NDArray[np.float32]:
    return backend.embed([row.ids for row in backend.tokenize(some)])


def alone(backend: LoadedBackend, some: list[str]) -> NDArray[np.float32]:
    return np.concatenate([backend.embed([row.ids]) for row in backend.tokenize(some)])


def worst(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """1 - the smallest cosine of rows."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    return float(1 - cosines.min())


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The folder of the packaged model."""
    package = pytest.importorskip(PACKAGE)
    return Path(package.__path__[0]) / "model"


def test_the_converted_model_computes_what_sentence_transformers_does(
    minilm: Path, tmp_path: Path
) -> None:
    ours = opened({"package": PACKAGE}, tmp_path, Backend.ONNX)
    theirs = sentence_transformers.SentenceTransformer(str(minilm), device="cpu")

    assert worst(embedded(ours, texts()), theirs.encode(texts())) <= 1e-6


def test_the_torch_backend_batched_is_the_model_run_alone(minilm: Path, tmp_path: Path) -> None:
    ours = opened({"path": str(minilm)}, tmp_path, Backend.TORCH, device="cpu")
    theirs = sentence_transformers.SentenceTransformer(str(minilm), device="cpu")
    some = texts()[:40]
    one_by_one = np.stack([theirs.encode(text) for text in some])

    assert worst(embedded(ours, some), one_by_one) <= 1e-6
    assert worst(embedded(ours, some), alone(ours, some)) <= 1e-6


def test_both_backends_cut_and_describe_alike(minilm: Path, tmp_path: Path) -> None:
    source: dict[str, object] = {"path": str(minilm)}
    found = [opened(source, tmp_path, name, device="cpu") for name in Backend]

    tokens = [backend.tokenize(TEXTS) for backend in found]
    onnx, other = (backend.about for backend in found)

    assert tokens[0] == tokens[1]
    assert [row.truncated for row in tokens[0]] == [False] * 8 + [True]
    assert onnx.fingerprint != other.fingerprint
    assert (onnx.dimensions, onnx.max_tokens, onnx.normalized) == (384, 256, True)
    assert (other.dimensions, other.max_tokens, other.normalized) == (384, 256, True)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"device": "cpu", "dtype": "float16"}, "dtype: float16 needs a GPU"),
        ({"device": "tpu"}, "device: 'tpu' is not there; usable here: .*cpu"),
    ],
)
def test_what_torch_cannot_do_here_is_named(
    minilm: Path, tmp_path: Path, fields: dict[str, object], says: str
) -> None:
    with pytest.raises(InvalidConfig, match=says):
        opened({"path": str(minilm)}, tmp_path, Backend.TORCH, **fields)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(
    ("dtype", "off"), [("float32", 1e-6), ("float16", 1e-5), ("bfloat16", 1e-4)]
)
def test_on_a_gpu_vectors_stay_within_the_dtypes_bound(
    minilm: Path, tmp_path: Path, dtype: str, off: float
) -> None:
    ours = opened({"path": str(minilm)}, tmp_path, Backend.TORCH, device="cuda", dtype=dtype)

    assert ours.about.device == "cuda"
    assert worst(embedded(ours, texts()), alone(ours, texts())) <= off


SMALL = {
    "vocab_size": 30522,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
FAMILIES: dict[str, tuple[str, Mapping[str, object]]] = {
    "bert": ("BertConfig", SMALL | {"max_position_embeddings": 300, "hidden_act": "gelu_new"}),
    "roberta": ("RobertaConfig", SMALL | {"max_position_embeddings": 302, "type_vocab_size": 1}),
    "xlm-roberta": (
        "XLMRobertaConfig",
        SMALL | {"max_position_embeddings": 302, "type_vocab_size": 1},
    ),
    "mpnet": ("MPNetConfig", SMALL | {"max_position_embeddings": 302}),
    "distilbert": (
        "DistilBertConfig",
        {
            "vocab_size": 30522,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 64,
            "max_position_embeddings": 300,
        },
    ),
}


@pytest.mark.parametrize(
    ("family", "pooling"),
    [
        ("bert", "mean"),
        ("bert", "lasttoken"),
        ("roberta", "cls"),
        ("xlm-roberta", "max"),
        ("mpnet", "mean"),
        ("distilbert", "cls"),
    ],
)
def test_each_family_is_converted_to_what_transformers_computes(
    minilm: Path, tmp_path: Path, family: str, pooling: str
) -> None:
    """Small random models: big initial weights make every part of the graph show."""
    torch.manual_seed(2)
    name, settings = FAMILIES[family]
    config = getattr(transformers, name)(**settings)
    model = transformers.AutoModel.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0 if parameter.dim() > 1 else 0.5, 0.3)
    model.save_pretrained(tmp_path / "base")
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (tmp_path / "base" / file).write_bytes((minilm / file).read_bytes())
    st = sentence_transformers
    transformer = st.models.Transformer(str(tmp_path / "base"), max_seq_length=256)
    pool = st.models.Pooling(32, pooling_mode=pooling)
    theirs = st.SentenceTransformer(
        modules=[transformer, pool, st.models.Normalize()], device="cpu"
    )
    theirs.save(str(tmp_path / "saved"))

    ours = opened({"path": str(tmp_path / "saved")}, tmp_path / "work", Backend.ONNX)

    some = TEXTS + [f"card number {n} " * (n % 7) + "." for n in range(30)]
    assert worst(embedded(ours, some), theirs.encode(some)) <= 1e-6
    assert embedded(ours, some).tobytes() == alone(ours, some).tobytes()


def test_a_dense_module_is_computed_as_sentence_transformers_does(
    minilm: Path, tmp_path: Path
) -> None:
    torch.manual_seed(2)
    st = sentence_transformers
    theirs = st.SentenceTransformer(
        modules=[
            st.models.Transformer(str(minilm)),
            st.models.Pooling(384, pooling_mode="mean"),
            st.models.Dense(384, 16),
            st.models.Normalize(),
        ],
        device="cpu",
    )
    theirs.save(str(tmp_path / "saved"))
    source: dict[str, object] = {"path": str(tmp_path / "saved")}

    for name in Backend:
        ours = opened(source, tmp_path / "work", name, device="cpu")
        assert ours.about.dimensions == 16
        assert worst(embedded(ours, TEXTS), theirs.encode(TEXTS)) <= 1e-6
