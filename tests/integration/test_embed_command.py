import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from click.testing import CliRunner, Result

from embedkeep.cli.embed import BATCH_INPUTS, embed
from embedkeep.cli.finding import target_of
from embedkeep.cli.pipeline import Batches
from embedkeep.cli.reading import MAX_LINE_BYTES, from_lines
from embedkeep.cli.writing import reporting
from embedkeep.config import ClientTls, ServerTls
from embedkeep.errors import EmbedKeepError, InvalidConfig, ModelDrift, Unauthenticated, Unavailable
from embedkeep.runs import NodePorts, Ports, Run
from embedkeep.tls import server_context, server_credentials
from embedkeep.v1 import cache_pb2, cache_pb2_grpc
from embedkeep_operator.local.state import claimed, write_run
from support.certificates import Authority
from support.clients import At
from support.fake_http import serve_http
from support.fake_node import DIMENSIONS, FakeNode, Refusal, running, vector_of


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def address(node: FakeNode) -> Iterator[str]:
    with running(node) as (one,):
        yield one


@pytest.fixture(autouse=True)
def no_local_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def run(*arguments: str, stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(embed, arguments, input=stdin)


def failure(result: Result) -> EmbedKeepError:
    """What the command's root would print."""
    assert isinstance(result.exception, EmbedKeepError), result.output
    return result.exception


def test_arguments_become_json_lines(address: str) -> None:
    result = run("--address", address, "a", "b ü")

    assert result.exit_code == 0, result.output
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"line": number, "text": text, "vector": vector_of(text).tolist(), "source": "l1",
         "tokens": len(text)}
        for number, text in [(1, "a"), (2, "b ü")]
    ]  # fmt: skip


def test_a_proxy_for_the_world_is_not_asked_for_what_is_here(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.delenv("no_proxy", raising=False)

    result = run("--address", address, "--timeout", "5", "a")

    assert result.exit_code == 0, result.output


def test_components_read_back_as_the_same_float32(address: str, node: FakeNode) -> None:
    odd = np.array([0.1, 1 / 3, 1e-30, -1e30, 5e-324, 3.4e38, 16777216, -0.0], dtype=np.float32)

    def plant(response: cache_pb2.EmbedResponse) -> None:
        response.vectors = odd.tobytes()

    node.spoil = plant
    result = run("--address", address, "--no-text", "a")

    record = json.loads(result.stdout)
    assert np.array(record["vector"], dtype=np.float32).tobytes() == odd.tobytes()
    assert "text" not in record


def test_standard_input_is_one_text_a_line(address: str, node: FakeNode) -> None:
    result = run("--address", address, stdin="one\n two \r\n\nlast without end")

    assert result.exit_code == 0
    assert node.texts == ["one", " two ", "", "last without end"]
    assert node.requests[0].priority == cache_pb2.PRIORITY_BULK


def test_a_file_of_many_batches_becomes_one_array(address: str, tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(3 * BATCH_INPUTS + 7)]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    output = tmp_path / "out.npy"

    result = run("-a", address, "--file", str(tmp_path / "texts.txt"), "-o", str(output))

    assert result.exit_code == 0, result.output
    array = np.load(output)
    np.testing.assert_array_equal(np.stack([vector_of(text) for text in texts]), array)
    assert array.dtype == np.float32
    assert f"{len(texts):,} inputs, {DIMENSIONS} dimensions" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"texts.txt", "out.npy"}


def test_json_lines_are_read_by_their_field(address: str, node: FakeNode, tmp_path: Path) -> None:
    file = tmp_path / "docs.jsonl"
    file.write_text('{"body": "a"}\n{"other": 1}\nnot json\n["a"]\n{"body": "b"}\n')

    result = run("-a", address, "--file", str(file), "--field", "body")

    assert result.exit_code == 1
    assert node.texts == ["a", "b"]
    assert [json.loads(line)["line"] for line in result.stdout.splitlines()] == [1, 5]
    assert result.stderr.splitlines()[0] == "line 2: has no string at 'body' (see --field)"
    assert result.stderr.splitlines()[1].startswith("line 3: is no JSON: ")
    assert result.stderr.splitlines()[2].startswith("line 4: has no string")


def test_failed_inputs_are_named_by_line_and_are_rows_of_nan(
    address: str, node: FakeNode, tmp_path: Path
) -> None:
    node.bad_texts = {"bad": (3, "InvalidInput")}
    node.max_input_bytes = 50
    output = tmp_path / "out.npy"
    lines = ["bad", "good", "x" * 60, "\udcff", "fine"]
    stdin = "\n".join(lines).encode(errors="surrogateescape")

    result = run("-a", address, "-o", str(output), stdin=stdin)

    assert result.exit_code == 1
    array = np.load(output)
    assert np.isnan(array[[0, 2, 3]]).all()
    np.testing.assert_array_equal(np.stack([vector_of("good"), vector_of("fine")]), array[[1, 4]])
    assert sorted(result.stderr.splitlines()[:3]) == [
        "line 1: planted",
        "line 3: has 60 bytes of UTF-8; at most 50 here: split it before embedding",
        "line 4: is not UTF-8 (byte 0)",
    ]
    assert "3 failed" in result.stderr


def test_rows_that_fail_before_the_width_is_known_get_their_place(
    address: str, tmp_path: Path
) -> None:
    output = tmp_path / "out.npy"
    stdin = b"\xff\n" * BATCH_INPUTS + b"good\n"

    result = run("-a", address, "-o", str(output), stdin=stdin)

    array = np.load(output)
    assert result.exit_code == 1
    assert array.shape == (BATCH_INPUTS + 1, DIMENSIONS)
    assert np.isnan(array[:-1]).all()
    np.testing.assert_array_equal(vector_of("good"), array[-1])


def test_an_array_can_go_through_a_pipe(address: str) -> None:
    result = run("-a", address, "--format", "npy", "a", "b")

    array = np.load(io.BytesIO(result.stdout_bytes))
    np.testing.assert_array_equal(np.stack([vector_of("a"), vector_of("b")]), array)


def test_a_file_is_left_as_it_was_when_the_cache_fails(
    address: str, node: FakeNode, tmp_path: Path
) -> None:
    output = tmp_path / "out.npy"
    output.write_text("before")
    node.refusals.append(Refusal(code=grpc.StatusCode.UNAUTHENTICATED, reason="Unauthenticated"))

    result = run("-a", address, "-o", str(output), "a")

    assert "planted" in str(failure(result))
    assert output.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]


def test_vectors_of_two_models_are_never_put_into_one_file(
    address: str, node: FakeNode, tmp_path: Path
) -> None:
    def replaced(response: cache_pb2.EmbedResponse) -> None:
        response.fingerprint = f"model-{len(node.requests)}"

    node.spoil = replaced
    node.max_inputs = BATCH_INPUTS
    stdin = "a\n" * (BATCH_INPUTS + 1)

    result = run("-a", address, "-o", str(tmp_path / "out.npy"), stdin=stdin)

    assert isinstance(failure(result), ModelDrift)
    assert f"line {BATCH_INPUTS + 1}" in str(failure(result))


def test_who_gave_no_key_is_told_the_flag(address: str, node: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("wrong\n")
    refusal = Refusal(code=grpc.StatusCode.UNAUTHENTICATED, reason="Unauthenticated")
    node.refusals.extend([refusal] * 2)

    nobody = failure(run("-a", address, "a"))
    stranger = failure(run("-a", address, "--api-key-file", str(tmp_path / "key"), "a"))

    assert (type(nobody), type(stranger)) == (Unauthenticated, Unauthenticated)
    assert "give --api-key-file FILE" in str(nobody)
    assert "--api-key-file" not in str(stranger)


def test_flags_are_what_the_node_is_told(address: str, node: FakeNode, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret-key\n")

    result = run(
        "-a", address, "--model", "docs", "--prompt", "query", "--dimensions", "3",
        "--no-normalize", "--priority", "background", "--only-if-cached", "--no-store",
        "--api-key-file", str(key), "a",
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    view = cache_pb2.View(dimensions=3, normalize=False, encoding=cache_pb2.ENCODING_FLOAT32)
    assert node.requests == [
        cache_pb2.EmbedRequest(
            inputs=["a"], model="docs", prompt="query", view=view,
            priority=cache_pb2.PRIORITY_BACKGROUND,
            cache_control=cache_pb2.CacheControl(no_store=True, only_if_cached=True),
        )
    ]  # fmt: skip
    assert node.metadata[-1]["authorization"] == "Bearer secret-key"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-a", "localhost", "a"], "--address"),
        (["a"], "--address: no cache runs here"),
        (["-a", "h:1", "--file", "/nowhere/x.txt"], "--file: /nowhere/x.txt cannot be read"),
        (["-a", "h:1", "--file", "/nowhere/x.txt", "a"], "not both"),
        (["-a", "h:1", "-o", "/nowhere/x.npy", "a"], "--output: /nowhere/x.npy cannot be written"),
        (["-a", "h:1", "-o", "/", "a"], "--output: / cannot be written: Is a directory"),
        (["-a", "h:1", "--no-cache", "--only-if-cached", "a"], "--only-if-cached: computes not"),
        (["-a", "h:1", "--api-key-file", "/nowhere/key", "a"], "/nowhere/key cannot be read"),
        (["-a", "h:1", "--tls-ca", "/nowhere/ca.pem", "a"], "/nowhere/ca.pem cannot be read"),
        (["-a", "h:1"], "no texts: the input is empty"),
    ],
)
def test_a_wrong_flag_is_named_with_what_to_do(arguments: list[str], named: str) -> None:
    error = failure(run(*arguments))

    assert isinstance(error, InvalidConfig)
    assert named in str(error)


def test_a_cache_that_is_away_is_an_error_and_not_a_half_file(tmp_path: Path) -> None:
    with running(FakeNode()) as (address,):
        pass

    result = run("-a", address, "-o", str(tmp_path / "out.jsonl"), "--timeout", "0.5", "a")

    assert isinstance(failure(result), Unavailable)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def said_to_run(
    root: Path, name: str, address: str, *, pid: int, tls: ClientTls | None = None
) -> Iterator[None]:
    """A cache as `embedkeep up` leaves it on disk; it is going on while the block runs."""
    ports = Ports(
        nodes=tuple(
            NodePorts(grpc=1, http=int(each.rpartition(":")[2]), metrics=1, valkey=1)
            for each in address.split(",")
        ),
        embedder_grpc=1,
        embedder_metrics=1,
    )
    known = tls.model_dump(mode="json") if tls is not None else None
    with claimed(root, name) as folder:
        write_run(
            folder,
            Run(
                name=name, pid=pid, started_at=0, file="/x.yaml", ports=ports, tls=tls is not None,
                client_tls=known,
            ),
        )  # fmt: skip
        yield


def test_a_running_local_cache_is_found_by_its_name_or_alone(tmp_path: Path) -> None:
    with said_to_run(tmp_path, "gone", "127.0.0.1:1", pid=os.getpid()):
        pass  # its process id lives on, as somebody else's may
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "run.json").write_text('{"pid":')

    with said_to_run(tmp_path, "docs", "127.0.0.1:7", pid=1):
        assert target_of(None, tmp_path).address == "http://127.0.0.1:7"
        assert target_of("docs", tmp_path).address == "http://127.0.0.1:7"
        assert target_of("host:1", tmp_path).address == "host:1"
        with pytest.raises(
            InvalidConfig, match=r"last run of gone was killed: name docs, or start"
        ):
            target_of("gone", tmp_path)
        with (
            said_to_run(tmp_path, "more", "127.0.0.1:8", pid=1),
            pytest.raises(InvalidConfig, match=r"several caches run here \(docs, more\)"),
        ):
            target_of(None, tmp_path)


def test_a_cache_of_several_nodes_is_one_target_that_is_balanced(tmp_path: Path) -> None:
    with said_to_run(tmp_path, "docs", "127.0.0.1:7,127.0.0.1:8", pid=1):
        both = "http://127.0.0.1:7,http://127.0.0.1:8"
        assert target_of("docs", tmp_path).address == both
    assert target_of("127.0.0.1:7,127.0.0.1:8", tmp_path) == target_of(
        "ipv4:127.0.0.1:7,127.0.0.1:8", tmp_path
    )


def test_several_addresses_are_all_asked() -> None:
    with running(FakeNode(), FakeNode()) as addresses:
        over_http = ",".join(each.http for each in addresses)
        for given in (over_http, ",".join(addresses), f"ipv4:{','.join(addresses)}"):
            assert run("--address", given, "a", "b").exit_code == 0

        result = run("--address", f"{addresses[0]},node:1", "a")

    assert str(failure(result)).startswith("--address: 'node:1': of several addresses each must")


def test_a_cache_under_another_state_folder_is_found(address: At, tmp_path: Path) -> None:
    with said_to_run(tmp_path / "mine", "docs", address.http, pid=1):
        result = run("--state-dir", str(tmp_path / "mine"), "a")

    assert result.exit_code == 0, result.output


@pytest.fixture
def behind_tls(node: FakeNode, tmp_path: Path) -> Iterator[tuple[At, ClientTls]]:
    """The node's place, and how to reach it."""
    authority = Authority(tmp_path / "authority")
    pair = authority.issue("docs.test")
    shown = ServerTls(cert_file=pair.cert_file, key_file=pair.key_file)
    server = grpc.server(ThreadPoolExecutor(2))
    cache_pb2_grpc.add_EmbeddingCacheServicer_to_server(node, server)
    port = server.add_secure_port("127.0.0.1:0", server_credentials(shown))
    server.start()
    web = serve_http(node, 0, tls=server_context(shown))
    place = At(f"127.0.0.1:{port}", http=f"https://127.0.0.1:{web.server_address[1]}")
    yield place, ClientTls(ca_file=authority.ca_file, server_name="docs.test")
    server.stop(None).wait()
    web.shutdown()
    web.server_close()


def test_a_local_cache_is_reached_by_its_name_over_tls(
    behind_tls: tuple[At, ClientTls], tmp_path: Path
) -> None:
    address, tls = behind_tls
    with said_to_run(tmp_path / "state" / "embedkeep", "docs", address.http, pid=1, tls=tls):
        result = run("--address", "docs", "a")

    assert result.exit_code == 0, result.output


def test_a_plain_call_of_a_node_with_tls_says_what_is_missing(
    behind_tls: tuple[At, ClientTls],
) -> None:
    place, _ = behind_tls
    plain = place.http.replace("https:", "http:")
    over_grpc = failure(run("--address", place, "--timeout", "5", "a"))
    over_http = failure(run("--address", plain, "--timeout", "5", "a"))
    stranger = failure(run("--address", place.http, "--timeout", "5", "a"))
    mixed = failure(run("--address", plain, "--tls-name", "docs.test", "a"))

    assert str(over_grpc).endswith("if the node speaks TLS, give --tls-ca FILE")
    assert str(over_http).endswith("if the node speaks TLS, write https://")
    assert str(stranger).endswith("--tls-ca FILE names the authority to trust")
    assert str(mixed).startswith("--address: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
def test_a_full_disk_is_named() -> None:
    with (
        pytest.raises(InvalidConfig) as caught,
        reporting("out.npy"),
        Path("/dev/full").open("wb") as full,
    ):
        full.write(b"x")

    assert str(caught.value) == "--output: out.npy cannot be written: No space left on device"


def test_a_line_without_end_is_passed_over_in_bounded_memory() -> None:
    stream = io.BytesIO(b"a\n" + b"x" * (3 * MAX_LINE_BYTES) + b"\nb\n" + b"y" * MAX_LINE_BYTES)

    lines = list(from_lines(stream))

    assert [(line.number, line.text[:1], bool(line.problem)) for line in lines] == [
        (1, "a", False), (2, "", True), (3, "b", False), (4, "y", False),
    ]  # fmt: skip


def test_no_more_than_one_batch_is_read_ahead() -> None:
    """A million lines cost the memory of one batch."""
    stream = io.BytesIO(b"text\n" * (10 * BATCH_INPUTS))

    first = Batches(from_lines(stream)).take(BATCH_INPUTS)

    assert len(first) == BATCH_INPUTS
    assert stream.tell() == len(b"text\n") * BATCH_INPUTS


def test_help_teaches_by_examples() -> None:
    text = run("--help").output

    assert "embedkeep embed --file questions.txt --output questions.npy" in text
    assert "Exit status" in text
