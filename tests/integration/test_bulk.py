"""`embedkeep embed --bulk`, against a stand-in of a node: what it writes, and how it goes on."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from embedkeep.cli.embed import embed
from embedkeep.errors import (
    EmbedKeepError,
    InvalidConfig,
    InvalidResponse,
    ModelDrift,
    Unavailable,
)
from embedkeep.v1 import cache_pb2
from support.fake_node import DIMENSIONS, FakeNode, Refusal, running, vector_of

WAIT_S = 60.0


@pytest.fixture
def node() -> FakeNode:
    return FakeNode(max_inputs=2048, max_message_bytes=1 << 20)


@pytest.fixture
def address(node: FakeNode) -> Iterator[str]:
    with running(node) as (one,):
        yield one


def bulk(address: str, source: Path, output: Path, *more: str) -> Result:
    arguments = ["-a", address, "--bulk", "-f", str(source), "-o", str(output), *more]
    return CliRunner().invoke(embed, arguments)


def failure(result: Result) -> EmbedKeepError:
    assert isinstance(result.exception, EmbedKeepError), result.output
    return result.exception


def written(folder: Path, texts: list[str], name: str = "in.txt") -> Path:
    file = folder / name
    file.write_text("".join(f"{text}\n" for text in texts))
    return file


def numbered(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


def test_lines_become_json_lines_in_order(address: str, tmp_path: Path) -> None:
    texts = numbered(3000)

    result = bulk(address, written(tmp_path, texts), tmp_path / "out.jsonl")

    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert records == [
        {"line": number, "text": text, "vector": vector_of(text).tolist(), "tokens": len(text)}
        for number, text in enumerate(texts, start=1)
    ]
    assert "3,000 inputs, 8 dimensions; 3,000 from l1" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"in.txt", "out.jsonl"}


def test_lines_become_an_array(address: str, tmp_path: Path) -> None:
    texts = numbered(3000)

    result = bulk(address, written(tmp_path, texts), tmp_path / "out.npy")

    assert result.exit_code == 0, result.output
    expected = np.stack([vector_of(text) for text in texts])
    np.testing.assert_array_equal(expected, np.load(tmp_path / "out.npy"))


def test_a_column_of_parquet_becomes_parquet(address: str, tmp_path: Path) -> None:
    import pyarrow as pa  # noqa: PLC0415  # its types are not known here

    texts: list[str | None] = [*numbered(3000), None, "x" * 600]
    pq.write_table(pa.table({"id": range(3002), "body": texts}), tmp_path / "in.parquet")

    result = bulk(address, tmp_path / "in.parquet", tmp_path / "out.parquet", "--field", "body")

    assert result.exit_code == 1, result.output
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("vector").type == pa.list_(pa.float32(), DIMENSIONS)
    assert table.schema.metadata[b"embedkeep.fingerprint"] == b"model-a"
    assert table["text"].to_pylist() == [text for text in texts if text is not None]
    assert table["line"].to_pylist() == [*range(1, 3001), 3002]
    assert table["truncated"].to_pylist() == [False] * 3000 + [True]
    flat = np.concatenate([np.asarray(chunk.flatten()) for chunk in table["vector"].chunks])
    known = [text for text in texts if text is not None]
    np.testing.assert_array_equal(np.concatenate([vector_of(text) for text in known]), flat)
    failures = (tmp_path / "out.parquet.failures.jsonl").read_text()
    assert [json.loads(line) for line in failures.splitlines()] == [
        {"line": 3001, "error": "has no text in 'body'"}
    ]


def test_what_fails_is_named_in_a_file_and_stops_nothing(
    address: str, node: FakeNode, tmp_path: Path
) -> None:
    node.bad_texts = {"text 5": (3, "InvalidInput"), "text 2000": (13, "Internal")}

    result = bulk(address, written(tmp_path, numbered(3000)), tmp_path / "out.npy")

    assert result.exit_code == 1
    array = np.load(tmp_path / "out.npy")
    assert np.flatnonzero(np.isnan(array[:, 0])).tolist() == [5, 2000]
    failures = (tmp_path / "out.npy.failures.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in failures] == [
        {"line": 6, "error": "planted"}, {"line": 2001, "error": "planted"},
    ]  # fmt: skip
    assert "2 failed (named in" in result.stderr


@pytest.mark.parametrize("form", ["npy", "jsonl", "parquet"])
def test_a_killed_run_goes_on_and_ends_like_one_that_was_not(
    address: str, node: FakeNode, tmp_path: Path, form: str
) -> None:
    """Whenever the power goes: nothing is there twice, and nothing is missing."""
    node.bad_texts = {"text 77": (3, "InvalidInput"), "text 25000": (3, "InvalidInput")}
    source = written(tmp_path, numbered(30_000))
    assert bulk(address, source, tmp_path / f"whole.{form}").exit_code == 1

    output = tmp_path / f"out.{form}"
    command = [
        sys.executable, "-m", "embedkeep", "embed", "-a", address, "--bulk",
        "-f", str(source), "-o", str(output),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(_impatient(tmp_path))}
    for number in (2, 4):  # killed twice, at different places
        node.requests.clear()
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            _until(lambda number=number: len(node.requests) > 10 * number)
            _until((tmp_path / f"out.{form}.checkpoint").exists)
            process.kill()
    checkpoint = json.loads((tmp_path / f"out.{form}.checkpoint").read_text())
    assert 0 < checkpoint["done"] < 30_000
    with (tmp_path / f"out.{form}.part").open("ab") as torn:
        torn.write(b"half a l")  # what the kernel may have written of a block

    result = bulk(address, source, output)

    assert result.exit_code == 1, result.output
    if form == "parquet":
        assert pq.read_table(output) == pq.read_table(tmp_path / "whole.parquet")
    else:
        assert output.read_bytes() == (tmp_path / f"whole.{form}").read_bytes()
    ends = [tmp_path / f"{name}.{form}.failures.jsonl" for name in ("out", "whole")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    assert "30,000 inputs" in result.stderr
    assert not (tmp_path / f"out.{form}.checkpoint").exists()


def _impatient(folder: Path) -> Path:
    """A folder for PYTHONPATH that makes a run write a checkpoint after each batch."""
    place = folder / "site"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(
        "import embedkeep.cli.journal as j, embedkeep.cli.pipeline as p\n"
        "j.EVERY_S = 0.0\np.MAX_ITEMS = 128\n"
    )
    return place


def _until(condition: object) -> None:
    """Wait for what another process does."""
    end = time.monotonic() + WAIT_S
    while not condition():  # type: ignore[operator]  # a callable
        assert time.monotonic() < end
        time.sleep(0.002)


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(
    address: str, node: FakeNode, tmp_path: Path
) -> None:
    source = written(tmp_path, numbered(300))
    command = [
        sys.executable, "-m", "embedkeep", "embed", "-a", address, "--bulk",
        "-f", str(source), "-o", str(tmp_path / "out.npy"),
    ]  # fmt: skip
    entered, held = threading.Event(), threading.Event()

    def answer(request: cache_pb2.EmbedRequest) -> cache_pb2.EmbedResponse:
        if "text 250" in request.inputs:
            entered.set()
            held.wait(WAIT_S)
        return FakeNode.answer(node, request)

    with (
        pytest.MonkeyPatch.context() as patched,
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process,
    ):
        patched.setattr(node, "answer", answer)
        assert entered.wait(WAIT_S)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=WAIT_S)
        held.set()

    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "the same command goes on from there" in err
    result = bulk(address, source, tmp_path / "out.npy")
    assert result.exit_code == 0, result.output
    expected = np.stack([vector_of(text) for text in numbered(300)])
    np.testing.assert_array_equal(expected, np.load(tmp_path / "out.npy"))


def stopped(address: str, node: FakeNode, source: Path, output: Path) -> None:
    """A run that ends half-way, with a checkpoint behind it."""

    def answer(request: cache_pb2.EmbedRequest) -> cache_pb2.EmbedResponse:
        if "text 500" in request.inputs:
            return cache_pb2.EmbedResponse()  # nothing that would fit
        return FakeNode.answer(node, request)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(node, "answer", answer)
        result = bulk(address, source, output)
    assert isinstance(failure(result), InvalidResponse)
    assert "the same command goes on from there" in result.stderr


def test_a_changed_input_is_refused_with_what_to_do_and_a_longer_one_is_not(
    address: str, node: FakeNode, tmp_path: Path
) -> None:
    texts = numbered(1000)
    source, output = written(tmp_path, texts), tmp_path / "out.npy"
    stopped(address, node, source, output)

    written(tmp_path, ["another", *texts[1:]])
    refused = failure(bulk(address, source, output))
    written(tmp_path, [*texts, "more"])
    result = bulk(address, source, output)

    assert isinstance(refused, InvalidConfig)
    assert "the input has changed since" in str(refused)
    assert "--restart begins anew" in str(refused)
    assert result.exit_code == 0, result.output
    assert len(np.load(output)) == 1001


def test_other_options_are_refused_and_a_restart_begins_anew(
    address: str, node: FakeNode, tmp_path: Path
) -> None:
    source, output = written(tmp_path, numbered(1000)), tmp_path / "out.npy"
    stopped(address, node, source, output)

    refused = failure(bulk(address, source, output, "--prompt", "query"))
    node.requests.clear()
    result = bulk(address, source, output, "--prompt", "query", "--restart")

    assert "prompt was not given then and is 'query' now" in str(refused)
    assert result.exit_code == 0, result.output
    assert len(node.texts) == 1000


def test_a_model_that_was_replaced_meanwhile_is_never_mixed_in(
    address: str, node: FakeNode, tmp_path: Path
) -> None:
    source, output = written(tmp_path, numbered(1000)), tmp_path / "out.npy"
    stopped(address, node, source, output)
    node.model = "model-b"

    assert "model's fingerprint was 'model-a'" in str(failure(bulk(address, source, output)))

    def replaced(_response: object) -> None:
        node.model = "model-c"

    node.spoil = replaced
    result = bulk(address, source, output, "--restart")
    assert isinstance(failure(result), ModelDrift), result.output


def test_a_node_that_is_overrun_or_away_is_waited_for(
    address: str, node: FakeNode, tmp_path: Path
) -> None:
    busy, gone = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE
    node.refusals.append(Refusal(code=gone, reason="Unavailable", retry_after_ms=1))  # of Info
    node.refusals.extend(
        Refusal(code=busy, reason="Overloaded", retry_after_ms=1) for _ in range(12)
    )

    result = bulk(address, written(tmp_path, numbered(100)), tmp_path / "out.npy")

    assert result.exit_code == 0, result.output


def test_patience_ends(address: str, node: FakeNode, tmp_path: Path) -> None:
    source = written(tmp_path, numbered(100))

    def down(_response: object) -> None:
        node.refusals.extend(
            Refusal(code=grpc.StatusCode.UNAVAILABLE, reason="Unavailable") for _ in range(1000)
        )

    node.spoil = down
    result = bulk(address, source, tmp_path / "out.npy", "--timeout", "0.5")

    assert isinstance(failure(result), Unavailable)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bulk"], "--bulk: needs --file"),
        (["--bulk", "text"], "--bulk: needs --file"),
        (["--bulk", "-f", "-"], "--bulk: needs --file"),
        (["--bulk", "-f", "in.txt"], "--bulk: needs --output"),
        (["--bulk", "-f", "/nowhere/x", "-o", "out"], "--file: /nowhere/x cannot be read"),
        (["--bulk", "-f", "empty.txt", "-o", "out"], "--file: no texts"),
        (["--bulk", "-f", "in.txt", "-o", "/"], "--output: / is a folder"),
        (["--bulk", "-f", "in.txt", "-o", "/nowhere/x"], "--output: /nowhere/x cannot be written"),
        (["--bulk", "-f", "in.parquet", "-o", "out"], "in.parquet is no Parquet file"),
        (["--restart", "text"], "--restart: is for --bulk"),
        (["-o", "x.parquet", "text"], "--format: Parquet is written with --bulk"),
    ],
)
def test_a_wrong_flag_is_named(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("a\n")
    Path("in.parquet").write_text("a\n")
    Path("empty.txt").write_text("")

    result = CliRunner().invoke(embed, ["-a", address, *arguments])

    assert said in str(failure(result))
    assert {path.name for path in tmp_path.iterdir()} == {"in.txt", "in.parquet", "empty.txt"}
