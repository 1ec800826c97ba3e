"""A channel that is replaced when what it was made with has changed. For clients and nodes.

gRPC reads a client's certificates once, when a channel is made. A line is a channel with its
stub; calls take the newest one and give it back, and an old one is closed when none has it any
more, so that no call is cut off by a renewal.
"""

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

import grpc

from embedkeep.errors import Unavailable

CLOSED: Final = "the client was closed during the call"

ChannelT = TypeVar("ChannelT")
StubT = TypeVar("StubT")


CredentialsT_co = TypeVar("CredentialsT_co", covariant=True)


class Credentials(Protocol[CredentialsT_co]):
    """Credentials that may change."""

    def newest(self) -> CredentialsT_co:
        """The same object for as long as nothing has changed."""
        ...

    def doubt(self) -> None:
        """A call found nobody: look for a change before the next one."""
        ...


@dataclass(slots=True, eq=False)
class Line(Generic[ChannelT, StubT]):
    """One channel."""

    channel: ChannelT
    stub: StubT
    credentials: grpc.ChannelCredentials | None
    calls: int = 0
    """That have it now."""


class Lines(Generic[ChannelT, StubT]):
    """The channels to one target: the newest, and older ones that calls still have. Thread-safe.

    Args:
        dial: Makes a channel and its stub; None: in plain text. Called first for the first call.
        credentials: None: plain text.
    """

    def __init__(
        self,
        dial: Callable[[grpc.ChannelCredentials | None], tuple[ChannelT, StubT]],
        credentials: Credentials[grpc.ChannelCredentials] | None,
    ) -> None:
        self._dial = dial
        self._credentials = credentials
        self._lock = threading.Lock()
        self._newest: Line[ChannelT, StubT] | None = None
        self._older: list[Line[ChannelT, StubT]] = []
        self.closed = False

    @property
    def dialled(self) -> bool:
        """There is a channel to close."""
        return self._newest is not None

    def take(self) -> Line[ChannelT, StubT]:
        """The newest line, for one call; to be given back.

        Raises:
            Unavailable: They were closed.
        """
        with self._lock:
            if self.closed:
                raise Unavailable(CLOSED)
            wanted = None if self._credentials is None else self._credentials.newest()
            line = self._newest
            if line is None or line.credentials is not wanted:
                if line is not None:
                    self._older.append(line)
                line = self._newest = Line(*self._dial(wanted), wanted)
            line.calls += 1
            return line

    def give_back(self, line: Line[ChannelT, StubT]) -> list[ChannelT]:
        """A call is over. Returns the channels to close: old ones that no call has any more."""
        with self._lock:
            line.calls -= 1
            if not self._older:
                return []
            idle = [line.channel for line in self._older if not line.calls]
            self._older = [line for line in self._older if line.calls]
            return idle

    def doubt(self) -> None:
        """A call found nobody: look whether its credentials are still the newest."""
        if self._credentials is not None:
            self._credentials.doubt()

    def close(self) -> list[ChannelT]:
        """Lend no more. Returns all channels, to close."""
        with self._lock:
            self.closed = True
            lines = [*self._older, *([self._newest] if self._newest else [])]
            self._older, self._newest = [], None
            return [line.channel for line in lines]


AsyncLines = Lines[grpc.aio.Channel, StubT]


@asynccontextmanager
async def lent(lines: AsyncLines[StubT]) -> AsyncIterator[StubT]:
    """The newest stub, for one call.

    Raises:
        Unavailable: They were closed.
    """
    line = lines.take()
    try:
        yield line.stub
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            lines.doubt()
        raise
    finally:
        for channel in lines.give_back(line):
            await channel.close()
