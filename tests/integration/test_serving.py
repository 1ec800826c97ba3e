import asyncio
import json
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import Counter

from embedkeep.errors import REASON_KEY, RETRY_KEY, InvalidConfig, Overloaded
from support.node import sample, scrape
from support.served import (
    SERVICE,
    WAIT_S,
    Status,
    channel_to,
    describe,
    endpoint,
    health_of,
    listening,
)


async def test_health_is_the_owners_word_for_each_service_and_the_whole() -> None:
    async with listening(endpoint()) as served, channel_to(served.port) as channel:
        seen: list[Sequence[int]] = []
        for state in (None, True, False):
            if state is not None:
                await served.health.set(serving=state)
            seen.append([await health_of(channel, service) for service in ("", SERVICE)])
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await health_of(channel, "no.such.Service")

    assert seen == [
        [Status.NOT_SERVING, Status.NOT_SERVING],
        [Status.SERVING, Status.SERVING],
        [Status.NOT_SERVING, Status.NOT_SERVING],
    ]
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watchers_of_health_hear_of_the_end() -> None:
    async with AsyncExitStack() as server:
        served = await server.enter_async_context(listening(endpoint()))
        await served.health.set(serving=True)
        async with channel_to(served.port) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # its types know no methods
            watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
            seen = aiter(watch)
            first = await anext(seen)

            ending = asyncio.create_task(server.aclose(), name="ending")
            last = await anext(seen)
            watch.cancel()
            await ending

    assert [first.status, last.status] == [Status.SERVING, Status.NOT_SERVING]


async def test_reflection_lists_what_is_served() -> None:
    async with listening(endpoint()) as served, channel_to(served.port) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(
            channel  # type: ignore[arg-type]  # its types know no asyncio
        )
        call = stub.ServerReflectionInfo(timeout=WAIT_S)
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await call.read()
        await call.done_writing()
        call.cancel()

    assert isinstance(answer, reflection_pb2.ServerReflectionResponse)
    assert {each.name for each in answer.list_services_response.service} == {
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


async def test_the_announce_file_says_where_to_connect(tmp_path: Path) -> None:
    announced = tmp_path / "ports.json"
    async with listening(endpoint(announce_file=announced)) as served:
        ports = json.loads(announced.read_text())
        async with channel_to(ports["grpc"]) as channel:
            status = await health_of(channel)

    assert ports == {"grpc": served.port, "metrics": served.metrics_port}
    assert status == Status.NOT_SERVING
    assert names(tmp_path) == ["ports.json"]


def names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


async def test_metrics_are_those_of_the_owners_registry() -> None:
    async with listening(endpoint()) as served:
        Counter("apples", "Eaten.", registry=served.registry).inc(3)

        text = await asyncio.to_thread(scrape, served.metrics_port)

    assert sample(text, "apples_total") == 3


@pytest.mark.parametrize("which", ["grpc", "metrics"])
async def test_a_port_in_use_is_a_wrong_config_that_names_it(which: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken: int = other.getsockname()[1]
        where = endpoint(port=taken) if which == "grpc" else endpoint(metrics_port=taken)

        with pytest.raises(InvalidConfig, match=f"cannot listen on 127.0.0.1:{taken}") as refused:
            async with listening(where):
                pass

    assert refused.value.field == which


async def test_after_a_port_was_in_use_the_other_is_free_again() -> None:
    """Whoever starts both again must not be told that the first is in use: by nobody."""
    with socket.socket() as other, socket.socket() as probe:
        other.bind(("127.0.0.1", 0))
        other.listen()
        probe.bind(("127.0.0.1", 0))
        mine: int = probe.getsockname()[1]
        probe.close()
        with pytest.raises(InvalidConfig):
            async with listening(endpoint(port=mine, metrics_port=other.getsockname()[1])):
                pass

    async with listening(endpoint(port=mine)) as served:
        assert served.port == mine


async def test_an_end_lets_calls_in_flight_end_and_takes_no_new_ones() -> None:
    async with AsyncExitStack() as server:
        served = await server.enter_async_context(listening(endpoint()))
        async with channel_to(served.port) as early, channel_to(served.port) as late:
            in_flight = asyncio.create_task(describe(early))
            await served.slow.entered.get()

            ending = asyncio.create_task(server.aclose(), name="ending")
            refused = await until_refused(late)
            still_ending = not ending.done()
            served.slow.gate.set()

            assert await in_flight == "slow"
            await asyncio.wait_for(ending, WAIT_S)

    assert refused is grpc.StatusCode.UNAVAILABLE
    assert still_ending


async def until_refused(channel: grpc.aio.Channel) -> grpc.StatusCode:
    """Call until a call fails; how it failed."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await health_of(channel)
            except grpc.aio.AioRpcError as refused:
                return refused.code()


async def test_an_end_waits_no_longer_than_it_was_told() -> None:
    async with AsyncExitStack() as server:
        served = await server.enter_async_context(listening(endpoint(drain_s=0.01)))
        async with channel_to(served.port) as channel:
            in_flight = asyncio.create_task(describe(channel))
            await served.slow.entered.get()

            await asyncio.wait_for(server.aclose(), WAIT_S)

            with pytest.raises(grpc.aio.AioRpcError):
                await in_flight


async def test_a_refusal_carries_its_class_and_when_to_try_again() -> None:
    async with listening(endpoint()) as served, channel_to(served.port) as channel:
        served.slow.error = Overloaded("too much waits", retry_after_s=0.25)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await describe(channel)

    trailers = dict(refused.value.trailing_metadata() or ())
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.value.details() == "too much waits"
    assert (trailers[REASON_KEY], trailers[RETRY_KEY]) == ("Overloaded", "250")
