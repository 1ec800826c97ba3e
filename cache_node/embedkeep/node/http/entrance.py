"""What a connection meets first: it answers plain calls by itself and leaves all else to aiohttp.

Most of what a node does is answering its own clients' calls from memory, and aiohttp's way to a
handler and back takes longer than that. So a connection begins here. As long as one plain call
follows the other (see `plain`) they are answered here; whatever else comes makes the connection
aiohttp's, for good and with all that came of it. Nothing here thus has an opinion on HTTP, on slow
heads or on large bodies.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, Protocol, cast

from embedkeep.node.http import headers, plain
from embedkeep.node.http.connect import Body, Reply
from embedkeep.node.http.plain import Not, PlainCall
from embedkeep.node.http.routes import SERVER
from embedkeep.node.trace import PARENT

IDLE_S: Final = 630.0
"""How long an idle connection stays open: longer than the proxies that clouds put before a server,
or they send a request into a connection that is just being closed."""
WHOLE_S: Final = 1.0
"""How long a call may take to come as a whole and still be plain."""
READ_S: Final = 60.0
"""How long an answer may lie unread, seconds, before its reader is given up."""


class Answering(Protocol):
    """Answers plain calls; see `Connect`."""

    @property
    def paths(self) -> AbstractSet[str]:
        """Where it does."""

    async def answer(self, path: str, sent: Mapping[str, str], body: Body) -> Reply:
        """Never raises but for a cancellation."""


class Entrances:
    """All connections of a server that are still here.

    Args:
        connect: Answers plain calls.
        other: Makes a protocol for a connection that brings anything else.
    """

    def __init__(self, connect: Answering, other: Callable[[], asyncio.Protocol]) -> None:
        self.connect = connect
        self.other = other
        self.draining = False
        self._open = set["_Entrance"]()
        self._closing = set["_Entrance"]()
        self._none = asyncio.Event()
        """Set while none is open."""
        self._none.set()
        self._second = 0
        self._always = ""

    def __call__(self) -> asyncio.Protocol:
        """A protocol for a new connection."""
        return _Entrance(self)

    async def drain(self, within_s: float) -> None:
        """Close what is idle, and what is busy once it was answered.

        A call that has only begun to come must be whole within `WHOLE_S`.

        Args:
            within_s: How long that may take; what is busy then is cut off.
        """
        self.draining = True
        for entrance in list(self._open):
            entrance.close_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._none.wait()
        tasks = {each.task for each in self._open if each.task is not None}
        for entrance in (*self._open, *self._closing):
            entrance.abort()
        if tasks:
            await asyncio.wait(tasks)

    def add(self, entrance: "_Entrance") -> None:
        """It was opened."""
        self._open.add(entrance)
        self._none.clear()

    def finish(self, entrance: "_Entrance") -> None:
        """It is being closed, and loses nothing by it: over TLS the other side may take long."""
        self.discard(entrance)
        self._closing.add(entrance)

    def discard(self, entrance: "_Entrance") -> None:
        """It is closed, or another's."""
        self._closing.discard(entrance)
        self._open.discard(entrance)
        if not self._open:
            self._none.set()

    def head(self, reply: Reply) -> bytes:
        """What stands before the body of *reply*."""
        if (second := int(time.time())) != self._second:
            self._second = second
            self._always = f"server: {SERVER}\r\ndate: {formatdate(second, usegmt=True)}\r\n"
        lines = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
        phrase = HTTPStatus(reply.status).phrase if reply.status != 200 else "OK"
        last = "connection: close\r\n" if self.draining else ""
        return (
            f"HTTP/1.1 {reply.status} {phrase}\r\n{self._always}{lines}{last}"
            f"content-length: {len(reply.body)}\r\n\r\n"
        ).encode()


class _Entrance(asyncio.Protocol):
    """One connection."""

    _transport: asyncio.Transport

    def __init__(self, all_: Entrances) -> None:
        self._all = all_
        self._loop = asyncio.get_running_loop()
        self._came = b""
        self._used_at = self._loop.time()
        self._idle: asyncio.TimerHandle | None = None
        self._late: asyncio.TimerHandle | None = None
        """Set while what came may become a plain call, or while an answer lies unread."""
        self._full = False
        """The other side does not read."""
        self.task: asyncio.Task[None] | None = None
        """Answers a call. While it does, no other is begun: answers come in their calls' order."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses
        self._all.add(self)
        self._idle = self._loop.call_later(IDLE_S, self._look)
        if self._all.draining:
            self._finish()

    def data_received(self, data: bytes) -> None:
        self._came = self._came + data if self._came else data
        if self.task is None and not self._full:
            self._next()
        if len(self._came) > plain.MOST_BYTES:
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        self._full = True
        self._in_time()
        self._late = self._loop.call_later(READ_S, self.abort)

    def resume_writing(self) -> None:
        self._full = False
        self._in_time()
        if self.task is None:
            self._answered()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._leave()
        if self.task is not None:  # whom nobody waits for is not computed for
            self.task.cancel()

    def close_idle(self) -> None:
        """Close it, unless it has a call under way or one is coming."""
        # What is written from now on must have left before it is closed. (0 is full when empty.)
        self._transport.set_write_buffer_limits(high=1, low=0)
        if self.task is None and not self._came and not self._full:
            self._finish()

    def abort(self) -> None:
        """Close it now."""
        self._transport.abort()

    def _next(self) -> None:
        """Take up what came."""
        match call := plain.read(self._came, self._all.connect.paths):
            case PlainCall():
                self._in_time()
                self._came = self._came[call.size :]
                self.task = self._loop.create_task(self._answer(call))
            case Not.YET if self._late is None:
                self._late = self._loop.call_later(WHOLE_S, self._hand_over)
            case Not.EVER:
                self._hand_over()

    async def _answer(self, call: PlainCall) -> None:
        async def body(_ends_s: float) -> bytes:
            return call.body

        try:
            reply = await self._all.connect.answer(call.path, call.headers, body)
            head = self._all.head(_traced(reply, call) if PARENT in call.headers else reply)
            self._transport.writelines((head, reply.body))
        except BaseException:  # or its caller would wait for ever
            self._transport.abort()
            raise
        self.task = None
        self._used_at = self._loop.time()
        if not self._full:
            self._answered()

    def _answered(self) -> None:
        """Take up what came meanwhile."""
        if self._all.draining:
            self._finish()
        elif self._came and not self._transport.is_closing():
            if len(self._came) <= plain.MOST_BYTES:  # else each answer would let in as much again
                self._transport.resume_reading()
            self._next()

    def _finish(self) -> None:
        self._all.finish(self)
        self._transport.close()

    def _hand_over(self) -> None:
        """Make the connection aiohttp's."""
        self._leave()
        if self._all.draining:
            self._finish()
        if self._transport.is_closing():
            return
        other = self._all.other()
        self._transport.pause_reading()  # what comes next must not overtake what came
        self._transport.set_protocol(other)
        other.connection_made(self._transport)
        # Not at once: aiohttp begins to wait for a request in the loop's next turn, and tells a
        # slow head only while it waits.
        self._loop.call_soon(self._hand_on, other)

    def _hand_on(self, other: asyncio.Protocol) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()
            if self._came:
                other.data_received(self._came)

    def _look(self) -> None:
        """Close it where it has been idle; a timer for each call would cost more."""
        left_s = self._used_at + IDLE_S - self._loop.time()
        busy = self.task is not None or self._late is not None
        if left_s > 0 or busy:
            self._idle = self._loop.call_later(IDLE_S if busy else left_s, self._look)
        elif self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _leave(self) -> None:
        self._all.discard(self)
        self._in_time()
        if self._idle is not None:
            self._idle.cancel()


def _traced(reply: Reply, call: PlainCall) -> Reply:
    """*reply*, with the trace that *call* belongs to."""
    if (found := headers.trace(call.headers)) is None:
        return reply
    return Reply(
        status=reply.status, headers={**reply.headers, PARENT: found.parent}, body=reply.body
    )
