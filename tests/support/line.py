"""A TCP line between two parties that a test can slow down, cut, or let go silent."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

CHUNK_BYTES = 64 << 10


@dataclass(eq=False)
class Line:
    """Carries bytes both ways to a port of this machine."""

    target: int
    port: int = 0
    delay_s: float = 0.0
    """How long every chunk is held back on its way to the caller."""
    connections: set[asyncio.StreamWriter] = field(default_factory=set)
    """Both ends of all that is connected now."""
    carrying: set[asyncio.Task[None]] = field(default_factory=set)
    withheld: int = 0
    """Chunks of answers that are there and are not carried on."""
    _flowing: asyncio.Event = field(default_factory=asyncio.Event)
    _answering: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.flow()

    def hush(self) -> None:
        """Carry nothing on; connections stay, as after a cable was pulled."""
        self._flowing.clear()

    def withhold(self) -> None:
        """Carry nothing back to the callers; what they say arrives."""
        self._answering.clear()

    def flow(self) -> None:
        """Carry on."""
        self._flowing.set()
        self._answering.set()

    def cut(self) -> None:
        """End what is connected, without a word; new connections are taken."""
        for end in self.connections:
            end.transport.abort()

    def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A new connection."""
        task = asyncio.create_task(self._carry(reader, writer))
        self.carrying.add(task)
        task.add_done_callback(self.carrying.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = {writer}
        self.connections |= ends
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
            ends.add(far_writer)
            self.connections |= ends
            ways = {
                asyncio.create_task(self._copy(reader, far_writer, slow=False)),
                asyncio.create_task(self._copy(far_reader, writer, slow=True)),
            }
            _, left = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in left:
                way.cancel()
            await asyncio.wait(ways)
        except OSError:
            pass  # nobody listens: the caller sees its own connection end
        finally:
            self.connections -= ends
            for end in ends:
                end.transport.abort()

    async def _copy(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, slow: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(CHUNK_BYTES):
                if slow and self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._flowing.wait()
                if slow and not self._answering.is_set():
                    self.withheld += 1
                    await self._answering.wait()
                    self.withheld -= 1
                sink.write(data)
                await sink.drain()


@asynccontextmanager
async def line_to(target: int) -> AsyncIterator[Line]:
    """A line to *target* while the block runs."""
    line = Line(target)
    server = await asyncio.start_server(line.take, "127.0.0.1", 0)
    line.port = server.sockets[0].getsockname()[1]
    try:
        yield line
    finally:
        server.close()
        line.flow()
        line.cut()
        await asyncio.gather(*line.carrying)
        await server.wait_closed()
