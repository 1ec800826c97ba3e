"""A BERT of a few numbers, as sentence-transformers saves one."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

HIDDEN, LAYERS, HEADS, WIDE, WORDS, LENGTH = 32, 2, 4, 64, 120, 64


def bert(root: Path, **config: object) -> Path:
    """Write it to *root*; *config* goes over its config.json."""
    root.mkdir(parents=True)
    described = {
        "modules.json": [
            {"path": "", "type": "sentence_transformers.models.Transformer"},
            {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
        "config.json": {
            "model_type": "bert",
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "intermediate_size": WIDE,
            "max_position_embeddings": LENGTH,
            "vocab_size": WORDS,
            "pad_token_id": 0,
        }
        | config,
    }
    for name, content in described.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(json.dumps(content))
    words = {"[PAD]": 0, "[UNK]": 1} | {f"w{n}": n for n in range(2, WORDS)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(root / "tokenizer.json"))
    save_file(_weights(), root / "model.safetensors")
    return root


def _weights() -> dict[str, NDArray[np.float32]]:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (WORDS, HIDDEN),
        "embeddings.position_embeddings.weight": (LENGTH, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        "embeddings.LayerNorm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}."
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes[f"{at}attention.{name}.weight"] = (HIDDEN, HIDDEN)
        shapes[f"{at}intermediate.dense.weight"] = (WIDE, HIDDEN)
        shapes[f"{at}output.dense.weight"] = (HIDDEN, WIDE)
        shapes[f"{at}attention.output.LayerNorm.weight"] = (HIDDEN,)
        shapes[f"{at}output.LayerNorm.weight"] = (HIDDEN,)
    biases = {
        name.replace(".weight", ".bias"): shape[:1]
        for name, shape in shapes.items()
        if "LayerNorm" in name or "dense" in name or "attention" in name
    }
    draw = np.random.default_rng(8)
    return {
        name: draw.normal(float("LayerNorm.weight" in name), 0.3, shape).astype(np.float32)
        for name, shape in (shapes | biases).items()
    }
