"""What is worked on, in which order, and how often."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hypothesis import given
from hypothesis import strategies as st

from embedkeep_operator.kubernetes.workqueue import FIRST_S, LONGEST_S, WorkQueue, backoff_s


class Clock:
    """Stands still."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def taking(queue: WorkQueue[str]) -> AsyncIterator[asyncio.Task[str]]:
    task = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    try:
        yield task
    finally:
        task.cancel()


async def test_a_key_that_is_added_often_is_worked_on_once() -> None:
    queue = WorkQueue[str](Clock())
    for _ in range(3):
        queue.add("a")

    assert await queue.take() == "a"
    async with taking(queue) as task:
        assert not task.done()


async def test_what_became_due_first_comes_first() -> None:
    clock = Clock()
    queue = WorkQueue[str](clock)
    queue.add("later", after_s=2)
    queue.add("sooner", after_s=1)
    clock.now_s += 3

    assert [await queue.take(), await queue.take()] == ["sooner", "later"]


async def test_a_key_added_while_it_is_worked_on_comes_again_afterwards() -> None:
    queue = WorkQueue[str](Clock())
    queue.add("a")
    assert await queue.take() == "a"
    queue.add("a")
    async with taking(queue) as task:
        assert not task.done()
        queue.done("a")
        assert await task == "a"


async def test_adding_again_never_postpones() -> None:
    queue = WorkQueue[str](Clock())
    queue.add("a")
    queue.add("a", after_s=60)

    assert await asyncio.wait_for(queue.take(), 1) == "a"


async def test_what_is_due_now_is_not_held_up_by_what_is_due_later() -> None:
    queue = WorkQueue[str](Clock())
    queue.add("later", after_s=60)
    async with taking(queue) as task:
        queue.add("now")
        assert await asyncio.wait_for(task, 1) == "now"


async def test_what_is_gone_is_not_worked_on() -> None:
    queue = WorkQueue[str](Clock())
    queue.add("a")
    queue.discard("a")
    async with taking(queue) as task:
        assert not task.done()


async def test_the_age_is_that_of_what_has_been_due_longest() -> None:
    clock = Clock()
    queue = WorkQueue[str](clock)
    assert queue.oldest_s == 0
    queue.add("a", after_s=5)
    clock.now_s += 4
    assert queue.oldest_s == 0
    clock.now_s += 4
    assert queue.oldest_s == 3


@given(st.integers(1, 10_000))
def test_failures_in_a_row_wait_ever_longer_up_to_a_bound(failures: int) -> None:
    assert FIRST_S <= backoff_s(failures) <= backoff_s(failures + 1) <= LONGEST_S
