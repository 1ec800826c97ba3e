"""Starts a child process, with pipes to it and word of its end, and reads what it says."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Final

MAX_LINE: Final = 16 << 10
"""Longer lines of output are broken up, bytes."""


class _Watched(asyncio.subprocess.SubprocessStreamProtocol):
    """Says when the process ends. `Process.wait` would also wait for all who hold its pipes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=MAX_LINE, loop=loop)
        self.exited = asyncio.Event()

    def process_exited(self) -> None:
        """Called by the event loop."""
        super().process_exited()
        self.exited.set()


async def started(
    *command: str, env: Mapping[str, str]
) -> tuple[asyncio.subprocess.Process, asyncio.Event]:
    """A process with three pipes and a session of its own, and the event of its end."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.subprocess_exec(
        lambda: _Watched(loop), *command, env=env, start_new_session=True
    )
    return asyncio.subprocess.Process(transport, protocol, loop), protocol.exited


async def lines(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    """What a process says, line by line, as long as it does."""
    rest = b""
    while chunk := await reader.read(MAX_LINE):
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) >= MAX_LINE:
            whole, rest = [*whole, rest], b""
        for line in whole:
            yield _text(line)
    if rest:
        yield _text(rest)


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")
