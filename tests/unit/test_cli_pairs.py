import base64
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from embedkeep.cli.langchain_store import FolderStore, key_of
from embedkeep.cli.pairs import Chained, JsonPairs, Pair, StorePairs, vector_of
from embedkeep.cli.parquet import ParquetPairs
from embedkeep.cli.writing import _components
from embedkeep.errors import InvalidConfig


def numbers(pair: Pair) -> list[float] | None:
    return None if pair.vector is None else pair.vector.tolist()


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(arrays(np.float32, 8, elements=FLOATS))
def test_a_vector_comes_out_of_json_with_the_bits_it_had(vector: NDArray[np.float32]) -> None:
    as_floats = json.loads(json.dumps(vector.tolist()))
    written = json.loads(f"[{_components(vector)}]")
    as_bytes = base64.b64encode(vector.tobytes()).decode()

    for value in (as_floats, written, as_bytes):
        assert vector_of(value).tobytes() == vector.tobytes()


@pytest.mark.parametrize(
    "value",
    [None, 1, {}, [], "", "%%%", base64.b64encode(b"123").decode(), ["1"], [[1.0]], [1, [2]],
     [True], [None], [1, None]],
)  # fmt: skip
def test_what_is_no_vector_says_so(value: object) -> None:
    with pytest.raises(ValueError, match=r"vector|base64"):
        vector_of(value)


def test_json_lines_say_which_are_no_pairs(tmp_path: Path) -> None:
    lines = [
        '{"text": "a", "vector": [1, 2], "tokens": 3, "truncated": true}', "{", '{"text": "b"}',
        '{"vector": [1]}', "[]", '{"text": "c", "vector": [3.5], "tokens": -1}',
    ]  # fmt: skip
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(lines))

    pairs = JsonPairs(file, text_field="text", vector_field="vector")
    found = list(pairs.read())

    assert pairs.total() == len(lines)
    assert [(pair.number, bool(pair.problem)) for pair in found] == [
        (1, False), (2, True), (3, True), (4, True), (5, True), (6, False),
    ]  # fmt: skip
    assert (found[0].text, numbers(found[0]), found[0].tokens, found[0].truncated) == (
        "a", [1, 2], 3, True,
    )  # fmt: skip
    assert found[5].tokens == 0
    assert "--vector-field" in found[2].problem
    assert found[1].place == f"{file} line 2"


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float32()), pa.list_(pa.float64()), pa.list_(pa.float32(), 2),
     pa.large_list(pa.float16())],
)  # fmt: skip
def test_parquet_has_lists_of_any_float(tmp_path: Path, kind: object) -> None:
    vectors = [[1.5, 2.0], None, [-1.0, 0.5]]
    half = pa.types.is_float16(kind.value_type)  # type: ignore[attr-defined]  # pyarrow's types are unknown
    values = [v and np.array(v, np.float16 if half else np.float64) for v in vectors]
    table = pa.table(
        {"body": ["a", "b", "c"], "v": pa.array(values, kind), "tokens": pa.array([1, 2, None])}
    )
    pq.write_table(table, tmp_path / "p.parquet")

    pairs = ParquetPairs(tmp_path / "p.parquet", text_field="body", vector_field="v")
    found = list(pairs.read())

    assert pairs.total() == 3
    assert [numbers(pair) for pair in found] == [[1.5, 2.0], None, [-1.0, 0.5]]
    assert [pair.tokens for pair in found] == [1, 0, 0]
    assert [pair.number for pair in pairs.read({3})] == [3]
    assert found[1].problem == "has no text or no vector"


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"text": ["a"]}, "has no column 'vector'; it has text"),
        ({"text": [1], "vector": [[1.0]]}, "column 'text' of"),
        ({"text": ["a"], "vector": [1.0]}, "not lists of floats"),
        ({"text": ["a"], "vector": [["x"]]}, "not lists of floats"),
    ],
)
def test_columns_that_are_no_pairs_are_named(
    tmp_path: Path, columns: dict[str, list[object]], said: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")

    with pytest.raises(InvalidConfig, match=said):
        ParquetPairs(tmp_path / "p.parquet", text_field="text", vector_field="vector")


def test_numbers_go_on_from_file_to_file(tmp_path: Path) -> None:
    parts = []
    for name in ("x", "y", "z"):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(f'{{"text": "{name}{n}", "vector": [1]}}\n' for n in range(3)))
        parts.append(JsonPairs(file, text_field="text", vector_field="vector"))

    chained = Chained(parts)

    assert chained.total() == 9
    assert [(pair.number, pair.text) for pair in chained.read({1, 5, 9})] == [
        (1, "x0"), (5, "y1"), (9, "z2"),
    ]  # fmt: skip
    assert [pair.number for pair in chained.read()] == list(range(1, 10))


def test_texts_are_looked_up_in_a_store_and_those_it_lacks_are_absent(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    for text, value in {"a": b"[1.0, 2.0]", "bad": b"{"}.items():
        key = key_of(text, namespace="ns/", encoder="sha256")
        (tmp_path / "store" / key).parent.mkdir(exist_ok=True)
        (tmp_path / "store" / key).write_bytes(value)
    (tmp_path / "texts.txt").write_text("a\nmissing\nbad\n")

    pairs = StorePairs(
        tmp_path / "texts.txt", FolderStore(tmp_path / "store"),
        field="text", namespace="ns/", encoder="sha256",
    )  # fmt: skip
    found = list(pairs.read())

    assert numbers(found[0]) == [1.0, 2.0]
    assert [(pair.absent, bool(pair.problem)) for pair in found] == [
        (False, False), (True, True), (False, True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("encoder", "key"),
    [
        ("sha1", "2a165703-ed24-509d-a73e-8909b5f0892a"),
        ("sha256", "6015596daae442991ded8720c5aaaff107780a7f6941ff16f2f80ed567cbfb8d"),
        ("blake2b", "d0eab88ff4b156a52aad2dd35e12e65470b1b73bb80c4017ef36c0f0343cc59a"),
        ("sha512", "92a5fc837df04260ec7fa85f970636aff6c16acca1b3c0affc48a593a5853af6"),
    ],
)
def test_keys_are_those_that_langchain_makes(encoder: str, key: str) -> None:
    """Made by langchain_classic 1.0.8; tests/clients has its stores whole."""
    text = "how do I reset my password? ü"

    assert key_of(text, namespace="ns", encoder=encoder)[: 2 + 64] == f"ns{key}"
