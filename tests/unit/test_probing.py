"""What a process says of itself on its port for metrics."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection

import pytest
from prometheus_client import CollectorRegistry, Gauge

from embedkeep.config import Listen
from embedkeep.errors import InvalidConfig
from embedkeep.probing import LIVE, READY, Probes, serve_metrics


def ask(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    with closing(HTTPConnection(host, port, timeout=30)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


@contextmanager
def served(probes: Probes, host: str = "127.0.0.1") -> Iterator[int]:
    registry = CollectorRegistry()
    Gauge("answer", "To all.", registry=registry).set(42)
    server, thread = serve_metrics(Listen(host=host), registry, probes)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
async def loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


async def test_metrics_are_served_beside_the_probes(loop: asyncio.AbstractEventLoop) -> None:
    with served(Probes(loop, ready=lambda: True)) as port:
        status, text = await asyncio.to_thread(ask, port, "/metrics")

    assert (status, "answer 42.0" in text) == (200, True)


@pytest.mark.parametrize("is_ready", [True, False])
async def test_a_process_is_ready_when_it_says_so(
    loop: asyncio.AbstractEventLoop, *, is_ready: bool
) -> None:
    with served(Probes(loop, ready=lambda: is_ready)) as port:
        assert await asyncio.to_thread(ask, port, READY) == (
            (200, "ok\n") if is_ready else (503, "no\n")
        )
        assert await asyncio.to_thread(ask, port, LIVE) == (200, "ok\n")


async def test_a_process_whose_loop_is_stuck_is_neither_live_nor_ready(
    loop: asyncio.AbstractEventLoop,
) -> None:
    found: list[int] = []
    asked = threading.Event()

    with served(Probes(loop, ready=lambda: True, within_s=0.05)) as port:

        def asking() -> None:
            found.extend(ask(port, path)[0] for path in (LIVE, READY))
            asked.set()

        thread = threading.Thread(target=asking)
        thread.start()
        asked.wait()  # on purpose without await: nothing else runs meanwhile
        thread.join()

    assert found == [503, 503]


def test_a_process_that_has_ended_is_not_live() -> None:
    loop = asyncio.new_event_loop()
    loop.close()

    assert not Probes(loop, ready=lambda: True).is_live()


def test_a_port_that_is_taken_is_named() -> None:
    loop = asyncio.new_event_loop()
    probes = Probes(loop, ready=lambda: True)
    with closing(loop), served(probes) as port, pytest.raises(InvalidConfig, match="metrics"):
        serve_metrics(Listen(port=port), CollectorRegistry(), probes)
