"""`embedkeep import` and `embedkeep export`, through a real node and a real Valkey."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from embedkeep.cli.exporting import export
from embedkeep.cli.importing import import_
from embedkeep.errors import EmbedKeepError, InvalidConfig, InvalidRequest, InvalidVector
from embedkeep.v1 import cache_pb2
from support.node import Node, sources, tapped, until
from support.tap import DIMENSIONS, Tap


@pytest.fixture
def tap() -> Tap:
    return Tap(steady=True)


@pytest.fixture
def node_fields() -> dict[str, object]:
    return {"imports": True}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


async def taken(node: Node, *arguments: str) -> Result:
    address = ["-a", f"127.0.0.1:{node.port}"]
    return await asyncio.to_thread(CliRunner().invoke, import_, [*address, *arguments])


async def exported(node: Node, *arguments: str) -> Result:
    address = ["-a", f"127.0.0.1:{node.port}"]
    return await asyncio.to_thread(CliRunner().invoke, export, [*address, *arguments])


def failure(result: Result) -> EmbedKeepError:
    assert isinstance(result.exception, EmbedKeepError), result.output
    return result.exception


def made(texts: list[str]) -> NDArray[np.float32]:
    """What the model returns."""
    elsewhere = Tap(steady=True)
    return np.frombuffer(b"".join(map(elsewhere.vector, texts)), np.float32).reshape(-1, DIMENSIONS)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def numbered(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


def lines(texts: list[str], vectors: NDArray[np.float32]) -> str:
    return "".join(
        json.dumps({"text": text, "vector": row.tolist()}) + "\n"
        for text, row in zip(texts, vectors, strict=True)
    )


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
async def test_what_is_exported_comes_back_bit_for_bit(
    node: Node, tap: Tap, here: Path, form: str
) -> None:
    texts = [*numbered(1500), 'a, "b"\t\\n ü 😀']
    (here / "texts.txt").write_text("\n".join(texts))
    before = await node.embed(*texts)

    wrote = await exported(node, "--texts", "texts.txt", "-o", f"out.{form}")
    await node.invalidate()
    gone = await node.embed(*texts, cache_control=cache_pb2.CacheControl(only_if_cached=True))
    tap.calls.clear()
    read = await taken(node, f"out.{form}")
    computed = len(tap.texts)
    after = await node.embed(*texts)

    assert (wrote.exit_code, read.exit_code) == (0, 0), wrote.output + read.output
    assert set(gone.statuses) == {5}
    assert after.vectors == before.vectors
    assert list(after.tokens) == list(before.tokens)
    assert set(sources(after)) == {"valkey"}
    assert len(tap.texts) == computed < 64 + 100
    assert "1,501 stored, 0 there already" in read.stderr
    assert names(here) == {"texts.txt", f"out.{form}"}


async def test_an_export_computes_nothing_and_counts_what_is_missing(
    node: Node, tap: Tap, here: Path
) -> None:
    texts = numbered(100)
    await node.embed(*texts[::2])
    tap.calls.clear()
    (here / "texts.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))

    result = await exported(node, "--texts", "texts.jsonl", "--field", "body", "-o", "out.jsonl")

    assert result.exit_code == 0, result.output
    assert "50 from l1, 50 not cached" in result.stderr
    records = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
    assert [record["text"] for record in records] == texts[::2]
    assert tap.calls == []


async def test_vectors_of_another_model_are_found_out_before_one_is_sent(
    node: Node, tap: Tap, here: Path
) -> None:
    texts = numbered(1000)
    vectors = made(texts).copy()
    vectors[:, :2] *= -1
    (here / "pairs.jsonl").write_text(lines(texts, vectors))

    error = failure(await taken(node, "pairs.jsonl"))

    assert isinstance(error, InvalidVector)
    assert "pairs.jsonl line" in str(error)
    assert "64 of 64 compared differ from acme/counter. Nothing was sent" in str(error)
    assert await node.metric("embedkeep_imported_total", result="refused") == 0
    assert len(tap.texts) == 64


async def test_what_the_sample_missed_the_node_finds_and_names_by_its_line(
    node: Node, here: Path
) -> None:
    """The node draws 4 of each batch, so all of one batch being wrong is found."""
    texts = numbered(2000)
    vectors = made(texts).copy()
    vectors[32:96] *= -1  # the second batch
    (here / "pairs.jsonl").write_text(lines(texts, vectors))

    error = failure(await taken(node, "--sample", "1", "pairs.jsonl"))
    while "compared differ" in str(error):  # the one that was drawn is of that batch
        error = failure(await taken(node, "--sample", "1", "pairs.jsonl"))

    assert isinstance(error, InvalidVector)
    place = int(str(error).partition("line ")[2].partition(":")[0])
    assert 32 < place <= 96
    assert "cosine -1.000000" in str(error)


async def test_broken_lines_are_named_and_do_not_stop_it(node: Node, here: Path) -> None:
    texts = numbered(200)
    good = lines(texts, made(texts)).splitlines(keepends=True)
    bad = [
        "{\n", '{"text": "x", "vector": [1, 2]}\n',
        json.dumps({"text": "", "vector": [1.0] * DIMENSIONS}) + "\n",
        json.dumps({"text": "nan", "vector": [float("nan")] * DIMENSIONS}) + "\n",
        json.dumps({"text": "nil", "vector": [0.0] * DIMENSIONS}) + "\n",
        json.dumps({"text": "\ud800", "vector": [1.0] * DIMENSIONS}) + "\n",
    ]  # fmt: skip
    (here / "pairs.jsonl").write_text("".join(good[:100] + bad + good[100:]))

    result = await taken(node, "pairs.jsonl")

    assert result.exit_code == 1, result.output
    assert "200 stored" in result.stderr
    failures = (here / "pairs.jsonl.import.failures.jsonl").read_text().splitlines()
    said = [(record["place"], record["error"]) for record in map(json.loads, failures)]
    assert [place for place, _ in said] == [f"pairs.jsonl line {at}" for at in range(101, 107)]
    for (_, error), part in zip(
        said,
        ["is no JSON", "2 dimensions; acme/counter has 8", "empty", "NaN", "length 0", "surrogate"],
        strict=True,
    ):
        assert part in error


async def test_a_killed_import_goes_on_and_leaves_what_an_uninterrupted_one_does(
    node: Node, tap: Tap, here: Path
) -> None:
    texts = numbered(20_000)
    (here / "pairs.jsonl").write_text(lines(texts, made(texts)))
    (here / "site").mkdir()
    (here / "site" / "sitecustomize.py").write_text(
        "import embedkeep.cli.journal as j, embedkeep.cli.pipeline as p\n"
        "j.EVERY_S = 0.0\np.MAX_ITEMS = 64\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "embedkeep", "import", "-a", f"127.0.0.1:{node.port}", "pairs.jsonl",
        env={**os.environ, "PYTHONPATH": str(here / "site")}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoint = here / "pairs.jsonl.import.checkpoint"

    async def under_way() -> bool:
        return checkpoint.exists()

    await until(under_way)
    process.kill()
    await process.wait()
    done = json.loads(checkpoint.read_text())["done"]
    assert 0 < done < 20_000

    result = await taken(node, "pairs.jsonl")

    assert result.exit_code == 0, result.output
    tap.calls.clear()
    for first in range(0, 20_000, 1000):
        part = texts[first : first + 1000]
        assert (await node.embed(*part)).vectors == made(part).tobytes()
    assert tap.calls == []
    assert not checkpoint.exists()


async def test_vectors_of_another_size_are_no_pairs_of_this_model(node: Node, here: Path) -> None:
    (here / "pairs.jsonl").write_text('{"text": "a", "vector": [1, 2]}\n' * 3)

    error = failure(await taken(node, "pairs.jsonl"))

    assert "pairs.jsonl line 1: its vector has 2 dimensions; acme/counter has 8" in str(error)


async def test_a_dry_run_says_what_would_be_and_keeps_nothing(node: Node, here: Path) -> None:
    (here / "pairs.jsonl").write_text(lines(numbered(100), made(numbered(100))))

    result = await taken(node, "--dry-run", "pairs.jsonl")

    assert result.exit_code == 0, result.output
    assert "checked in" in result.stderr
    assert "100 stored" in result.stderr
    assert set(sources(await node.embed(*numbered(100)))) == {"embedder"}


async def test_a_cache_that_takes_none_says_which_field_allows_it(
    tap: Tap, tmp_path: Path, here: Path
) -> None:
    (here / "pairs.jsonl").write_text(lines(["a"], made(["a"])))
    async with tapped(tap, tmp_path) as off:
        error = failure(await taken(off, "pairs.jsonl"))

    assert isinstance(error, InvalidRequest)
    assert "spec.security.imports: true allows them" in str(error)


async def test_the_prompt_is_the_one_they_were_made_with(node: Node, here: Path) -> None:
    vectors = made([f"query: {text}" for text in numbered(10)])
    (here / "pairs.jsonl").write_text(lines(numbered(10), vectors))

    wrong = failure(await taken(node, "pairs.jsonl"))
    right = await taken(node, "--prompt", "query", "pairs.jsonl")

    assert "with this prompt?" in str(wrong)
    assert right.exit_code == 0, right.output
    assert set(sources(await node.embed(*numbered(10), prompt="query"))) == {"valkey"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "FILE: give files of pairs"),
        (["--texts", "texts.txt"], "--texts: is for --langchain-store"),
        (["--langchain-store", "."], "--texts: is needed"),
        (["--langchain-store", ".", "--texts", "texts.txt", "p.jsonl"], "not both"),
        (["--langchain-store", "nowhere", "--texts", "texts.txt"], "nowhere is no folder"),
        (["--langchain-store", "s3://x", "--texts", "texts.txt"], "s3:// is none"),
        (["--langchain-store", "redis://127.0.0.1:9", "--texts", "texts.txt"], "127.0.0.1:9 can"),
        (["--langchain-store", "redis://h:x", "--texts", "texts.txt"], "is no URL"),
        (["--langchain-store", ".", "--texts", "texts.txt"], "not one pair that could"),
        (["--langchain-store", ".", "--texts", "nowhere.txt"], "--texts: nowhere.txt cannot be"),
        (["nowhere.jsonl"], "FILE: nowhere.jsonl cannot be read"),
        (["nowhere.parquet"], "FILE: nowhere.parquet cannot be read"),
        (["texts.parquet"], "FILE: texts.parquet is no Parquet"),
        (["empty.jsonl"], "FILE: no pairs: the input is empty"),
        (["texts.txt"], "not one pair that could be the model's: texts.txt line 1: is no JSON"),
    ],
)
async def test_wrong_input_is_named(
    node: Node, here: Path, arguments: list[str], said: str
) -> None:
    (here / "texts.txt").write_text("a\n")
    (here / "texts.parquet").write_text("a\n")
    (here / "empty.jsonl").write_text("")

    if said.startswith("--texts: is needed"):
        arguments = arguments[:2]
    error = failure(await taken(node, *arguments))

    assert isinstance(error, InvalidConfig)
    assert said in str(error)
