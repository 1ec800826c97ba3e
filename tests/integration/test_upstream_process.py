"""A process that asks an upstream: its start, its key, its ways out, and a real node before it."""

import asyncio
import json
import ssl
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from aiohttp import web

from embedkeep.keys import KEY_BYTES
from embedkeep.v1 import embedder_pb2 as pb
from embedkeep.v1 import embedder_pb2_grpc
from support.certificates import Authority
from support.embedder import EmbedderProcess, embedder
from support.node import floats, node_config, rows, running, sources, until, until_serving
from support.upstream import KEY, FakeUpstream, refused, serve, vector_of
from support.valkey import Valkey

MODEL = {"name": "acme/fake", "revision": "r1"}
ENGINES = ("onnxruntime", "onnx", "torch", "tokenizers", "huggingface_hub", "safetensors")


def upstream(fake: FakeUpstream, **fields: object) -> dict[str, object]:
    return {"url": fake.url, "protocol": fake.protocol, **fields}


async def serving(process: EmbedderProcess) -> int:
    """Its port, once it can be asked."""
    port = await asyncio.to_thread(process.port)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await until_serving(channel)
    return port


async def asked(port: int, *texts: str) -> pb.ComputeResponse:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: embedder_pb2_grpc.EmbedderAsyncStub = embedder_pb2_grpc.EmbedderStub(channel)
        return await stub.Embed(pb.ComputeRequest(inputs=texts), timeout=30)


def test_the_base_installation_is_enough() -> None:
    """Nobody should install a model's engine to ask somebody else's."""
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            (
                f"import sys; sys.modules.update(dict.fromkeys({ENGINES!r}))\n"
                "import embedkeep.embedder.main, embedkeep.embedder.upstream.service"
            ),
        ],
        check=False,
        capture_output=True,
        text=True,
    )

    assert (said.returncode, said.stderr) == (0, "")


async def test_hits_cost_no_request_and_misses_one(tmp_path: Path) -> None:
    fake = FakeUpstream(noise=1e-4)  # no two answers are the same
    async with serve(fake):
        with embedder(tmp_path, model=MODEL, upstream=upstream(fake)) as process:
            port = await serving(process)
            async with running(node_config(tmp_path, port)) as node:
                fake.forget()
                first = await node.embed("one", "two", "one", prompt="query")
                again = await node.embed("two", "one", prompt="query")
                saved = await node.metric("embedkeep_saved_tokens_total")

    assert [sorted(texts) for texts in fake.asked] == [["query: one", "query: two"]]
    assert sources(first) == ["embedder", "embedder", "coalesced"]
    assert sources(again) == ["l1", "l1"]
    assert [*rows(first)[:2]] == [*reversed(rows(again))], "bit for bit what came first"
    assert saved == sum(again.tokens) + first.tokens[2] > 0


async def test_a_bad_input_is_an_error_of_its_row_and_its_mates_are_kept(tmp_path: Path) -> None:
    async def refuses(texts: list[str]) -> web.Response | None:
        return refused(400, "no", None) if "bad" in texts else None

    fake = FakeUpstream(always=refuses)
    async with serve(fake):
        with embedder(tmp_path, model=MODEL, upstream=upstream(fake)) as process:
            async with running(node_config(tmp_path, await serving(process))) as node:
                first = await node.embed("a", "bad", "b")
                fake.forget()
                again = await node.embed("a", "b")

    assert [(error.index, error.reason) for error in first.errors] == [(1, "InvalidInput")]
    assert sources(again) == ["l1", "l1"]
    assert fake.asked == []
    np.testing.assert_array_equal(floats(again), [vector_of("a"), vector_of("b")])


async def test_an_upstream_that_is_down_at_the_start_is_waited_for_and_hits_are_served(
    tmp_path: Path, store: Valkey
) -> None:
    fake = FakeUpstream()
    tier = {"port": store.port}
    async with serve(fake):
        with embedder(tmp_path, model=MODEL, upstream=upstream(fake)) as process:
            config = node_config(tmp_path, await serving(process), valkey=tier)
            async with running(config) as node:
                before = await node.embed("kept")
                await until_kept(store)
    port = fake.port

    with embedder(tmp_path, model=MODEL, upstream=upstream(fake)) as process:
        address = await asyncio.to_thread(process.port)
        async with running(node_config(tmp_path, address, valkey=tier)) as node:
            await node.until_tier("valkey", serving=True)
            after = await node.embed("kept")
            with pytest.raises(grpc.aio.AioRpcError, match="Connection refused") as missed:
                await node.embed("new")
            async with serve(fake, port=port):
                await serving(process)
                await node.until_tier("embedder", serving=True)
                found = await node.embed("new")

    assert (sources(after), rows(after)) == (["valkey"], rows(before))
    assert missed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert sources(found) == ["embedder"]


async def until_kept(store: Valkey) -> None:
    async def kept() -> bool:
        (keys,) = await asyncio.to_thread(store.run, ("KEYS", "*"))
        assert isinstance(keys, list)
        return any(len(key) == KEY_BYTES for key in keys)

    await until(kept)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"key_env": "EMBEDKEEP_TEST_KEY"}, ("error: upstream.key_env: the upstream refuses the key"
         " in the variable EMBEDKEEP_TEST_KEY (401 invalid_request_error invalid_api_key)")),
        ({"key_env": "EMBEDKEEP_TEST_NONE"}, ("error: upstream.key_env: the environment variable"
         " EMBEDKEEP_TEST_NONE is empty or not set")),
        ({"key_file": "/nowhere"}, "error: upstream.key_file: /nowhere cannot be read: No such"),
        ({"ca_file": "/nowhere"}, "error: upstream.ca_file: /nowhere holds no certificates"),
        ({}, "error: upstream.key_file: the upstream refuses calls without a key (401"),
    ],
    ids=["wrong key", "no variable", "no file", "no authority", "no key"],
)  # fmt: skip
async def test_what_can_never_work_ends_the_process_with_its_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, object], said: str
) -> None:
    monkeypatch.setenv("EMBEDKEEP_TEST_KEY", KEY)
    async with serve(FakeUpstream(key="another")) as fake:
        with embedder(tmp_path, model=MODEL, upstream=upstream(fake, **fields)) as process:
            output = await asyncio.to_thread(process.output)

    assert process.process.returncode == 2
    assert said in output
    assert not fields or KEY not in output, "the upstream quoted it"
    assert "Traceback" not in output


async def test_dimensions_that_the_upstream_does_not_cut_to_are_refused(tmp_path: Path) -> None:
    async with serve(FakeUpstream(dimensions=8)) as fake:
        asked_for = upstream(fake, dimensions=4)
        with embedder(tmp_path, model=MODEL, upstream=asked_for) as process:
            output = await asyncio.to_thread(process.output)

    assert "error: upstream.dimensions: 4 were asked for, the upstream answers 8" in output


async def test_another_key_in_the_file_is_used_at_once(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    async with serve(FakeUpstream(key=KEY)) as fake:
        with embedder(tmp_path, model=MODEL, upstream=upstream(fake, key_file=file)) as process:
            port = await serving(process)
            fake.key = "sk-rotated"
            with pytest.raises(grpc.aio.AioRpcError) as old:
                await asked(port, "a")
            (tmp_path / "new").write_text("sk-rotated\n")
            (tmp_path / "new").replace(file)
            answer = await asked(port, "a")
            process.process.terminate()
            output = await asyncio.to_thread(process.output)

    assert f"refuses the key in {file}" in (old.value.details() or "")
    assert not answer.errors
    assert fake.authorizations[-1] == "Bearer sk-rotated"
    assert KEY not in output
    assert "sk-rotated" not in output


async def test_a_redirect_is_not_followed_and_the_key_goes_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    async with serve(FakeUpstream()) as elsewhere, serve(FakeUpstream()) as fake:
        moved = f"{elsewhere.url}/embeddings"
        fake.next = [web.Response(status=307, headers={"location": moved})]
        fields = upstream(fake, key_file=tmp_path / "key")
        with embedder(tmp_path, model=MODEL, upstream=fields) as process:
            output = await asyncio.to_thread(process.output)

    assert process.process.returncode == 2
    assert "(307)" in output
    assert elsewhere.authorizations == []


async def test_a_certificate_is_checked_against_the_authority_that_is_named(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path / "authority")
    pair = authority.issue("localhost")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pair.cert_file, pair.key_file)
    async with serve(FakeUpstream(), tls=tls) as fake:
        url = f"https://localhost:{fake.port}/v1"
        trusting = {"url": url, "protocol": "openai", "ca_file": authority.ca_file}
        with embedder(tmp_path, model=MODEL, upstream=trusting) as process:
            answer = await asked(await serving(process), "a")
        with embedder(tmp_path, model=MODEL, upstream=upstream(fake, url=url)) as process:
            said = await asyncio.to_thread(line_with, process, "no upstream yet")

    assert not answer.errors
    assert "its certificate is refused: " in json.loads(said)["why"]


def line_with(process: EmbedderProcess, text: str) -> str:
    assert process.process.stdout is not None
    for line in process.process.stdout:
        if text in line:
            return line
    raise AssertionError("it ended without saying so")


async def test_the_environments_proxy_is_used_and_its_passwords_are_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text(KEY)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine upstream.invalid login me password secret\n")
    netrc.chmod(0o600)
    async with serve(FakeUpstream(key=KEY)) as proxy:
        monkeypatch.setenv("NETRC", str(netrc))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        fields = {"url": "http://upstream.invalid/v1", "protocol": "openai"}
        fields["key_file"] = str(tmp_path / "key")
        with embedder(tmp_path, model=MODEL, upstream=fields) as process:
            answer = await asked(await serving(process), "a")

    assert not answer.errors
    assert {*proxy.authorizations} == {f"Bearer {KEY}"}
