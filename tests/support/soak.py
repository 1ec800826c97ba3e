"""What can happen to a cache on this machine, each as something a test can have happen."""

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import hiredis

from embedkeep.errors import Unavailable
from embedkeep_operator.local.runner import Running

Accident = Callable[[random.Random], Awaitable[None]]

STOPPED_S = (0.1, 1.5)
PAUSED_MS = (20, 800)
TIGHT_BYTES = 2 << 20


def accidents(running: Running, *, spared: str) -> dict[str, Accident]:
    """All there are, by name.

    Args:
        spared: A process that no signal is sent to.
    """
    names = [name for name in running.processes if name != spared]
    found: dict[str, Accident] = {}
    for name in names:
        found[f"{name} is killed"] = partial(_killed, running, name)
        found[f"{name} is stopped"] = partial(_stopped, running, name)
    for number, ports in enumerate(running.ports.nodes):
        valkey = partial(_told, running, ports.valkey)
        found[f"Valkey {number} is emptied"] = partial(valkey, _emptied)
        found[f"Valkey {number} is slow"] = partial(valkey, _slow)
        found[f"Valkey {number} is full"] = partial(valkey, _full)
        found[f"Valkey {number} damages a record"] = partial(valkey, _damaged)
    return found


async def _killed(running: Running, name: str, _choice: random.Random) -> None:
    try:
        os.kill(running.pid(name), signal.SIGKILL)
    except (Unavailable, ProcessLookupError):
        return  # it is dead already


async def _stopped(running: Running, name: str, choice: random.Random) -> None:
    try:
        pid = running.pid(name)
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(choice.uniform(*STOPPED_S))
        finally:  # also where the time is over meanwhile
            os.kill(pid, signal.SIGCONT)
    except (Unavailable, ProcessLookupError):
        return


Run = Callable[..., Awaitable[list[object]]]


async def _told(
    running: Running,
    port: int,
    what: Callable[[Run, random.Random], Awaitable[None]],
    choice: random.Random,
) -> None:
    """Tell the Valkey on *port* something, if it lives."""
    password = (running.folder / "valkey-password").read_text()
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await _replies(reader, writer, ("AUTH", password))
                await what(partial(_replies, reader, writer), choice)
            finally:
                writer.close()
    except (OSError, TimeoutError, EOFError):
        return


async def _replies(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *commands: Sequence[str | bytes | int],
) -> list[object]:
    writer.write(b"".join(hiredis.pack_command(tuple(each)) for each in commands))  # type: ignore[arg-type]  # its stub knows 1-tuples only
    parser, found = hiredis.Reader(), list[object]()
    while len(found) < len(commands):
        if (reply := parser.gets()) is not False:
            found.append(reply)
        elif data := await reader.read(1 << 16):
            parser.feed(data)
        else:
            raise EOFError
    return found


async def _emptied(run: Run, _choice: random.Random) -> None:
    await run(("FLUSHALL",))


async def _slow(run: Run, choice: random.Random) -> None:
    await run(("CLIENT", "PAUSE", choice.randint(*PAUSED_MS), "ALL"))


async def _full(run: Run, choice: random.Random) -> None:
    (held,) = await run(("CONFIG", "GET", "maxmemory"))
    assert isinstance(held, list)
    await run(("CONFIG", "SET", "maxmemory", TIGHT_BYTES))
    await asyncio.sleep(choice.uniform(*STOPPED_S))
    await run(("CONFIG", "SET", "maxmemory", held[1]))


async def _damaged(run: Run, choice: random.Random) -> None:
    for _ in range(8):
        (key,) = await run(("RANDOMKEY",))
        if isinstance(key, bytes) and len(key) == 24:  # an entry, not what nodes have agreed
            await run(("SETRANGE", key, choice.randrange(1_000), b"\x55\xaa\x55"))
