"""The service over HTTP/1.1, as any Connect client speaks it: the messages are those of gRPC."""

import asyncio
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import pytest
from google.protobuf.message import Message

from embedkeep.v1 import cache_pb2
from support.http import Http, Reply, talking
from support.node import WAIT_S, Node, rows, sources, tapped
from support.tap import DIMENSIONS, Tap

SERVICE = "/embedkeep.v1.EmbeddingCache"
PROTO = {"content-type": "application/proto"}


@pytest.fixture(params=[{}, {"te": "trailers"}], ids=["plain", "not plain"])
async def http(node: Node, request: pytest.FixtureRequest) -> AsyncIterator[Http]:
    async with talking(node, headers=request.param) as client:
        yield client


async def call(http: Http, name: str, message: Message, **headers: str) -> Reply:
    return await http.ask(
        "POST",
        f"{SERVICE}/{name}",
        data=message.SerializeToString(),
        headers=PROTO | {key.replace("_", "-"): value for key, value in headers.items()},
    )


async def embed(http: Http, *texts: str, **headers: str) -> Reply:
    return await call(http, "Embed", cache_pb2.EmbedRequest(inputs=texts), **headers)


async def test_vectors_are_those_of_grpc_bit_for_bit(http: Http, node: Node, tap: Tap) -> None:
    reply = await embed(http, "a", "b", "a")

    answer = cache_pb2.EmbedResponse.FromString(reply.body)
    again = await node.embed("a", "b", "a")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/proto")
    assert rows(answer) == [*tap.computed["a"], *tap.computed["b"], *tap.computed["a"]]
    assert rows(answer) == rows(again)
    assert sources(answer) == ["embedder", "embedder", "coalesced"]
    assert sources(again) == ["l1", "l1", "l1"]


async def test_a_failed_row_stands_in_the_answer_as_over_grpc(http: Http, node: Node) -> None:
    answer = cache_pb2.EmbedResponse.FromString((await embed(http, "a", "nul \0")).body)

    assert answer.statuses == [0, 3]
    assert answer.errors == (await node.embed("a", "nul \0")).errors


async def test_info_and_invalidation_are_those_of_grpc(http: Http, node: Node, tap: Tap) -> None:
    await embed(http, "a")
    info = await call(http, "Info", cache_pb2.InfoRequest())
    forgotten = await call(
        http, "Invalidate", cache_pb2.InvalidateRequest(inputs=cache_pb2.InputSet(inputs=["a"]))
    )
    everything = await call(http, "Invalidate", cache_pb2.InvalidateRequest(everything=True))
    await embed(http, "a")

    assert cache_pb2.InfoResponse.FromString(info.body).dimensions == DIMENSIONS
    assert forgotten.status == 200
    after = cache_pb2.InvalidateResponse.FromString(everything.body).epoch
    assert after == (await node.info()).epoch > 0
    assert tap.texts == ["a", "a"]


async def test_pairs_are_imported_as_over_grpc(tap: Tap, tmp_path: Path) -> None:
    async with (
        tapped(tap, tmp_path, imports=True) as node,
        talking(node) as http,
    ):
        first = cache_pb2.EmbedResponse.FromString((await embed(http, "a")).body)
        pairs = cache_pb2.ImportRequest(inputs=["a"], vectors=first.vectors, dimensions=DIMENSIONS)
        reply = await call(http, "Import", pairs)

    assert cache_pb2.ImportResponse.FromString(reply.body).present == 1


@pytest.mark.parametrize(
    ("request_", "status", "code", "reason"),
    [
        pytest.param(
            cache_pb2.EmbedRequest(), 400, "invalid_argument", "InvalidRequest", id="no texts"
        ),
        pytest.param(
            cache_pb2.EmbedRequest(inputs=["a"], model="other"),
            404, "not_found", "UnknownModel", id="another model",
        ),
        pytest.param(
            cache_pb2.EmbedRequest(
                inputs=["a"],
                cache_control=cache_pb2.CacheControl(only_if_cached=True, no_cache=True),
            ),
            400, "invalid_argument", "InvalidRequest", id="what excludes each other",
        ),
    ],
)  # fmt: skip
async def test_an_error_has_its_code_its_class_and_its_status(
    http: Http, request_: cache_pb2.EmbedRequest, status: int, code: str, reason: str
) -> None:
    reply = await call(http, "Embed", request_)

    assert (reply.status, reply.json["code"]) == (status, code)
    assert reply.json["message"]
    assert reply.headers["x-embedkeep-reason"] == reason


async def test_an_embedder_that_is_busy_says_when_to_come_back(http: Http, tap: Tap) -> None:
    await embed(http, "hit")
    tap.overloaded = True

    reply = await embed(http, "miss")

    assert (reply.status, reply.json["code"]) == (429, "resource_exhausted")
    assert reply.headers["x-embedkeep-reason"] == "Overloaded"
    assert int(reply.headers["retry-after-ms"]) > 0


@pytest.mark.parametrize(
    ("data", "headers", "status", "said"),
    [
        pytest.param(b"\xff", {}, 400, "cannot be read", id="no message"),
        pytest.param(b"\x0a\x01\xff", {}, 400, "UTF-8", id="no UTF-8"),
        pytest.param(
            b"{}", {"content-type": "application/json"}, 415, "application/json", id="JSON"
        ),
        pytest.param(b"", {"connect-timeout-ms": "soon"}, 400, "'soon'", id="no number"),
        pytest.param(b"", {"connect-timeout-ms": "0"}, 400, "'0'", id="no time"),
        pytest.param(b"", {"connect-timeout-ms": "9" * 11}, 400, "9999999999", id="too long"),
        pytest.param(b"x" * (5 << 20), {}, 413, "larger than 4194304", id="too large"),
    ],
)
async def test_what_cannot_be_read_is_refused_and_says_why(  # noqa: PLR0917  # a table's columns
    http: Http, tap: Tap, data: bytes, headers: dict[str, str], status: int, said: str
) -> None:
    async with http.session.post(
        f"{SERVICE}/Embed", data=BytesIO(data), headers=PROTO | headers
    ) as response:
        reply = Reply(response.status, {}, await response.read())

    assert reply.status == status
    assert said in reply.json["message"]
    assert tap.calls == []


async def test_a_deadline_is_kept_and_told(http: Http, tap: Tap) -> None:
    tap.gate.clear()
    reply = await embed(http, "a", connect_timeout_ms="50")
    tap.gate.set()

    assert (reply.status, reply.json["code"]) == (504, "deadline_exceeded")


async def test_what_a_caller_that_leaves_has_asked_for_is_cancelled(http: Http, tap: Tap) -> None:
    tap.gate.clear()
    asking = asyncio.create_task(embed(http, "a", connect_timeout_ms="3600000"), name="asking")
    await tap.entered.get()

    asking.cancel()

    async with asyncio.timeout(WAIT_S):
        await tap.cancellation.wait()


async def test_a_trace_goes_on_to_the_embedder(http: Http, tap: Tap) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await embed(http, "a", traceparent=trace, tracestate="rojo=1")

    assert tap.calls[-1].trace == {"traceparent": trace, "tracestate": "rojo=1"}


async def test_a_stranger_is_refused(tap: Tap, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s" * 32)
    (tmp_path / "key").write_text("key-1")
    tenants = {
        "tenants": [{"name": "team", "api_key_file": str(tmp_path / "key")}],
        "cluster_secret_file": str(tmp_path / "secret"),
    }
    async with (
        tapped(tap, tmp_path, **tenants) as node,
        talking(node) as http,
    ):
        nobody = await embed(http, "a")
        unread = await http.ask("POST", f"{SERVICE}/Embed", data=b"\xff", headers=PROTO)
        known = await embed(http, "a", authorization="Bearer key-1")

    assert (nobody.status, nobody.json["code"]) == (401, "unauthenticated")
    assert unread.status == 401  # and not 400 for what its body is
    assert known.status == 200
