"""What an upstream's refusals mean."""

import json
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep.embedder.upstream.failures import (
    LONGEST_PAUSE_S,
    Failure,
    Kind,
    from_status,
    retry_after_s,
)

NOW_S = 1_800_000_000.0


def openai(message: str, *, kind: str | None = None, code: str | None = None) -> bytes:
    return json.dumps(
        {"error": {"message": message, "type": kind, "param": None, "code": code}}
    ).encode()


def tei(message: str, kind: str) -> bytes:
    return json.dumps({"error": message, "error_type": kind}).encode()


def read(status: int, body: bytes, **headers: str) -> Failure:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return from_status(status, named, body, now_s=NOW_S)


CASES = {
    "OpenAI, too fast": (429, openai("Slow down", code="rate_limit_exceeded"), "throttled"),
    "OpenAI, no credit": (
        429,
        openai("You exceeded your quota", kind="insufficient_quota", code="insufficient_quota"),
        "exhausted",
    ),
    "OpenAI, wrong key": (401, openai("Incorrect API key", code="invalid_api_key"), "key"),
    "OpenAI, no such model": (404, openai("does not exist", code="model_not_found"), "model"),
    "OpenAI, too many tokens together": (
        400,
        openai("Requested 309209, max 300000 tokens per request", code="max_tokens_per_request"),
        "too_long",
    ),
    "OpenAI, too many inputs": (
        400,
        openai("Invalid 'input': array too long. Expected an array with maximum length 2048"),
        "too_many",
    ),
    "OpenAI, one input too long": (
        400,
        openai("This model's maximum context length is 8192 tokens, however you requested 8610"),
        "rejected",
    ),
    "TEI, overloaded": (429, tei("Model is overloaded", "overloaded"), "throttled"),
    "TEI, too many inputs": (
        413,
        tei("batch size 33 > maximum allowed batch size 32", "validation"),
        "too_many",
    ),
    "TEI, one input too long": (
        413,
        tei("inputs must have less than 512 tokens", "validation"),
        "too_long",
    ),
    "TEI, bad text": (422, tei("Tokenization error", "tokenizer"), "rejected"),
    "TEI, broken": (424, tei("Inference failed", "backend"), "failed"),
    "TEI, loading": (503, tei("unhealthy", "unhealthy"), "throttled"),
    "FastAPI, what was sent is in it": (
        422, b'{"detail":[{"loc":["body","input"],"msg":"bad","input":"secret"}]}', "rejected",
    ),
    "a proxy, too large": (413, b"<html>Request Entity Too Large</html>", "too_long"),
    "a proxy, moved": (301, b"", "model"),
    "a proxy, broken": (502, b"<html>Bad Gateway</html>", "failed"),
    "overloaded by another name": (529, b"{}", "throttled"),
    "no money": (402, b"{}", "exhausted"),
    "no JSON at all": (500, b"\xff\xfe", "failed"),
}  # fmt: skip


@pytest.mark.parametrize(("status", "body", "kind"), CASES.values(), ids=CASES)
def test_each_refusal_is_known_for_what_it_is(status: int, body: bytes, kind: str) -> None:
    failure = read(status, body)

    assert failure.kind == kind
    assert "secret" not in failure.said
    assert failure.said.startswith(str(status))


@pytest.mark.parametrize(
    ("message", "suspect"),
    [("'input[17]' is too long", 17), ("inputs.3: bad", 3), ("an input is bad", None)],
)
def test_an_input_that_is_named_is_found(message: str, suspect: int | None) -> None:
    assert read(400, openai(message)).suspect == suspect


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "0.5"}, 0.5),
        ({"retry_after": formatdate(NOW_S + 90, usegmt=True)}, 90.0),
        ({"retry_after": formatdate(NOW_S - 90, usegmt=True)}, None),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "-5"}, None),
        ({"retry_after": "1e9"}, None),
        ({"retry_after": "999999999"}, LONGEST_PAUSE_S),
        ({"retry_after_ms": "250", "retry_after": "1"}, 0.25),
        (
            {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "1m30s",
             "x_ratelimit_remaining_tokens": "900", "x_ratelimit_reset_tokens": "6m0s"},
            90.0,
        ),
        ({"x_ratelimit_remaining_tokens": "0", "x_ratelimit_reset_tokens": "20ms"}, 0.02),
        ({"x_ratelimit_reset_requests": "1h2m3.5s"}, 3600.0),
        ({"x_ratelimit_remaining_tokens": "-1", "x_ratelimit_reset_tokens": "0"}, None),
        ({"retry_after": "3", "x_ratelimit_reset_requests": "59s"}, 3.0),
    ],
)  # fmt: skip
def test_when_to_come_back_is_read_in_every_way_it_is_said(
    headers: dict[str, str], wait_s: float | None
) -> None:
    assert read(429, b"{}", **headers).retry_after_s == wait_s


@given(value=st.text(max_size=40), name=st.sampled_from(["retry-after", "retry-after-ms"]))
def test_no_header_asks_for_a_pause_without_end(value: str, name: str) -> None:
    wait_s = retry_after_s({name: value, "x-ratelimit-reset-tokens": value}, now_s=NOW_S)

    assert wait_s is None or 0 < wait_s <= LONGEST_PAUSE_S


@given(status=st.integers(100, 599), body=st.binary(max_size=200))
def test_any_body_is_read(status: int, body: bytes) -> None:
    assert from_status(status, {}, body, now_s=NOW_S).kind in Kind
