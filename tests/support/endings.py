"""Waiting for processes that are not this process's children to end."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterable


async def until_gone(pids: Iterable[int], *, within_s: float = 20.0) -> None:
    """Return once none of *pids* runs; a zombie that nobody reaps does not run.

    Raises:
        TimeoutError: One still runs.
    """
    async with asyncio.timeout(within_s):
        for pid in pids:
            await _gone(pid)


async def _gone(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        if sys.platform == "linux":
            await _readable(os.pidfd_open(pid))
        else:
            await _signalled(pid)


async def _signalled(pid: int) -> None:
    """Where there is no event to wait for: ask again and again."""
    while True:
        os.kill(pid, 0)
        await asyncio.sleep(0.02)


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
