"""The service on the wire, around an arithmetic model."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import numpy as np
import pytest

from embedkeep.config import Batching, Dtype, ModelSpec, Quantization
from embedkeep.embedder import canaries
from embedkeep.embedder.backends import About
from embedkeep.embedder.metrics import EmbedderMetrics
from embedkeep.embedder.service import EmbedderService
from embedkeep.errors import REASON_KEY, RETRY_KEY, EmbedderUnavailable, InvalidConfig
from embedkeep.v1 import embedder_pb2 as pb
from embedkeep.v1 import embedder_pb2_grpc
from support.backend import ABOUT, DIMENSIONS, ArithmeticBackend, token, vector_of

WAIT_S = 30.0
MODEL = ModelSpec(name="arithmetic", revision="r1")


@asynccontextmanager
async def served(
    service: EmbedderService, backend: ArithmeticBackend | None
) -> AsyncIterator["embedder_pb2_grpc.EmbedderAsyncStub"]:
    """The service behind a port; started with *backend*, or still loading."""
    server = grpc.aio.server()
    embedder_pb2_grpc.add_EmbedderServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    if backend is not None:
        await service.start(lambda: backend)
        backend.batches.clear()
        while not backend.entered.empty():
            backend.entered.get_nowait()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield embedder_pb2_grpc.EmbedderStub(channel)
    finally:
        if backend is not None:
            backend.gate.set()
        await server.stop(None)
        await service.close()


def rows(answer: pb.ComputeResponse) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.frombuffer(answer.vectors, "<f4").reshape(-1, answer.dimensions)


async def failure(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def trailer(error: grpc.aio.AioRpcError, key: str) -> str | bytes | None:
    return dict(error.trailing_metadata() or ()).get(key)


async def test_good_inputs_are_answered_beside_empty_and_broken_ones() -> None:
    backend = ArithmeticBackend(poison={token("bad")})
    async with served(EmbedderService(MODEL), backend) as stub:
        answer = await stub.Embed(
            pb.ComputeRequest(inputs=["good text", "", "bad", "x " * 100, " \0 "])
        )

    assert answer.dimensions == DIMENSIONS
    np.testing.assert_array_equal(rows(answer)[0], vector_of("good text"))
    np.testing.assert_array_equal(rows(answer)[3], vector_of("x " * 100))
    assert np.isnan(rows(answer)[1:3]).all()
    assert [(e.index, e.code, e.reason) for e in answer.errors] == [
        (1, 3, "InvalidInput"),
        (2, 13, "Internal"),
    ]
    assert list(answer.tokens) == [2, 0, 1, 64, 1]
    assert list(answer.truncated) == [3]
    assert answer.device_ns[1] == 0
    assert all(answer.device_ns[i] for i in (0, 2, 3, 4))
    assert answer.fingerprint == ABOUT.fingerprint


async def test_a_request_of_only_empty_texts_costs_no_batch() -> None:
    backend = ArithmeticBackend()
    async with served(EmbedderService(MODEL), backend) as stub:
        answer = await stub.Embed(pb.ComputeRequest(inputs=["", ""]))

    assert [e.index for e in answer.errors] == [0, 1]
    assert np.isnan(rows(answer)).all()
    assert backend.batches == []


@pytest.mark.parametrize(
    ("request_", "code", "reason", "says"),
    [
        (pb.ComputeRequest(), "INVALID_ARGUMENT", "InvalidRequest", "1 to 8 inputs, got 0"),
        (
            pb.ComputeRequest(inputs=["a"] * 9),
            "INVALID_ARGUMENT",
            "InvalidRequest",
            "1 to 8 inputs, got 9",
        ),
        (
            pb.ComputeRequest(inputs=["a"], fingerprint="other"),
            "FAILED_PRECONDITION",
            "ModelDrift",
            "arithmetic, not other",
        ),
        (
            pb.ComputeRequest(inputs=["a"], purpose=77),  # type: ignore[arg-type]  # a newer peer's
            "INVALID_ARGUMENT",
            "InvalidRequest",
            "purpose 77",
        ),
    ],
)
async def test_a_wrong_request_is_refused_with_what_is_wrong(
    request_: pb.ComputeRequest, code: str, reason: str, says: str
) -> None:
    backend = ArithmeticBackend()
    async with served(EmbedderService(MODEL, Batching(max_request_inputs=8)), backend) as stub:
        error = await failure(stub.Embed(request_))

    assert error.code().name == code
    assert trailer(error, REASON_KEY) == reason
    assert says in (error.details() or "")
    assert backend.batches == []


async def test_until_the_model_is_warm_everything_is_unavailable() -> None:
    async with served(EmbedderService(MODEL), None) as stub:
        errors = [
            await failure(stub.Describe(pb.DescribeRequest())),
            await failure(stub.Embed(pb.ComputeRequest(inputs=["a"]))),
        ]

    for error in errors:
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert trailer(error, REASON_KEY) == "Unavailable"
        assert trailer(error, RETRY_KEY) == "1000"


async def test_describe_says_what_is_computed_and_carries_canaries_run_alone() -> None:
    backend = ArithmeticBackend()
    service = EmbedderService(MODEL)
    async with served(service, backend) as stub:
        said = await stub.Describe(pb.DescribeRequest())

    assert (said.model, said.revision, said.fingerprint) == ("arithmetic", "r1", "arithmetic")
    assert (said.dimensions, said.max_tokens, said.normalized) == (DIMENSIONS, 64, False)
    assert (said.backend, said.device, said.dtype) == ("onnx", "cpu", "float32")
    assert said.max_inputs == Batching().max_request_inputs
    assert said.instance == service.instance
    assert len(service.instance) == 16
    assert said.min_canary_cosine == 0.9999
    expected = np.array([vector_of(text) for text in canaries.TEXTS], "<f4").tobytes()
    assert said.canaries == expected


@pytest.mark.parametrize(
    ("about", "cosine"),
    [
        (replace(ABOUT, dtype=Dtype.FLOAT16), 0.999),
        (replace(ABOUT, dtype=Dtype.BFLOAT16), 0.99),
        (replace(ABOUT, quantization=Quantization.INT8), 0.995),
    ],
    ids=["float16", "bfloat16", "int8"],
)
async def test_lower_precision_may_differ_more(about: About, cosine: float) -> None:
    backend = ArithmeticBackend(about=about)
    async with served(EmbedderService(MODEL), backend) as stub:
        said = await stub.Describe(pb.DescribeRequest())

    assert said.min_canary_cosine == cosine


async def test_a_request_whose_answer_would_not_fit_a_message_is_refused() -> None:
    service = EmbedderService(MODEL, max_message_bytes=1000)
    async with served(service, ArithmeticBackend()) as stub:
        most = (await stub.Describe(pb.DescribeRequest())).max_inputs
        error = await failure(stub.Embed(pb.ComputeRequest(inputs=["a"] * (most + 1))))
        answer = await stub.Embed(pb.ComputeRequest(inputs=["a"] * most))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert answer.ByteSize() <= 1000


async def test_a_call_whose_caller_leaves_frees_its_place() -> None:
    backend, metrics = ArithmeticBackend(), EmbedderMetrics()
    async with served(EmbedderService(MODEL, metrics=metrics), backend) as stub:
        backend.gate.clear()
        first = stub.Embed(pb.ComputeRequest(inputs=["first"]))
        await asyncio.to_thread(backend.entered.get, timeout=WAIT_S)
        leaving = stub.Embed(pb.ComputeRequest(inputs=["leaves"] * 3))
        await until(metrics, "embedkeep_embed_queue_inputs", 3)

        leaving.cancel()
        await until(metrics, "embedkeep_embed_dropped_inputs_total", 3)
        backend.gate.set()
        await first

    assert backend.batches == [[[token("first")]]]


async def test_inputs_whose_deadline_has_passed_are_not_computed() -> None:
    backend = ArithmeticBackend()
    async with served(EmbedderService(MODEL), backend) as stub:
        backend.gate.clear()
        first = stub.Embed(pb.ComputeRequest(inputs=["first"]))
        await asyncio.to_thread(backend.entered.get, timeout=WAIT_S)

        error = await failure(stub.Embed(pb.ComputeRequest(inputs=["late"]), timeout=0.2))
        backend.gate.set()
        await first
        await stub.Embed(pb.ComputeRequest(inputs=["after"]))

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert backend.batches == [[[token("first")]], [[token("after")]]]


async def test_overload_is_refused_with_a_time_to_come_back() -> None:
    backend, metrics = ArithmeticBackend(), EmbedderMetrics()
    limits = Batching(max_queue_inputs=2)
    async with served(EmbedderService(MODEL, limits, metrics=metrics), backend) as stub:
        backend.gate.clear()
        first = stub.Embed(pb.ComputeRequest(inputs=["first"]))
        await asyncio.to_thread(backend.entered.get, timeout=WAIT_S)
        waiting = stub.Embed(pb.ComputeRequest(inputs=["a", "b"]))
        await until(metrics, "embedkeep_embed_queue_inputs", 2)

        error = await failure(stub.Embed(pb.ComputeRequest(inputs=["c"])))
        backend.gate.set()
        await asyncio.gather(first, waiting)

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert trailer(error, REASON_KEY) == "Overloaded"
    assert int(str(trailer(error, RETRY_KEY))) > 0


async def test_a_model_that_cannot_be_loaded_says_why() -> None:
    def refuses() -> ArithmeticBackend:
        raise InvalidConfig("no such model", field="model.name")

    service = EmbedderService(MODEL)

    with pytest.raises(InvalidConfig, match="no such model"):
        await service.start(refuses)

    await service.close()


async def test_a_model_that_fails_on_the_canaries_is_not_served() -> None:
    backend = ArithmeticBackend(dead=True)
    service = EmbedderService(MODEL)

    with pytest.raises(EmbedderUnavailable, match="canary"):
        await service.start(lambda: backend)

    await service.close()


async def test_a_device_that_breaks_is_told_to_the_owner() -> None:
    backend = ArithmeticBackend()
    service = EmbedderService(MODEL)
    async with served(service, backend) as stub:
        backend.dead = True
        answer = await stub.Embed(pb.ComputeRequest(inputs=["a"]))

        with pytest.raises(EmbedderUnavailable, match="device is broken"):
            await service.broken()
        error = await failure(stub.Embed(pb.ComputeRequest(inputs=["a"])))

    assert [e.index for e in answer.errors] == [0]
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def until(metrics: EmbedderMetrics, name: str, value: float) -> None:
    async with asyncio.timeout(WAIT_S):
        while metrics.registry.get_sample_value(name, {"purpose": "demand"}) != value:  # noqa: ASYNC110  # as said below
            await asyncio.sleep(0.001)  # a metric has no event
