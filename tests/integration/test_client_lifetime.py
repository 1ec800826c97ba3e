"""What is particular to each client: cancellation, loops, threads, forgetting to close."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable

import pytest

from embedkeep import AsyncClient, Client
from embedkeep.errors import Unavailable
from support.clients import At, over_http
from support.fake_node import FakeNode, running

WAIT_S = 30.0
NEVER_S = 1000.0
"""Longer than a test may run: who waits for it has failed."""

Way = Callable[[str], str | list[str]]

pytestmark = pytest.mark.parametrize("way", [pytest.param(str, id="gRPC"), over_http])


async def test_a_cancelled_call_cancels_its_requests_and_harms_no_other(way: Way) -> None:
    node = FakeNode(max_inputs=1)
    with running(node) as (address,):
        async with AsyncClient(way(address), timeout_s=NEVER_S) as client:
            await client.info()
            node.hold = threading.Event()
            call = asyncio.create_task(client.embed(["a", "b"]), name="call")
            for _ in range(2):
                assert await asyncio.to_thread(node.entered.acquire, timeout=WAIT_S)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            node.hold.set()

            left = [task.get_name() for task in asyncio.all_tasks()]
            assert not [name for name in left if name.startswith("embedkeep request")]
            assert (await client.embed(["c"])).shape == (1, 8)


async def test_one_failed_part_ends_the_others(way: Way) -> None:
    node = FakeNode(max_inputs=1)
    node.spoil = lambda response: response.tokens.pop()
    with running(node) as (address,):
        async with AsyncClient(way(address)) as client:
            with pytest.raises(Exception, match="does not fit"):
                await client.embed(["a", "b", "c"])

            left = [task.get_name() for task in asyncio.all_tasks()]
            assert not [name for name in left if name.startswith("embedkeep request")]


def test_a_client_of_another_loop_says_so(way: Way) -> None:
    with running(FakeNode()) as (address,):
        client = AsyncClient(way(address))

        async def first() -> None:
            await client.embed(["a"])

        async def second() -> None:
            with pytest.raises(RuntimeError, match="another event loop"):
                await client.embed(["a"])

        with asyncio.Runner() as one:
            one.run(first())
            with asyncio.Runner() as two:
                two.run(second())
            one.run(client.close())


def test_closing_ends_a_call_of_another_thread(way: Way) -> None:
    node = FakeNode(hold=threading.Event())
    with running(node) as (address,):
        client = Client(way(address), timeout_s=WAIT_S)
        client.info()
        errors: list[BaseException] = []

        def call() -> None:
            try:
                client.embed(["a"])
            except Unavailable as error:
                errors.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        assert node.entered.acquire(timeout=WAIT_S)

        client.close()
        thread.join(WAIT_S)

        assert "the client was closed during the call" in str(errors[0])


def test_a_client_that_is_never_closed_warns(way: Way) -> None:
    with running(FakeNode()) as (address,):
        clients = [Client(way(address))]
        clients[0].embed(["a"])

        with pytest.warns(ResourceWarning, match="unclosed Client"):
            clients.clear()


def test_a_client_that_was_never_used_needs_no_closing(way: Way) -> None:
    client = Client(way(At("localhost:1", http="http://localhost:1")))
    gone = weakref.ref(client)

    del client
    gc.collect()

    assert gone() is None
