"""Promise 1 at its root: with onnx a text's bits depend on nothing but the text, int8 or not."""

import gzip
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

from embedkeep.config import EmbedderConfig, Quantization
from embedkeep.embedder import cpu
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
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("converted")


def opened(work_dir: Path, quantization: Quantization, **fields: object) -> OnnxBackend:
    config = EmbedderConfig.model_validate(
        {
            "model": {"name": "all-MiniLM-L6-v2", "source": {"package": PACKAGE}},
            "work_dir": work_dir,
            "quantization": quantization,
            **fields,
        }
    )
    loaded = open_backend(config)
    assert isinstance(loaded, OnnxBackend)
    return loaded


@pytest.fixture(scope="module", params=Quantization)
def backend(work_dir: Path, request: pytest.FixtureRequest) -> OnnxBackend:
    return opened(work_dir, request.param)


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


def questions() -> list[str]:
    data = os.environ.get("EMBEDKEEP_DATA")
    if data is None:
        pytest.skip("EMBEDKEEP_DATA names no folder")
    with gzip.open(Path(data) / "intents_banking77.jsonl.gz", "rt") as lines:
        return [json.loads(line)["text"] for line in lines]


@pytest.mark.data
def test_real_questions_have_the_same_bits_in_any_batch(backend: OnnxBackend) -> None:
    texts = questions()

    draw = random.Random(11)  # as above
    check_bits(backend, draw.sample(texts, 300), rounds=3)


@pytest.mark.parametrize("quantization", Quantization)
def test_a_restart_and_other_threads_keep_the_bits(
    work_dir: Path, quantization: Quantization
) -> None:
    """Loaded twice; the second time from what the first has left, with one thread."""
    first, second = opened(work_dir, quantization), opened(work_dir, quantization, threads=1)
    rows = [row.ids for row in first.tokenize(TEXTS)]

    assert first.about == second.about
    assert first.embed(rows).tobytes() == second.embed(rows).tobytes()


def test_int8_is_another_model_that_lies_near(work_dir: Path) -> None:
    exact, rounded = (opened(work_dir, quantization) for quantization in Quantization)
    rows = [row.ids for row in exact.tokenize(TEXTS)]

    cosines = np.sum(exact.embed(rows) * rounded.embed(rows), axis=1)

    assert exact.about.fingerprint != rounded.about.fingerprint
    assert cosines.max() < 1 - 1e-6
    assert cosines.min() > 0.99


def test_on_a_cpu_whose_products_do_not_fit_weights_are_smaller_and_the_fingerprint_another(
    work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = opened(work_dir, Quantization.INT8)
    monkeypatch.setattr(cpu, "features", lambda: ("linux", "x86_64", "avx2"))

    there = opened(work_dir, Quantization.INT8)

    rows = [row.ids for row in here.tokenize(TEXTS)]
    exact = opened(work_dir, Quantization.NONE).embed(rows)
    assert here.about.fingerprint != there.about.fingerprint
    assert np.sum(exact * there.embed(rows), axis=1).min() > 0.98
    assert np.any(here.embed(rows) != there.embed(rows))


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
