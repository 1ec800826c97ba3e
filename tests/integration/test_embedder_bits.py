"""Promise 1 at its root: with onnx in float32 a text's bits depend on nothing but the text."""

import gzip
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

from embedkeep.config import EmbedderConfig
from embedkeep.embedder.backends.onnx import Grouping, OnnxBackend
from embedkeep.embedder.main import open_backend
from support.embedder import PACKAGE

TEXTS = [
    "?",
    "Hi",
    "Where is my card?",
    "I am still waiting, it should have come two weeks ago.",
    "Der Überweisungsbetrag stimmt nicht: 12,50 € statt 125 €.",
    "東京の天気はどうですか",
    "SELECT id FROM orders WHERE paid = 0 ORDER BY id;",
    "a\0b\tc\r\n  d",
    "🙂🙃 ¯\\_(ツ)_/¯",
    "word " * 40,
    "The quick brown fox jumps over the lazy dog, again and again. " * 12,
    "long " * 1000,
    "same length as another",
    "as long as the other one",
]


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> OnnxBackend:
    config = EmbedderConfig.model_validate(
        {
            "model": {"name": "all-MiniLM-L6-v2", "source": {"package": PACKAGE}},
            "work_dir": tmp_path_factory.mktemp("converted"),
        }
    )
    loaded = open_backend(config)
    assert isinstance(loaded, OnnxBackend)
    return loaded


def check_bits(backend: OnnxBackend, texts: list[str], *, rounds: int) -> None:
    """Compare each text's vector alone with the one from batches put together at random."""
    rows = [row.ids for row in backend.tokenize(texts)]
    alone = [backend.embed([row])[0].tobytes() for row in rows]
    draw = random.Random(7)  # repeatable, not secret
    for _ in range(rounds):
        order = draw.sample(range(len(rows)), len(rows))
        while order:
            batch = [order.pop() for _ in range(min(len(order), draw.choice([2, 3, 5, 8, 17, 40])))]
            together = backend.embed([rows[number] for number in batch])
            # One run with all the padding there can be, whatever embed() thinks best.
            padded = np.stack(backend._run([rows[number] for number in batch]))
            for vectors in (together, padded):
                changed = [
                    (len(rows[number]), max(len(rows[mate]) for mate in batch))
                    for number, vector in zip(batch, vectors, strict=True)
                    if vector.tobytes() != alone[number]
                ]
                assert not changed, "bits changed, (tokens, longest in the batch)"


def test_a_vector_has_the_same_bits_alone_batched_and_padded(backend: OnnxBackend) -> None:
    assert backend.grouping is Grouping.PADDED, "this CPU needs no narrower grouping"
    check_bits(backend, TEXTS, rounds=6)


@pytest.mark.data
def test_real_questions_have_the_same_bits_in_any_batch(backend: OnnxBackend) -> None:
    data = os.environ.get("EMBEDKEEP_DATA")
    if data is None:
        pytest.skip("EMBEDKEEP_DATA names no folder")
    with gzip.open(Path(data) / "intents_banking77.jsonl.gz", "rt") as lines:
        texts = [json.loads(line)["text"] for line in lines]

    draw = random.Random(11)  # as above
    check_bits(backend, draw.sample(texts, 300), rounds=3)


def test_the_narrower_groupings_give_the_same_bits_too(backend: OnnxBackend) -> None:
    rows = [row.ids for row in backend.tokenize(TEXTS)]

    answers = {grouping: backend._embed(rows, grouping).tobytes() for grouping in Grouping}

    assert len(set(answers.values())) == 1


def test_a_cpu_on_which_padding_changes_bits_gets_equal_lengths_only(
    backend: OnnxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = OnnxBackend._run

    def padding_shows(self: OnnxBackend, rows: list[list[int]]) -> list[np.ndarray]:
        longest = max(map(len, rows))
        return [
            vector if len(row) == longest else np.nextafter(vector, np.float32(2))
            for row, vector in zip(rows, run(self, rows), strict=True)
        ]

    monkeypatch.setattr(OnnxBackend, "_run", padding_shows)

    assert backend._try_groupings() is Grouping.EQUAL


def test_a_cpu_on_which_batches_change_bits_gets_single_texts(
    backend: OnnxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = OnnxBackend._run

    def batching_shows(self: OnnxBackend, rows: list[list[int]]) -> list[np.ndarray]:
        moved = np.float32(2 if len(rows) > 1 else 0)
        return [vector + moved for vector in run(self, rows)]

    monkeypatch.setattr(OnnxBackend, "_run", batching_shows)

    assert backend._try_groupings() is Grouping.ALONE
