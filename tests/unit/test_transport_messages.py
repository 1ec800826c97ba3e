"""What goes over HTTP, and what comes back."""

import json

import pytest

from embedkeep.client.transports.messages import Asking, answer_of, error_of
from embedkeep.client.transports.origins import Origin, is_http, origins_of
from embedkeep.client.transports.pooling import AGE_S, IDLE_S, Kept, Pool
from embedkeep.client.transports.reply import Reply
from embedkeep.client.transports.rotation import Address
from embedkeep.errors import (
    DeadlineExceeded,
    EmbedKeepError,
    Internal,
    InvalidConfig,
    InvalidRequest,
    InvalidResponse,
    ModelDrift,
    NotBuilt,
    Overloaded,
    Retryable,
    Unauthenticated,
    Unavailable,
    UnknownModel,
)
from embedkeep.v1 import cache_pb2

PLACE = Origin(secure=False, host="10.0.0.1", port=80)


def reply(status: int, body: bytes = b"", **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status=status, headers=named, body=body, reusable=True)


def connect(status: int, code: str, **headers: str) -> Reply:
    return reply(status, json.dumps({"code": code, "message": "planted"}).encode(), **headers)


@pytest.mark.parametrize(
    ("target", "origins"),
    [
        ("http://10.0.0.1", [PLACE]),
        ("http://10.0.0.1:80/", [PLACE]),
        ("HTTP://10.0.0.1", [PLACE]),
        ("https://Docs.test", [Origin(secure=True, host="docs.test", port=443)]),
        ("http://[::1]:8080", [Origin(secure=False, host="::1", port=8080)]),
        ("http://a:1/x/y", [Origin(secure=False, host="a", port=1, path="/x/y")]),
        (
            "http://a:1,http://b:2",
            [Origin(secure=False, host="a", port=1), Origin(secure=False, host="b", port=2)],
        ),
        (["http://a:1"], [Origin(secure=False, host="a", port=1)]),
    ],
)
def test_a_target_is_read(target: str | list[str], origins: list[Origin]) -> None:
    assert is_http(target)
    assert list(origins_of(target, tls=False)) == origins


@pytest.mark.parametrize("target", ["a:1", "dns:///a:1", "10.0.0.1:1,10.0.0.2:2", ["a:1"]])
def test_what_is_no_url_is_grpcs(target: str | list[str]) -> None:
    assert not is_http(target)


@pytest.mark.parametrize(
    "target",
    [
        "http://", "http://:80", "http://a:0", "http://a:x", "http://a:99999", "http://u:p@a",
        "http://a?b", "http://a#b", "http://a/b c", "http://a b", "http://a/\r\nx", "http://ä", "http://[::1",
        "http://a:1,b:2", "http://a:1,https://b:2", "http://a:1/x,http://b:2",
    ],
)  # fmt: skip
def test_a_target_that_cannot_be_used_is_refused_by_its_field(target: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        origins_of(target, tls=False)

    assert refused.value.field == "target"


def test_certificates_with_a_plain_target_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="write https://"):
        origins_of("http://a:1", tls=True)


def test_a_request_names_its_place_its_caller_and_its_time() -> None:
    origin = Origin(secure=False, host="::1", port=8080, path="/gateway")
    head = Asking(origin).head(
        cache_pb2.EmbedRequest(), (("authorization", "Bearer key"),), timeout_s=1.5, length=7
    )

    first, *lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")
    assert first == "POST /gateway/embedkeep.v1.EmbeddingCache/Embed HTTP/1.1"
    assert set(lines) == {
        "host: [::1]:8080", "content-type: application/proto", "connect-protocol-version: 1",
        "authorization: Bearer key", "connect-timeout-ms: 1500", "content-length: 7",
    }  # fmt: skip


@pytest.mark.parametrize(("timeout_s", "said"), [(1e-9, "1"), (1e12, "9999999999")])
def test_a_time_is_always_one_that_the_protocol_knows(timeout_s: float, said: str) -> None:
    head = Asking(PLACE).head(cache_pb2.InfoRequest(), (), timeout_s=timeout_s, length=0)

    assert f"connect-timeout-ms: {said}\r\n".encode() in head


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (connect(404, "not_found", x_embedkeep_reason="UnknownModel"), UnknownModel),
        (connect(400, "failed_precondition"), ModelDrift),
        (connect(401, "unauthenticated"), Unauthenticated),
        (connect(504, "deadline_exceeded"), DeadlineExceeded),
        (connect(429, "resource_exhausted", retry_after_ms="250"), Overloaded),
        (connect(418, "no such code"), Internal),
        (reply(502, b"<html>Bad Gateway"), Unavailable),
        (reply(503, b"", retry_after="2"), Unavailable),
        (reply(404, b"no such page"), NotBuilt),
        (reply(413, b"\xff\xfe"), InvalidRequest),
        (reply(301, b"[]"), Internal),
        (reply(500, b'{"code": 5}'), Internal),
        (reply(503, b"[" * 100_000), Unavailable),
    ],
)
def test_a_refusal_keeps_its_class(answer: Reply, kind: type[EmbedKeepError]) -> None:
    error = error_of(answer, target="http://a:1")

    assert type(error) is kind
    assert str(error).startswith("http://a:1: ")
    with pytest.raises(kind):
        answer_of(answer, cache_pb2.InfoRequest(), target="http://a:1")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (reply(404, b'{"error": {"message": "no such path", "code": 5}}'), "404: no such path"),
        (reply(404, b'{"error": "no such path", "error_type": "x"}'), "404: no such path"),
        (reply(404, b'{"error": 5}'), '404: {"error": 5}'),
        (reply(404, b"x" * 201), f"404: {'x' * 200}"),
    ],
)
def test_a_refusal_of_another_api_is_told_in_its_words_alone(answer: Reply, said: str) -> None:
    assert str(error_of(answer, target="http://a:1")) == f"http://a:1: HTTP status {said}"


def test_when_to_come_again_is_told_in_either_unit() -> None:
    said = [
        connect(429, "resource_exhausted", retry_after_ms="250", retry_after="1"),
        reply(503, retry_after="2"),
        reply(503, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
    ]

    errors = [error_of(each, target="x") for each in said]

    assert [each.retry_after_s for each in errors if isinstance(each, Retryable)] == [0.25, 2, None]


@pytest.mark.parametrize(
    "answer",
    [
        reply(200, b"\xff", content_type="application/proto"),
        reply(200, b"<html>", content_type="text/html"),
        reply(200, b""),
    ],
)
def test_an_answer_that_is_no_message_is_said_to_be_none(answer: Reply) -> None:
    with pytest.raises(InvalidResponse, match="http://a:1"):
        answer_of(answer, cache_pb2.EmbedRequest(), target="http://a:1")


def kept(name: str, *, opened_at: float = 0.0, context: object = None) -> Kept[str]:
    return Kept(
        connection=name,
        address=Address(PLACE, "10.0.0.1"),
        asking=Asking(PLACE),
        context=context,
        opened_at=opened_at,
        idle_since=opened_at,
    )


def test_the_connection_used_last_is_used_first_and_each_once() -> None:
    pool: Pool[str] = Pool()
    old, new = kept("old"), kept("new")
    pool.put(old, 1.0)
    pool.put(new, 2.0)

    assert [pool.take(old.address, None, 3.0) for _ in range(3)] == [new, old, None]
    assert pool.over() == []
    assert new.used


@pytest.mark.parametrize(
    ("put_at", "now", "context"),
    [(0.0, IDLE_S, None), (AGE_S - 1.0, AGE_S, None), (0.0, 1.0, "renewed")],
    ids=["idle too long", "too old", "other certificates"],
)
def test_a_connection_past_its_time_is_closed_instead(
    put_at: float, now: float, context: object
) -> None:
    pool: Pool[str] = Pool()
    one = kept("one")
    pool.put(one, put_at)

    assert pool.take(one.address, context, now) is None
    assert pool.over() == [one]
    assert pool.over() == []
    assert pool.empty


def test_idle_connections_are_closed_while_others_are_used() -> None:
    pool: Pool[str] = Pool()
    idle, busy = kept("idle"), kept("busy")
    pool.put(idle, 0.0)
    pool.put(busy, IDLE_S)

    assert pool.over() == [idle]
    assert pool.take(busy.address, None, IDLE_S) is busy


def test_idle_connections_to_what_a_name_stood_for_once_are_closed_too() -> None:
    pool: Pool[str] = Pool()
    gone, stays = kept("gone"), kept("stays")
    stays.address = Address(PLACE, "10.0.0.2")
    pool.put(gone, 0.0)
    pool.put(stays, IDLE_S)

    assert pool.over() == [gone]
