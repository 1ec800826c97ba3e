"""The embedder as a process: starting, being warm, failing clearly, draining."""

import asyncio
import signal
from pathlib import Path
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from embedkeep.v1 import embedder_pb2 as pb
from embedkeep.v1 import embedder_pb2_grpc
from support.embedder import WAIT_S, embedder

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="session")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the model is converted to, once for all tests."""
    return tmp_path_factory.mktemp("converted")


async def until_serving(channel: grpc.aio.Channel) -> list[int]:
    """Watch the health until it is SERVING; all that was seen."""
    seen = []
    stub = health_pb2_grpc.HealthStub(channel)
    watch = stub.Watch(  # type: ignore[attr-defined]  # its types know only Check
        health_pb2.HealthCheckRequest(service="embedkeep.v1.Embedder"), timeout=WAIT_S
    )
    async for said in watch:
        seen.append(said.status)
        if said.status == SERVING:
            break
    watch.cancel()
    return seen


async def test_it_serves_only_once_warm_and_drains_when_told_to_stop(
    tmp_path: Path, work_dir: Path
) -> None:
    with embedder(tmp_path, work_dir=work_dir) as started:
        port = await asyncio.to_thread(started.port)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = embedder_pb2_grpc.EmbedderStub(channel)
            health = await until_serving(channel)
            said = await stub.Describe(pb.DescribeRequest(), timeout=WAIT_S)
            metrics_port = started.metrics_port()
            texts = [f"Where is parcel number {n}, and when will it come?" for n in range(300)]
            call = stub.Embed(pb.ComputeRequest(inputs=texts, purpose=pb.PURPOSE_BULK))
            await until_batches(metrics_port)

            started.process.send_signal(signal.SIGTERM)
            answer = await call

        status = await asyncio.to_thread(started.process.wait, WAIT_S)
        output = started.output()

    assert health[-1] == SERVING
    assert set(health[:-1]) <= {NOT_SERVING}
    vectors = np.frombuffer(answer.vectors, "<f4").reshape(300, said.dimensions)
    assert np.isfinite(vectors).all()
    assert not answer.errors
    assert status == 0, output
    assert "Traceback" not in output
    assert "parcel" not in output, "inputs are never logged"


async def test_a_signal_while_the_model_loads_ends_it_cleanly(tmp_path: Path) -> None:
    """Native code that is still loading must not abort the process as it ends."""
    with embedder(tmp_path, work_dir=tmp_path / "work") as started:
        async with asyncio.timeout(WAIT_S):
            # Converted: now ONNX Runtime loads it, and tries it out.
            while not list(tmp_path.glob("work/*/model.onnx")):  # noqa: ASYNC110, ASYNC240  # a file of another process has no event
                await asyncio.sleep(0.01)

        started.process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(started.process.wait, WAIT_S)

        assert status == 0, started.output()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"model": {"name": "m", "source": {"package": "no_such_package"}}},
            "model.source.package: no package 'no_such_package'",
        ),
        ({"model": {"name": "m", "source": {"path": "/nowhere"}}}, "model.source.path: /nowhere"),
        ({"dtype": "float16"}, "dtype: float16 needs backend torch"),
        ({"device": "cuda"}, "device: 'cuda' needs backend torch"),
        ({"quantization": "Int8", "backend": "torch"}, "quantization: Int8 needs backend onnx"),
        ({"quantization": "Int8", "dtype": "float16"}, "dtype: float16 needs backend torch"),
        ({"work_dir": "/proc/none"}, "work_dir: the converted model cannot be written"),
    ],
)
async def test_what_cannot_be_started_says_why_and_ends_with_2(
    tmp_path: Path, fields: dict[str, object], says: str
) -> None:
    with embedder(tmp_path, **fields) as started:
        status = await asyncio.to_thread(started.process.wait, WAIT_S)
        output = started.output()

    assert status == 2, output
    assert f"error: {says}" in output
    assert "Traceback" not in output


async def test_its_metrics_say_what_runs(tmp_path: Path, work_dir: Path) -> None:
    with embedder(tmp_path, work_dir=work_dir) as started:
        port = await asyncio.to_thread(started.port)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await until_serving(channel)
            stub = embedder_pb2_grpc.EmbedderStub(channel)
            answer = await stub.Embed(pb.ComputeRequest(inputs=["hi"], purpose=pb.PURPOSE_WARM))
        text = await asyncio.to_thread(scrape, started.metrics_port())

    assert 'embedkeep_build_info{backend="onnx",device="cpu",dtype="float32"' in text
    assert f'embedkeep_embed_tokens_total{{purpose="warm"}} {float(answer.tokens[0])}' in text


def scrape(port: int) -> str:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT_S) as answer:
        text: str = answer.read().decode()
    return text


async def until_batches(metrics_port: int) -> None:
    """Wait until the first batch was computed."""
    idle = "embedkeep_embed_batch_inputs_count 0.0"
    async with asyncio.timeout(WAIT_S):
        while idle in await asyncio.to_thread(scrape, metrics_port):  # noqa: ASYNC110  # as below
            await asyncio.sleep(0.01)  # another process's metric has no event
