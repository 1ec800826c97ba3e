"""Connections of HTTP that are never made: how long they are waited for, and by whom."""

import asyncio
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedkeep import Retries
from embedkeep.client.transports import pooling
from embedkeep.errors import Unavailable
from support.clients import AsyncOverHttp, Kind, ThreadedOverHttp
from support.node import until

WAIT_S = 30.0
NEVER_S = 1000.0
"""Longer than a test may run: who waits for it has failed."""
ONCE = Retries(max_attempts=1)

pytestmark = [
    pytest.mark.parametrize("kind", [AsyncOverHttp, ThreadedOverHttp]),
    pytest.mark.skipif(sys.platform != "linux", reason="others answer though nobody accepts"),
]


@pytest.fixture
def full() -> Iterator[int]:
    """A port that answers nobody any more: as many wait to be accepted as may."""
    with socket.socket() as server, socket.socket() as first:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        first.connect(server.getsockname())
        yield server.getsockname()[1]


def connecting(port: int) -> bool:
    """Some socket of this machine waits for its connection to *port*."""
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return any(
        line.split()[2].endswith(f":{port:04X}") and line.split()[3] == "02"  # SYN_SENT
        for line in lines
    )


async def test_a_call_that_connects_ends_with_its_client(
    kind: Kind, full: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooling, "DIAL_S", NEVER_S)
    client = kind(f"http://127.0.0.1:{full}", retries=ONCE, timeout_s=NEVER_S)
    call = asyncio.create_task(client.info())

    async def begun() -> bool:
        return connecting(full)

    await until(begun)
    await client.close()
    with pytest.raises(Unavailable, match="closed"):
        await asyncio.wait_for(call, WAIT_S)


async def test_a_call_that_greets_over_tls_ends_with_its_client(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooling, "DIAL_S", NEVER_S)
    greeted, left = asyncio.Event(), asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        greeted.set()
        await reader.read()
        writer.close()
        left.set()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        client = kind(f"https://127.0.0.1:{port}", retries=ONCE, timeout_s=NEVER_S)
        call = asyncio.create_task(client.info())
        await asyncio.wait_for(greeted.wait(), WAIT_S)
        await client.close()
        with pytest.raises(Unavailable, match="closed"):
            await asyncio.wait_for(call, WAIT_S)
        await asyncio.wait_for(left.wait(), WAIT_S)


async def test_who_does_not_answer_in_time_is_named_with_the_time(
    kind: Kind, full: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooling, "DIAL_S", 0.2)
    async with kind(f"http://127.0.0.1:{full}", retries=ONCE, timeout_s=WAIT_S) as client:
        with pytest.raises(Unavailable, match=f"127.0.0.1:{full}: it did not answer within 0.2 s"):
            await client.info()
