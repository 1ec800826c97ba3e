"""What holds for every API over HTTP: headers, limits, deadlines, who may call, the end."""

import asyncio
import gzip
import json
import socket
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from io import BytesIO
from pathlib import Path

import aiohttp
import grpc
import pytest
from multidict import CIMultiDict

from embedkeep.v1 import cache_pb2, embedder_pb2
from support.http import JSON, Http, Reply, talking
from support.node import WAIT_S, Node, node_config, running, until
from support.tap import Tap, serve_tap

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BODIES = {"/v1/embeddings": "input", "/embed": "inputs"}


@pytest.fixture
async def http(node: Node) -> AsyncIterator[Http]:
    async with talking(node) as client:
        yield client


def said(reply: Reply) -> str:
    """The message, whichever API's."""
    error = reply.json["error"]
    return str(error["message"] if isinstance(error, dict) else error)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("data", "headers", "message"),
    [
        pytest.param(b"", {}, "is no JSON", id="nothing"),
        pytest.param(b"{", {}, "is no JSON", id="half an object"),
        pytest.param(b'{"F": "\\ud800"}', {}, "is no JSON", id="a lone surrogate"),
        pytest.param(b'{"F": "\xff"}', {}, "is no JSON", id="no UTF-8"),
        pytest.param(b"[" * 100_000, {}, "is no JSON", id="deep nesting"),
        pytest.param(b'{"F": ' + b"[" * 100_000, {}, "is no JSON", id="deep nesting inside"),
        pytest.param(b"[1]", {}, "must be an object", id="a list"),
        pytest.param(b'{"F": NaN}', {}, "got nan", id="NaN"),
        pytest.param(b'{"F": [NaN]}', {}, "F[0]", id="NaN in a list"),
        pytest.param(b'{"F": 1e999}', {}, "got inf", id="infinity"),
        pytest.param(b'{"F": null}', {}, "got None", id="null"),
        pytest.param(b'{"F": {"a": 1}}', {}, "got an object", id="an object"),
        pytest.param(b'{"F": ["a", null]}', {}, "F[1]", id="null in a list"),
        pytest.param(b'{"F": [[1], "a"]}', {}, "F[1]", id="mixed"),
        pytest.param(b'{"F": [[1], []]}', {}, "F[1]", id="an empty row of ids"),
        pytest.param(b'{"F": [-1]}', {}, "F[0]", id="a negative id"),
        pytest.param(b'{"F": [4294967296]}', {}, "F[0]", id="an id beyond 32 bits"),
        pytest.param(b'{"F": [1e3]}', {}, "F[0]", id="a decimal id"),
        pytest.param(b'{"F": [true]}', {}, "F[0]", id="true"),
        pytest.param(b'{"F": "a", "dimensions": "3"}', {}, "dimensions", id="a number as text"),
        pytest.param(b'{"F": "a", "dimensions": -1}', {}, "dimensions", id="minus one"),
        pytest.param(
            b'{"F": "a", "dimensions": 99999999999999999999}', {}, "dimensions", id="a huge number"
        ),
        pytest.param(
            b"no gzip at all", {"content-encoding": "gzip"}, "encoding is broken", id="no gzip"
        ),
    ],
)
async def test_what_cannot_be_read_is_refused_in_the_apis_shape(  # noqa: PLR0917
    http: Http, tap: Tap, path: str, data: bytes, headers: dict[str, str], message: str
) -> None:
    field = BODIES[path]
    body = data.replace(b"F", field.encode())

    reply = await http.ask("POST", path, data=body, headers=JSON | headers)

    assert reply.status == (400 if path == "/v1/embeddings" else 422)
    assert message.replace("F[", f"{field}[") in said(reply)
    assert reply.headers["x-embedkeep-reason"] == "InvalidRequest"
    assert tap.calls == []


@pytest.mark.parametrize("path", BODIES)
async def test_a_wrong_method_type_or_path_is_refused(http: Http, path: str) -> None:
    method = await http.ask("GET", path)
    kind = await http.ask("POST", path, data=b"{}", headers={"content-type": "text/plain"})
    coding = await http.ask(
        "POST", path, data=b"{}", headers=JSON | {"content-encoding": "compress"}
    )
    nowhere = await http.ask("GET", f"{path}/x")
    unversioned = await http.ask("POST", "/embeddings", data=b"{}")

    assert (method.status, method.headers["allow"]) == (405, "POST")
    assert (kind.status, "text/plain" in said(kind)) == (415, True)
    assert (coding.status, coding.headers["accept-encoding"]) == (415, "gzip, deflate, identity")
    assert "content-encoding: 'compress' is not taken; gzip, deflate, identity are" in said(coding)
    assert nowhere.status == 404
    assert f"{path}/x: there is no such path; there are /v1/embeddings, " in said(nowhere)
    assert "did you mean /v1/embeddings?" in said(unversioned)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("how", ["as it is", "in chunks", "compressed"])
async def test_a_body_beyond_the_limit_is_refused(http: Http, path: str, how: str) -> None:
    large = b'{"model": "' + b"x" * (5 << 20)

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(large), 1 << 16):
            yield large[at : at + (1 << 16)]

    match how:
        case "as it is":
            async with http.session.post(path, data=BytesIO(large), headers=JSON) as response:
                reply = Reply(response.status, {}, await response.read())
        case "in chunks":
            async with http.session.post(path, data=chunks(), headers=JSON) as response:
                reply = Reply(response.status, {}, await response.read())
        case _:
            headers = JSON | {"content-encoding": "gzip"}
            reply = await http.ask("POST", path, data=gzip.compress(large), headers=headers)

    assert reply.status == 413
    assert "larger than 4194304 bytes" in said(reply)


async def test_a_small_body_that_unfolds_to_much_is_refused(http: Http) -> None:
    bomb = zlib.compress(b"x" * (64 << 20))

    reply = await http.ask(
        "POST", "/embed", data=bomb, headers=JSON | {"content-encoding": "deflate"}
    )

    assert reply.status == 413


async def test_a_compressed_body_is_read(http: Http) -> None:
    body = gzip.compress(json.dumps({"inputs": "a"}).encode())

    reply = await http.ask("POST", "/embed", data=body, headers=JSON | {"content-encoding": "gzip"})

    assert reply.status == 200


async def test_a_client_that_waits_for_100_continue_gets_it(node: Node) -> None:
    body = json.dumps({"inputs": "a"}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", node.http_port)
    writer.write(
        b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(body)
    )

    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"

    writer.write(body)
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-request-timeout-ms", "0"),
        ("x-request-timeout-ms", "-1"),
        ("x-request-timeout-ms", "1.5"),
        ("x-request-timeout-ms", "soon"),
        ("x-request-timeout-ms", "9" * 400),
        ("x-request-timeout-ms", "٣"),
        ("x-embedkeep-priority", "urgent"),
    ],
)
async def test_a_header_without_meaning_is_named(http: Http, name: str, value: str) -> None:
    reply = await http.openai({name: value}, input="a")

    assert reply.status == 400
    assert name in said(reply)


async def test_cache_control_means_what_it_means_in_http(http: Http, tap: Tap) -> None:
    kept_nothing = await http.openai({"cache-control": "no-store"}, input="a")
    again = await http.openai(input="a")
    anew = await http.openai({"cache-control": "max-age=3, No-Cache"}, input="a")
    missing = await http.openai({"cache-control": "only-if-cached"}, input="b")
    there = await http.openai({"cache-control": "only-if-cached"}, input="a")
    both = await http.openai({"cache-control": "no-cache, only-if-cached"}, input="a")

    assert kept_nothing.headers["cache-status"] == again.headers["cache-status"] == "docs; fwd=miss"
    assert anew.headers["cache-status"] == "docs; fwd=request"
    assert (missing.status, missing.error["code"]) == (504, "not_cached")
    assert missing.headers["x-should-retry"] == "false"
    assert there.headers["cache-status"] == "docs; hit; detail=l1"
    assert both.status == 400
    assert tap.texts == ["a", "a", "a"]


async def test_a_priority_reaches_the_embedder(http: Http, tap: Tap) -> None:
    for priority in ("interactive", "bulk", "background"):
        await http.openai({"x-embedkeep-priority": priority}, input=priority)

    assert [call.purpose for call in tap.calls] == [
        embedder_pb2.PURPOSE_DEMAND,
        embedder_pb2.PURPOSE_BULK,
        embedder_pb2.PURPOSE_BACKGROUND,  # and not what the node itself warms
    ]


async def test_a_trace_goes_on_to_the_embedder_and_back(http: Http, node: Node, tap: Tap) -> None:
    both = CIMultiDict({"traceparent": TRACE, "tracestate": "rojo=00f067aa0ba902b7"})
    both.add("tracestate", "congo=t61rcWkgMzE")
    stated = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
    over_http = await http.openai(both, input="a")
    over_grpc = [("traceparent", TRACE), ("tracestate", stated)]
    await node.stub.Embed(_asking("b"), metadata=over_grpc, timeout=WAIT_S)
    nonsense = await http.openai({"traceparent": "x" * 55, "tracestate": stated}, input="c")
    refused = await http.openai({"traceparent": TRACE}, input="")

    assert over_http.headers["traceparent"] == refused.headers["traceparent"] == TRACE
    assert "traceparent" not in nonsense.headers
    whole = {"traceparent": TRACE, "tracestate": stated}
    assert [call.trace for call in tap.calls] == [whole, whole, {}]


async def test_a_deadline_ends_the_wait(http: Http, tap: Tap) -> None:
    tap.gate.clear()

    openai = await http.openai({"x-request-timeout-ms": "50"}, input="a")
    tei = await http.tei({"x-request-timeout-ms": "50"}, inputs="a")

    assert (openai.status, openai.error["code"]) == (504, "timeout")
    assert (tei.status, tei.json["error_type"]) == (504, "backend")


HEAD = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = b'{"inputs": "a"}'


@asynccontextmanager
async def connected(node: Node) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", node.http_port)
    try:
        async with asyncio.timeout(WAIT_S):
            yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_body_that_does_not_come_is_waited_for_until_the_deadline(node: Node) -> None:
    async with connected(node) as (reader, writer):
        writer.write(HEAD + b"x-request-timeout-ms: 50\r\ncontent-length: 100\r\n\r\n{")

        assert (await reader.readline()).startswith(b"HTTP/1.1 504")


async def test_a_body_that_comes_slowly_is_not_waited_for_as_long_as_its_caller_would(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedkeep.node.http.bodies.BODY_S", 0.2)
    async with connected(node) as (reader, writer):
        writer.write(HEAD + b"x-request-timeout-ms: 3600000\r\ncontent-length: 100000\r\n\r\n")
        answered = asyncio.create_task(reader.readuntil(b"}"))
        while not answered.done():
            writer.write(b" ")
            await asyncio.wait([answered], timeout=0.02)

        assert (await answered).startswith(b"HTTP/1.1 504")
        assert b"the body did not come within 0.2 s" in await answered


@pytest.mark.parametrize("before", [0, 1], ids=["at once", "after a request that was answered"])
async def test_headers_that_come_slowly_are_not_waited_for(
    node: Node, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    monkeypatch.setattr("embedkeep.node.http.server.HEADERS_S", 0.2)
    async with connected(node) as (reader, writer):
        for _ in range(before):
            writer.write(HEAD + b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY))
            await reader.readuntil(b"]]")
        writer.write(HEAD)
        closed = asyncio.create_task(reader.read())
        while not closed.done():
            writer.write(b"x-one-more: header\r\n")
            await asyncio.wait([closed], timeout=0.02)

        with suppress(ConnectionError):
            assert not await closed


async def test_headers_that_have_come_bound_nothing_that_follows(
    http: Http, node: Node, tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedkeep.node.http.server.HEADERS_S", 0.05)
    tap.gate.clear()
    async with connected(node) as (reader, writer):
        for part in (HEAD[:20], HEAD[20:], b"content-length: %d\r\n\r\n" % len(BODY), BODY):
            writer.write(part)
            await writer.drain()
            await http.ask("GET", "/health")  # a turn of the node's loop
        await tap.entered.get()
        await asyncio.sleep(0.1)  # longer than the bound: nothing tells that it did not act
        tap.gate.set()

        assert (await reader.readline()).startswith(b"HTTP/1.1 200")


async def test_an_answer_that_nobody_reads_is_not_kept_for_ever(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedkeep.node.http.server.READ_S", 0.2)
    loop = asyncio.get_running_loop()

    async def ask_on(deaf: socket.socket) -> None:
        while True:  # until more lies between them than there is room for
            await loop.sock_sendall(deaf, b"GET /openapi.json HTTP/1.1\r\nhost: a\r\n\r\n")
            await asyncio.sleep(0)

    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)  # noqa: FBT003  # the parameter has no name
        await loop.sock_connect(deaf, ("127.0.0.1", node.http_port))
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(ask_on(deaf), WAIT_S)


@pytest.mark.parametrize("before", [b"", HEAD + b"content-length: 0\r\n\r\n"])
async def test_a_connection_that_says_nothing_is_closed(
    tmp_path: Path, tap: Tap, monkeypatch: pytest.MonkeyPatch, before: bytes
) -> None:
    for module in ("server", "entrance"):
        monkeypatch.setattr(f"embedkeep.node.http.{module}.IDLE_S", 0.2)
    async with (
        serve_tap(tap) as port,
        running(node_config(tmp_path, port)) as node,
        connected(node) as (reader, writer),
    ):
        writer.write(before)

        answered = await reader.read()

    assert answered.startswith(b"HTTP/1.1 422") is bool(before)


async def test_what_a_client_that_leaves_has_asked_for_is_cancelled(http: Http, tap: Tap) -> None:
    tap.gate.clear()
    longer = {"x-request-timeout-ms": "3600000"}  # so that no deadline does it
    asking = asyncio.create_task(http.openai(longer, input="a"))
    await tap.entered.get()

    asking.cancel()

    async with asyncio.timeout(WAIT_S):
        await tap.cancellation.wait()


async def test_a_flood_is_refused_at_once_with_when_to_come_again(tmp_path: Path, tap: Tap) -> None:
    async with (
        serve_tap(tap) as port,
        running(node_config(tmp_path, port, limits={"max_concurrent_calls": 4})) as node,
        talking(node) as http,
    ):
        tap.gate.clear()
        waiting = [asyncio.create_task(http.openai(input=str(at))) for at in range(2)]
        for _ in waiting:
            await tap.entered.get()

        openai, tei = await http.openai(input="c"), await http.tei(inputs="c")
        over_grpc = await _code(node)

        tap.gate.set()
        assert [(await each).status for each in waiting] == [200, 200]
    assert (openai.status, openai.error["type"]) == (429, "rate_limit_error")
    assert (tei.status, tei.json["error_type"]) == (429, "overloaded")
    assert (openai.headers["retry-after"], openai.headers["retry-after-ms"]) == ("1", "500")
    assert over_grpc == "RESOURCE_EXHAUSTED"


async def test_an_embedder_that_fails_is_said_so_and_its_return_is_noticed(
    http: Http, tap: Tap
) -> None:
    tap.overloaded = True
    busy = await http.openai(input="a")
    tap.overloaded = False
    tap.broken = {"b"}
    broken, tei = await http.openai(input=["a", "b"]), await http.tei(inputs=["a", "b"])
    tap.broken = set()

    assert busy.status == 429
    assert (broken.status, broken.error["type"]) == (500, "server_error")
    assert (tei.status, tei.json["error_type"]) == (424, "backend")
    assert (await http.openai(input=["a", "b"])).status == 200


async def test_keys_open_what_they_open_over_grpc(tmp_path: Path, tap: Tap) -> None:
    (tmp_path / "secret").write_bytes(b"s" * 32)
    for name in ("red", "blue"):
        (tmp_path / name).write_text(f"{name}-key")
    config = node_config(
        tmp_path,
        0,
        cluster_secret_file=str(tmp_path / "secret"),
        tenants=[{"name": name, "api_key_file": str(tmp_path / name)} for name in ("red", "blue")],
    )
    async with serve_tap(tap) as port:
        config = config.model_copy(
            update={"embedder": config.embedder.model_copy(update={"address": f"127.0.0.1:{port}"})}
        )
        async with running(config) as node, talking(node) as http:
            red = {"authorization": "Bearer red-key"}
            await node.embed("a", api_key="red-key")
            hit = await http.openai(red, input="a")
            azures = await http.openai({"api-key": "red-key"}, input="a")
            two = await http.openai(red | {"api-key": "blue-key"}, input="a")
            miss = await http.tei({"x-api-key": "blue-key"}, inputs="a")
            stranger = await http.openai({"authorization": "Bearer nobody"}, input="a")
            nobody = [
                (await http.ask(method, path)).status
                for method, path in [("GET", "/v1/models"), ("GET", "/info"), ("POST", "/embed")]
            ]
            health = await http.ask("GET", "/health")
            odd = await http.openai({"authorization": "Bearer \udcff"}, input="a")

    assert hit.headers["x-embedkeep-sources"] == azures.headers["x-embedkeep-sources"] == "l1=1"
    assert two.status == 401
    assert "authorization and api-key hold different API keys" in said(two)
    assert miss.headers["x-embedkeep-sources"] == "embedder=1"
    assert (stranger.status, stranger.error["code"]) == (401, "invalid_api_key")
    assert nobody == [401, 401, 401]
    assert health.status == 200
    assert odd.status == 401


async def test_without_tenants_any_key_is_taken(http: Http) -> None:
    assert (await http.openai({"authorization": "Bearer sk-unused"}, input="a")).status == 200


async def test_a_stopping_node_answers_what_it_has_begun_and_takes_nothing_new(
    tmp_path: Path, tap: Tap
) -> None:
    async with (
        serve_tap(tap) as port,
        running(node_config(tmp_path, port)) as node,
        talking(node) as http,
    ):
        tap.gate.clear()
        begun = asyncio.create_task(http.openai(input="a"))
        await tap.entered.get()
        node.stop.set()
        await _unbound(node.http_port)
        tap.gate.set()

        assert (await begun).status == 200


async def test_what_does_not_end_is_cut_off_when_the_drain_is_over(
    tmp_path: Path, tap: Tap
) -> None:
    async with serve_tap(tap) as port:
        tap.gate.clear()
        async with (
            running(node_config(tmp_path, port, drain_s=0.2)) as node,
            talking(node) as http,
        ):
            begun = asyncio.create_task(http.openai(input="a"))
            await tap.entered.get()
            node.stop.set()

            with pytest.raises(aiohttp.ClientError):
                await begun


async def test_a_bug_is_a_500_in_the_apis_shape_without_a_traceback(
    http: Http, tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedkeep.node.http.headers.of", lambda *_, **__: 1 / 0)

    reply = await http.openai(input="a")

    assert reply.status == 500
    assert reply.error["message"] == "the node failed; its log says why"
    assert tap.texts == ["a"]


async def test_what_is_no_http_is_refused_and_never_logged(
    node: Node, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log of it would hold whatever stands in the line, an API key for one."""
    for line in (b"GARBAGE", b"GET /\xff HTTP/1.1", b"GET / HTTP/1.1\r\nauthorization\x01: hush"):
        reader, writer = await asyncio.open_connection("127.0.0.1", node.http_port)
        writer.write(line + b"\r\n\r\n")
        assert b" 400 " in await reader.readline()
        writer.close()
        await writer.wait_closed()

    assert caplog.records == []
    assert "Traceback" not in "".join(capsys.readouterr())


async def test_many_clients_with_many_vectors_do_not_wait_for_one_that_reads_slowly(
    http: Http, node: Node
) -> None:
    """One connection's full buffers hold up nobody else."""
    body = json.dumps({"inputs": [str(at) for at in range(2048)]}).encode()
    _, slow = await asyncio.open_connection("127.0.0.1", node.http_port)
    for _ in range(50):
        slow.write(
            b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body
        )

    replies = await asyncio.gather(*(http.openai(input=str(at)) for at in range(20)))

    assert [reply.status for reply in replies] == [200] * 20
    slow.close()
    await slow.wait_closed()


def _asking(*texts: str) -> "cache_pb2.EmbedRequest":
    return cache_pb2.EmbedRequest(inputs=texts)


async def _code(node: Node) -> str:
    try:
        await node.embed("c")
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def _unbound(port: int) -> None:
    """Wait until nothing listens there."""

    async def gone() -> bool:
        with socket.socket() as trying:
            trying.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trying.bind(("127.0.0.1", port))
            except OSError:
                return False
            return True

    await until(gone)
