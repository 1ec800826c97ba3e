"""The one thread that touches the model."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class DeviceThread:
    """Runs blocking calls one after another on its own thread, for one event loop.

    A daemon: a model that is still loading, or a batch on a device that hangs, is not waited for
    at the end, as the loop's own executor would be. See `ended`.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def call(self, work: Callable[[], T]) -> T:
        """What *work* returns or raises. Leaving early does not stop it."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._jobs.put(partial(_settle, work, done, loop))
        return await done

    def close(self) -> None:
        """End the thread once its present call returns; does not wait."""
        self._jobs.put(None)

    def ended(self, *, within_s: float) -> bool:
        """Whether the thread ends in that time after `close`.

        Where not, the interpreter must not be shut down around it: native code that is called
        back then aborts the whole process. `os._exit` is what is left.
        """
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def _settle(
    work: Callable[[], T], done: asyncio.Future[T], loop: asyncio.AbstractEventLoop
) -> None:
    tell: Callable[[], None]
    try:
        tell = partial(_unless_left, done, done.set_result, work())
    except Exception as error:  # noqa: BLE001  # it is the caller's, and raised there
        tell = partial(_unless_left, done, done.set_exception, error)
    try:
        loop.call_soon_threadsafe(tell)
    except RuntimeError:
        if not loop.is_closed():
            raise  # a closed loop has nobody left to tell


def _unless_left(done: asyncio.Future[T], settle: Callable[..., None], value: object) -> None:
    if not done.cancelled():
        settle(value)
