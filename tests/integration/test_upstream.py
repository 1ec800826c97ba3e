"""Somebody else's embedder behind the real service: a real HTTP server that misbehaves."""

import asyncio
import base64
import json
import time

import grpc
import numpy as np
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from embedkeep.config import Batching, Upstream
from embedkeep.embedder import canaries
from embedkeep.embedder.upstream.failures import Kind
from embedkeep.embedder.upstream.http import Http
from embedkeep.embedder.upstream.key import key_of
from embedkeep.embedder.upstream.looking import Look
from embedkeep.embedder.upstream.metrics import UpstreamMetrics
from embedkeep.errors import EmbedderUnavailable
from embedkeep.v1 import embedder_pb2 as pb
from support.asking import MODEL, asking, at, errors, expected, failure, reason, retry_s, vectors
from support.upstream import KEY, FakeUpstream, refused, refusing, serve, tokens_of, vector_of


@pytest.mark.parametrize("protocol", ["openai", "tei"])
async def test_each_text_gets_its_own_vector(protocol: str) -> None:
    texts = [f"text {'long ' * (n % 5)}{n}" for n in range(23)]
    async with asking(FakeUpstream(protocol=protocol)) as served:
        answer = await served.embed(*texts)
        described = await served.stub.Describe(pb.DescribeRequest())

    assert vectors(answer).tobytes() == expected(*texts).tobytes()
    most = {"openai": 23, "tei": 4}  # for TEI what /info says
    assert max(map(len, served.fake.asked)) == most[protocol]
    assert sum(answer.tokens) == sum(map(tokens_of, texts))
    assert all(answer.device_ns)
    assert described.normalized
    assert (described.max_tokens, described.backend) == (512 if protocol == "tei" else 0, protocol)
    assert described.min_canary_cosine == canaries.MIN_UPSTREAM_COSINE


async def test_openai_is_asked_for_what_the_config_says() -> None:
    fake = FakeUpstream(dimensions=5)
    async with asking(fake, model="text-embedding-9", dimensions=5) as served:
        await served.embed("one")

    assert fake.bodies == [
        {
            "model": "text-embedding-9",
            "input": ["one"],
            "encoding_format": "base64",
            "dimensions": 5,
        }
    ]


async def test_decimals_are_read_as_well_and_not_too_many_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("embedkeep.embedder.upstream.service.MOST_DECIMALS", 8 * 5)
    texts = [f"t{n}" for n in range(23)]
    async with asking(FakeUpstream(as_base64=False)) as served:
        answer = await served.embed(*texts)

    assert vectors(answer).tobytes() == expected(*texts).tobytes()
    assert max(map(len, served.fake.asked)) == 5


async def test_large_answers_are_read_beside_the_loop() -> None:
    fake = FakeUpstream(dimensions=4096)
    texts = [f"t{n}" for n in range(16)]
    async with asking(fake) as served:
        answer = await served.embed(*texts)

    found = vectors(answer)
    assert found.tobytes() == b"".join(vector_of(t, dimensions=4096).tobytes() for t in texts)


async def test_tei_is_asked_to_cut_and_to_normalize() -> None:
    fake = FakeUpstream(protocol="tei")
    async with asking(fake) as served:
        await served.embed("one")

    assert fake.bodies == [{"inputs": ["one"], "truncate": True, "normalize": True}]


async def test_a_bad_input_fails_alone_and_its_mates_are_answered() -> None:
    fake = FakeUpstream(always=refusing("bad"))
    async with asking(fake) as served:
        answer = await served.embed("a", "b", "bad", "c", "d", "e")

    assert errors(answer) == {2: "InvalidInput"}
    assert "400" in answer.errors[0].message
    good = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(vectors(answer)[good], expected("a", "b", "c", "d", "e"))
    assert np.isnan(vectors(answer)[2]).all()
    assert len(fake.asked) <= 1 + 2 * 3
    assert served.metric("embedkeep_upstream_requests_total", outcome="rejected") >= 2
    assert served.metric("embedkeep_upstream_retries_total") == len(fake.asked) - 1


async def test_what_an_upstream_says_of_a_batch_is_told_to_nobody_else() -> None:
    """It may quote one tenant's text to another."""

    async def quotes(texts: list[str]) -> web.Response | None:
        return refused(400, f"bad: {texts}", None) if "bad secret" in texts else None

    fake = FakeUpstream(always=quotes)
    async with asking(fake, max_concurrent_requests=1) as served:
        with capture_logs() as logged:
            gate = asyncio.Event()
            fake.next = [at(gate)]
            first = served.embed("first")
            await fake.arrived.wait()
            theirs = served.embed("bad secret", flow=b"them")
            ours = [served.embed(f"ours {n}", flow=b"us") for n in range(3)]
            await served.until("embedkeep_embed_queue_inputs", 4, purpose="demand")
            gate.set()
            said = await theirs
            answers = [await call for call in [first, *ours]]

    assert any(len(asked) == 4 for asked in fake.asked), "they shared a request"
    assert "bad secret" in said.errors[0].message, "it is their own"
    assert all(not errors(answer) for answer in answers)
    assert "secret" not in json.dumps(logged)


RATE_LIMITED = refused(429, "slow down", "rate_limit_exceeded", headers={"retry-after": "0.05"})


async def test_a_pause_that_is_asked_for_is_kept_and_ends() -> None:
    fake = FakeUpstream()
    async with asking(fake) as served:
        fake.next = [RATE_LIMITED]
        started = asyncio.get_running_loop().time()
        answer = await served.embed("a")
        took_s = asyncio.get_running_loop().time() - started

    assert vectors(answer).tobytes() == expected("a").tobytes()
    assert took_s >= 0.05
    assert served.metric("embedkeep_upstream_requests_total", outcome="throttled") == 1


async def test_who_would_not_see_the_end_of_a_pause_is_refused_at_once() -> None:
    fake = FakeUpstream()
    async with asking(fake) as served:
        fake.next = [refused(429, "slow down", None, headers={"retry-after": "600"})]
        started = asyncio.get_running_loop().time()
        waiting = await failure(served.embed("a"))
        later = await failure(served.embed("b", purpose=pb.PURPOSE_BULK))
        took_s = asyncio.get_running_loop().time() - started

    assert [reason(waiting), reason(later)] == ["Overloaded"] * 2
    assert 590 < retry_s(waiting) <= 600
    assert took_s < 5.0
    assert len(fake.asked) == 1, "the pause is kept"
    assert served.metric("embedkeep_upstream_pause_seconds") > 590


@pytest.mark.parametrize(
    ("refusal", "said", "outcome"),
    [
        (refused(429, "no", "insufficient_quota"), "no quota left", "exhausted"),
        (refused(404, "no", "model_not_found"), "no model acme/fake at", "model"),
        (refused(401, f"wrong {KEY}", "invalid_api_key"), "refuses calls without a key", "key"),
    ],
    ids=["no quota", "no model", "no key"],
)
async def test_what_somebody_must_mend_is_said_and_not_tried_again(
    refusal: web.Response, said: str, outcome: str
) -> None:
    fake = FakeUpstream()
    async with asking(fake) as served:
        fake.next = [refusal]
        first = await failure(served.embed("a"))
        second = await failure(served.embed("b", purpose=pb.PURPOSE_BULK))

    for error in (first, second):
        assert reason(error) == "EmbedderUnavailable"
        assert said in (error.details() or "")
        assert 0 < retry_s(error) <= 60
    assert len(fake.asked) == 1
    assert served.metric("embedkeep_upstream_requests_total", outcome=outcome) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 529, 408])
async def test_what_may_pass_is_tried_again(status: int) -> None:
    fake = FakeUpstream()
    async with asking(fake) as served:
        fake.next = [refused(status, "broken", None), refused(status, "broken", None)]
        answer = await served.embed("a")

    assert vectors(answer).tobytes() == expected("a").tobytes()


async def test_tries_end() -> None:
    fake = FakeUpstream()
    async with asking(fake) as served:

        async def broken(_: list[str]) -> web.Response:
            return refused(500, "broken", None, headers={"retry-after-ms": "1"})

        fake.always = broken
        error = await failure(served.embed("a"))
        fake.always = None
        answer = await served.embed("b")

    assert reason(error) == "EmbedderUnavailable"
    assert "fails: 500" in (error.details() or "")
    assert not errors(answer), "it recovers by itself"


def altered(data: object, **extra: object) -> web.Response:
    return web.json_response({"data": data, **extra})


def items(*rows: object) -> list[dict[str, object]]:
    return [{"index": n, "embedding": row} for n, row in enumerate(rows)]


ROW = [1.0, *[0.0] * 7]


@pytest.mark.parametrize(
    "answer",
    [
        altered(items(ROW)),
        altered(items(ROW, ROW, ROW)),
        altered([{"index": 0, "embedding": ROW}] * 2),
        altered(items(ROW[:7], ROW[:7])),
        altered(items(ROW, [*ROW[:7], "0"])),
        altered([{"embedding": ROW}] * 2),
        web.Response(body=b"<html>welcome</html>"),
        web.Response(body=b'{"data": ['),
        web.Response(body=b" " * (1 << 20)),
    ],
    ids=["too few", "too many", "an index twice", "another dimension", "no number", "no index",
         "HTML", "half of it", "far too long"],
)  # fmt: skip
async def test_an_answer_that_does_not_fit_is_not_taken_and_the_next_one_is(
    answer: web.Response,
) -> None:
    fake = FakeUpstream()
    async with asking(fake) as served:
        fake.next = [answer]
        refused_ = await served.embed("a", "b")
        after = await served.embed("a", "b")

    assert errors(refused_) == {0: "InvalidResponse", 1: "InvalidResponse"}
    assert "does not fit" in refused_.errors[0].message
    assert np.isnan(vectors(refused_)).all()
    assert vectors(after).tobytes() == expected("a", "b").tobytes()
    assert len(fake.asked) == 2, "nonsense is paid for: it is not asked for again by itself"


async def test_a_row_of_nan_fails_alone() -> None:
    fake = FakeUpstream()
    async with asking(fake) as served:
        nan = base64.b64encode(np.full(8, np.nan, np.float32).tobytes()).decode()
        fake.next = [altered(items(nan, ROW))]
        answer = await served.embed("a", "b")

    (bad,) = errors(answer)
    assert errors(answer)[bad] == "InvalidResponse"
    np.testing.assert_array_equal(vectors(answer)[1 - bad], np.array(ROW, np.float32))


async def test_a_connection_that_is_cut_or_hangs_is_made_again() -> None:
    async def cut(_: list[str]) -> web.StreamResponse:
        return web.Response(body=b"{", headers={"content-length": "100"})

    fake = FakeUpstream()
    async with asking(fake, timeout_s=0.3) as served:
        fake.next = [cut, at(asyncio.Event())]
        answer = await served.embed("a")

    assert vectors(answer).tobytes() == expected("a").tobytes()
    assert served.metric("embedkeep_upstream_requests_total", outcome="failed") == 2


async def test_a_request_is_given_up_when_its_callers_have_no_more_time() -> None:
    fake = FakeUpstream()
    async with asking(fake, max_concurrent_requests=1) as served:
        fake.next = [at(asyncio.Event())]
        error = await failure(served.embed("a", timeout_s=0.2))
        answer = await served.embed("b")  # the only request that there may be is free again

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert vectors(answer).tobytes() == expected("b").tobytes()
    assert fake.asked == [["a"], ["b"]]
    assert served.metric("embedkeep_upstream_requests_total", outcome="late") == 1


async def test_who_has_no_time_for_another_try_hears_so_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for bound in ("FIRST_PAUSE_S", "LONGEST_PAUSE_S"):  # so that any dice say later than the call
        monkeypatch.setattr(f"embedkeep.embedder.upstream.pace.{bound}", 1e12)
    fake = FakeUpstream()
    async with asking(fake) as served:
        fake.next = [web.Response(status=500)]
        answer = await served.embed("a")

    assert errors(answer) == {0: "DeadlineExceeded"}
    assert answer.errors[0].message == "no time is left to ask the upstream again: 500"
    assert fake.asked == [["a"]]


async def test_a_limit_that_the_upstream_did_not_tell_is_found_and_the_books_stay_right() -> None:
    async def at_most_four(texts: list[str]) -> web.Response | None:
        return refused(400, "batch size must be at most 4", None) if len(texts) > 4 else None

    fake = FakeUpstream(always=at_most_four)
    texts = [f"t{n}" for n in range(20)]
    async with asking(fake) as served:
        answer = await served.embed(*texts)
        learned = len(fake.asked)
        again = await served.embed(*(f"more {text}" for text in texts))

    assert vectors(answer).tobytes() == expected(*texts).tobytes()
    assert not errors(again)
    assert max(map(len, fake.asked[learned:])) <= 4
    assert served.metric("embedkeep_embed_queue_inputs", purpose="demand") == 0
    assert served.metric("embedkeep_embed_inputs_total", purpose="demand") == 40


async def test_requests_that_wait_for_the_same_look_share_what_comes_of_it() -> None:
    fake = FakeUpstream(protocol="tei")
    async with serve(fake):
        upstream = Upstream.model_validate({"url": fake.url, "protocol": "tei", "timeout_s": 0.3})
        metrics = UpstreamMetrics(price_per_million_tokens=None)
        async with Http(upstream, key_of(upstream)) as http:
            look = Look(http, upstream, MODEL, metrics=metrics, clock=time.monotonic)
            await look.first()
            look.distrust()
            fake.info_gate.clear()
            before = fake.infos
            found = await asyncio.gather(*(look.look() for _ in range(8)))
            asked = fake.infos - before
            fake.info_gate.set()
            after = await look.look()

    assert asked == 1, "not one after another"
    assert {failure and failure.kind for failure in found} == {Kind.FAILED}
    assert after is None


async def test_a_canary_that_is_refused_blames_nobodys_text() -> None:
    fake = FakeUpstream()
    async with asking(fake) as served:
        fake.next = [refused(500, "a restart", None), refused(400, "no", None)]
        answer = await served.embed("a", "b")

    assert list(map(len, fake.asked)) == [2, 4, 4, 2], "looked at again, and not halved"
    assert not errors(answer)


async def test_canaries_keep_the_limit_that_is_given() -> None:
    async with asking(FakeUpstream(), max_batch_inputs=3) as served:
        answer = await served.embed("a")

    assert served.fake.most_inputs == 3
    assert not errors(answer)


async def test_people_are_served_before_bulk_and_bulk_leaves_them_a_request() -> None:
    fake = FakeUpstream()
    async with asking(fake, max_concurrent_requests=2, max_batch_inputs=1) as served:
        gate = asyncio.Event()
        fake.always = at(gate)
        bulk = [served.embed(f"bulk {n}", purpose=pb.PURPOSE_BULK) for n in range(3)]
        await served.until("embedkeep_upstream_in_flight", 1)
        person = served.embed("person")
        await fake.until_asked(2)
        asked = [*fake.asked]
        gate.set()
        for call in (*bulk, person):
            assert not errors(await call)

    assert ["person"] in asked
    assert len(asked) == 2
    assert fake.most_in_flight == 2


async def test_equal_texts_that_wait_at_the_same_time_are_asked_for_once() -> None:
    fake = FakeUpstream()
    async with asking(fake, max_concurrent_requests=1) as served:
        gate = asyncio.Event()
        fake.next = [at(gate)]
        first = served.embed("first")
        await fake.arrived.wait()
        calls = [served.embed("same", "same") for _ in range(5)]
        await served.until("embedkeep_embed_queue_inputs", 10, purpose="demand")
        gate.set()
        answers = [await call for call in calls]
        await first

    assert fake.asked == [["first"], ["same"]]
    for answer in answers:
        assert vectors(answer).tobytes() == expected("same", "same").tobytes()
    booked = [ns for answer in answers for ns in answer.device_ns if ns]
    assert len(booked) == 1, "time is booked once"
    assert served.metric("embedkeep_embed_shared_inputs_total", purpose="demand") == 9


async def test_a_caller_who_leaves_takes_its_texts_along_but_not_a_request_under_way() -> None:
    fake = FakeUpstream()
    async with asking(fake, max_concurrent_requests=1) as served:
        gates = [asyncio.Event(), asyncio.Event()]
        fake.next = [at(gate) for gate in gates]
        first = served.embed("first")
        await fake.until_asked(1)
        leaves, stays = served.embed("shared", "x"), served.embed("shared", "y")
        await served.until("embedkeep_embed_queue_inputs", 4, purpose="demand")
        gates[0].set()
        await fake.until_asked(2)
        queued = served.embed("queued")
        await served.until("embedkeep_embed_queue_inputs", 1, purpose="demand")
        leaves.cancel()
        queued.cancel()
        await served.until("embedkeep_embed_queue_inputs", 0, purpose="demand")
        gates[1].set()
        answer = await stays
        await first

    assert vectors(answer).tobytes() == expected("shared", "y").tobytes()
    assert [sorted(asked) for asked in fake.asked] == [["first"], ["shared", "x", "y"]]


async def test_a_flood_is_refused_at_once_and_the_queue_stays_bounded() -> None:
    fake = FakeUpstream()
    limits = Batching(max_queue_inputs=4)
    async with asking(fake, limits=limits, max_concurrent_requests=1) as served:
        gate = asyncio.Event()
        fake.next = [at(gate)]
        first = served.embed("first")
        await fake.arrived.wait()
        waiting = served.embed("a", "b", "c", "d")
        await served.until("embedkeep_embed_queue_inputs", 4, purpose="demand")
        refusals = [await failure(served.embed(f"more {n}")) for n in range(3)]
        gate.set()
        await first
        assert not errors(await waiting)

    assert [reason(error) for error in refusals] == ["Overloaded"] * 3
    assert all(retry_s(error) > 0 for error in refusals)
    assert served.metric("embedkeep_embed_refused_inputs_total", purpose="demand") == 3


async def test_tokens_and_money_are_counted_by_purpose() -> None:
    fake = FakeUpstream()
    async with asking(fake, price_per_million_tokens=250.0) as served:
        await served.embed("three words here", "two words")
        await served.embed("bulk", purpose=pb.PURPOSE_BULK)

    assert served.metric("embedkeep_upstream_tokens_total", purpose="demand") == 7
    assert served.metric("embedkeep_upstream_tokens_total", purpose="bulk") == 2
    assert served.metric("embedkeep_upstream_cost_total", purpose="demand") == 7 * 250e-6
    start = sum(map(tokens_of, canaries.TEXTS))
    assert served.metric("embedkeep_upstream_tokens_total", purpose="canaries") == start
    assert served.metric("embedkeep_upstream_price_per_million_tokens") == 250


async def test_noise_of_a_provider_is_no_drift_and_another_model_ends_the_process() -> None:
    fake = FakeUpstream(noise=1e-3)
    async with asking(fake) as served:
        fake.next = [refused(500, "a restart", None)]
        assert not errors(await served.embed("a"))
        assert sorted(map(len, fake.asked)) == [1, 1, len(canaries.TEXTS)], "it was looked at"

        fake.model = "another"
        fake.next = [refused(500, "a restart", None)]
        error = await failure(served.embed("b"))
        with pytest.raises(EmbedderUnavailable, match="computes something else"):
            await served.service.broken()

    assert reason(error) == "EmbedderUnavailable"
    assert ["b"] not in fake.asked[5:], "it was not asked again"


async def test_another_model_behind_teis_url_is_found_before_it_is_asked_again() -> None:
    fake = FakeUpstream(protocol="tei")
    async with asking(fake) as served:
        fake.model = "another"
        fake.next = [refused(500, "a restart", None)]
        await failure(served.embed("a"))
        with pytest.raises(EmbedderUnavailable, match="sha-another"):
            await served.service.broken()

    assert fake.asked == [["a"]]


def test_the_fakes_models_differ() -> None:
    assert (vector_of("a") != vector_of("a", model="another")).any()
