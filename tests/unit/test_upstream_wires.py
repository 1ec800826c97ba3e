"""How answers are read: whole, or not at all."""

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep.config import Protocol, Upstream
from embedkeep.embedder.upstream.failures import Failure, Kind
from embedkeep.embedder.upstream.http import base_url, below
from embedkeep.embedder.upstream.wires import Answer, Misfit, OpenAI, Tei, read, wire

OPENAI = OpenAI(model="m", dimensions=None)
GOOD = [[0.1, -2.0], [3.0, 4.0]]


def items(*rows: object) -> list[dict[str, object]]:
    return [{"object": "embedding", "index": n, "embedding": row} for n, row in enumerate(rows)]


def answered(data: object, *, usage: object = None, inputs: int = 2) -> Answer | Failure:
    body = json.dumps({"object": "list", "data": data, "usage": usage}).encode()
    return read(OPENAI, {}, body, inputs=inputs, dimensions=2)


def test_floats_are_rounded_to_the_nearest_float32_and_base64_is_taken_as_it_is() -> None:
    row = np.array([0.1, 1 / 3], np.float32)

    found = answered(items([0.1, 1 / 3], base64.b64encode(row.tobytes()).decode()))

    assert isinstance(found, Answer)
    assert found.vectors.dtype == np.float32
    assert found.vectors[0].tobytes() == found.vectors[1].tobytes() == row.tobytes()


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=2))
def test_decimals_are_rounded_from_float64_once(row: list[float]) -> None:
    """A reader that rounds to float32 at once, or twice, differs in the last bit."""
    found = answered(items(row), inputs=1)

    assert isinstance(found, Answer)
    with np.errstate(over="ignore"):
        exact = np.array([float(repr(number)) for number in row], np.float64).astype(np.float32)
    assert found.vectors.tobytes() == exact.tobytes()


def test_rows_are_put_in_the_order_of_their_index() -> None:
    found = answered([*reversed(items(*GOOD))], usage={"prompt_tokens": 5, "total_tokens": 6})

    assert isinstance(found, Answer)
    np.testing.assert_array_equal(found.vectors, np.array(GOOD, np.float32))
    assert found.tokens == 6


MISFITS: dict[str, object] = {
    "too few": items(GOOD[0]),
    "too many": items(*GOOD, GOOD[0]),
    "no index": [{"embedding": row} for row in GOOD],
    "an index twice": [{"index": 0, "embedding": row} for row in GOOD],
    "an index beyond": [{"index": n + 1, "embedding": row} for n, row in enumerate(GOOD)],
    "an index that is true": [{"index": n == 1, "embedding": row} for n, row in enumerate(GOOD)],
    "another dimension": items([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
    "two dimensions in one": items([1.0], GOOD[1]),
    "no dimension": items([], []),
    "text for a number": items(["1.0", 2.0], GOOD[1]),
    "a boolean for a number": items([True, 2.0], GOOD[1]),
    "no vector": items(None, GOOD[1]),
    "a nested vector": items([[1.0, 2.0]], GOOD[1]),
    "no base64": items("%%%%", GOOD[1]),
    "base64 of another length": items(base64.b64encode(b"12345").decode(), GOOD[1]),
    "beyond float64": items([10**400, 1.0], GOOD[1]),
    "no list": {"0": GOOD[0]},
    "items that are no objects": GOOD,
}


@pytest.mark.parametrize("data", MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_refused_whole(data: object) -> None:
    found = answered(data)

    assert isinstance(found, Failure)
    assert found.kind is Kind.NONSENSE


@pytest.mark.parametrize("component", [float("nan"), float("inf"), None, 1e300])
def test_a_row_that_is_not_finite_stands_as_such_and_its_mates_are_good(component: object) -> None:
    found = answered(items([component, 1.0], GOOD[1]))

    assert isinstance(found, Answer)
    assert [bool(np.isfinite(row).all()) for row in found.vectors] == [False, True]


@pytest.mark.parametrize("usage", [None, {}, {"total_tokens": -1}, {"total_tokens": "9"}, 7, []])
def test_tokens_that_are_not_said_are_not_guessed(usage: object) -> None:
    found = answered(items(*GOOD), usage=usage)

    assert isinstance(found, Answer)
    assert found.tokens == 0


@given(st.binary(max_size=100) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["data", "index", "embedding", "usage", "total_tokens"]), inner, max_size=3
    ),
    max_leaves=12,
))  # fmt: skip
def test_no_answer_breaks_the_reader(answer: object) -> None:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    for each in (OPENAI, Tei()):
        found = read(each, {"x-compute-tokens": "³"}, body, inputs=1, dimensions=2)

        assert isinstance(found, Failure) or found.vectors.shape == (1, 2)


INFO: dict[str, object] = {
    "model_id": "BAAI/bge", "model_sha": "abc", "model_dtype": "float16",
    "model_type": {"embedding": {"pooling": "cls"}}, "max_input_length": 512,
    "max_client_batch_size": 64, "version": "1.8.0",
}  # fmt: skip


def test_tei_says_its_own_terms() -> None:
    terms = Tei().terms(json.dumps(INFO).encode())

    assert (terms.max_inputs, terms.max_tokens, terms.max_input_tokens) == (64, None, 512)
    assert dict(terms.identity) == {
        "model": "BAAI/bge", "sha": "abc", "dtype": "float16", "length": "512",
        "type": '{"embedding": {"pooling": "cls"}}', "fingerprint": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {"model_id": "BAAI/other"},
        {"model_sha": "def"},
        {"model_dtype": "float32"},
        {"model_type": {"embedding": {"pooling": "mean"}}},
        {"max_input_length": 256},
    ],
    ids=str,
)
def test_what_changes_teis_vectors_changes_its_identity(changed: dict[str, object]) -> None:
    def identity(info: dict[str, object]) -> object:
        return Tei().terms(json.dumps(info).encode()).identity

    assert identity(INFO | changed) != identity(INFO)
    assert identity(INFO | {"version": "2", "max_client_batch_size": 8}) == identity(INFO)


@pytest.mark.parametrize(
    "info", [b"", b"<html>", b"[]", b"{}", b'{"model_id": "m", "model_type": {"reranker": {}}}']
)
def test_what_is_no_embedding_tei_is_refused(info: bytes) -> None:
    with pytest.raises(Misfit):
        Tei().terms(info)


def test_the_name_that_is_sent_and_dimensions_are_openais_identity() -> None:
    def identity(**fields: object) -> object:
        given = Upstream.model_validate({"url": "http://h", "protocol": "openai", **fields})
        return wire(given, model="known-as").terms(b"").identity

    assert identity() == (("model", "known-as"),)
    assert identity(model="sent", dimensions=256) == (("model", "sent"), ("dimensions", "256"))
    assert identity(url="http://other") == identity(), "canaries tell"
    assert wire(
        Upstream(url="http://h", protocol=Protocol.TEI), model="m"
    ).info_path == "/info"  # fmt: skip


@pytest.mark.parametrize(
    ("protocol", "url", "asked"),
    [
        ("openai", "https://api.example.com", "https://api.example.com/v1/embeddings"),
        ("openai", "https://api.example.com/", "https://api.example.com/v1/embeddings"),
        ("openai", "https://api.example.com/v1/", "https://api.example.com/v1/embeddings"),
        ("openai", "http://h:8000/openai?v=1", "http://h:8000/openai/embeddings?v=1"),
        ("tei", "http://h:8080", "http://h:8080/embed"),
        ("tei", "http://h/models/bge", "http://h/models/bge/embed"),
    ],
)
def test_a_base_url_is_completed_as_clients_do(protocol: str, url: str, asked: str) -> None:
    given = Upstream.model_validate({"url": url, "protocol": protocol})

    assert str(below(base_url(given), wire(given, model="m").path)) == asked
