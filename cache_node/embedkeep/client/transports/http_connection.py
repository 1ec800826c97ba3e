"""One connection of HTTP for threads: a socket, and the answers read off it."""

import contextlib
import errno
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from embedkeep.client.transports import pooling
from embedkeep.client.transports.messages import MAX_RECEIVE_BYTES
from embedkeep.client.transports.pooling import Lost
from embedkeep.client.transports.reply import Reply, ReplyReader

PIECE_BYTES: Final = 256 << 10
"""Of a body, sent at once: before each the time is looked at, since TLS starts it anew."""


class Connection:
    """One connection, for one request at a time.

    Args:
        ip: Whom to dial, of either family.
        port: Of TCP.

    Raises:
        OSError: No more files may be open, or this machine lacks the family.
    """

    def __init__(self, ip: str, port: int) -> None:
        family, kind, protocol, _, place = socket.getaddrinfo(
            ip, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )[0]
        self._place: tuple[str | int | bytes, ...] = place
        self._wire = socket.socket(family, kind, protocol)
        self._lock = threading.Lock()
        self._woken = False
        self._reader = ReplyReader(most=MAX_RECEIVE_BYTES)
        self._asked = False

    def dial(self, tls: ssl.SSLContext | None, host: str, left_s: Callable[[], float]) -> None:
        """Connect, once.

        Args:
            host: What the certificate must be for.
            left_s: Raises TimeoutError where nothing is left.

        Raises:
            OSError: Nobody answers, not in time, or not as TLS; or it was woken.
        """
        wire = self._wire
        pooling.prepare(wire)
        wire.settimeout(0)  # so that whoever wakes it finds it connecting, or not yet
        with self._lock:
            self._check_asleep()
            _check(wire.connect_ex(self._place), but=errno.EINPROGRESS)
        connecting = select.poll()
        connecting.register(wire, select.POLLOUT)
        if not connecting.poll(left_s() * 1000):
            raise TimeoutError
        self._check_asleep()
        _check(wire.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        if tls is not None:
            with self._lock:
                self._check_asleep()
                self._wire = secured = tls.wrap_socket(
                    wire, server_hostname=host, do_handshake_on_connect=False
                )
            secured.settimeout(left_s())
            secured.do_handshake()

    def _check_asleep(self) -> None:
        if self._woken:
            raise ConnectionAbortedError("it was given up")

    def ask(self, head: bytes, body: bytes, left_s: Callable[[], float]) -> Reply:
        """Send a request and wait for its answer.

        Args:
            left_s: Raises TimeoutError where nothing is left.

        Raises:
            TimeoutError: It did not come in time.
            Lost: The connection ended before.
            InvalidResponse: It is none of HTTP.
        """
        reader, wire = self._reader, self._wire
        reader.begin()
        try:
            if self._asked and not self._silent():
                raise Lost("it was closed, or said something unasked", begun=False)
            self._asked = True
            sent = self._send(head, body, left_s)
            while True:
                wire.settimeout(left_s())
                if not (count := wire.recv_into(reader.room())):
                    raise Lost("the other side has closed it", begun=reader.begun)
                if (reply := reader.received(count)) is not None:
                    return reply if sent else replace(reply, reusable=False)
        except TimeoutError:
            raise
        except (OSError, ValueError) as error:  # ValueError: how Python says that it was closed
            raise Lost(error, begun=reader.begun) from error

    def _silent(self) -> bool:
        if isinstance(self._wire, ssl.SSLSocket) and self._wire.pending():
            return False
        return pooling.silent(self._wire.fileno())

    def _send(self, head: bytes, body: bytes, left_s: Callable[[], float]) -> bool:
        """Whether all was taken: who refuses a long request may not read it to its end."""
        wire = self._wire
        try:
            wire.settimeout(left_s())
            if len(body) < pooling.SMALL_BYTES:
                wire.sendall(head + body)
                return True
            wire.sendall(head)
            rest = memoryview(body)
            while rest:
                wire.settimeout(left_s())
                rest = rest[wire.send(rest[:PIECE_BYTES]) :]
        except (BrokenPipeError, ConnectionResetError):
            return False  # what it has answered before is read; where it is nothing, that is told
        return True

    def wake(self) -> None:
        """Have whoever dials it or waits for its answer in another thread find it lost, and end it.

        Only who has it closes it: its number may be another connection's at once. And not as TLS
        would shut it down, which goes on in plain text.
        """
        with self._lock, contextlib.suppress(OSError):  # it has ended, or not begun
            self._woken = True
            socket.socket.shutdown(self._wire, socket.SHUT_RDWR)

    def end(self) -> None:
        """Close it."""
        self.wake()
        self._wire.close()

    def leave(self) -> None:
        """Close it here only; the process that this one was forked from has it still."""
        self._wire.close()


def _check(error: int, *, but: int = 0) -> None:
    """Raise what the system calls *error*, unless it is 0 or *but*."""
    if error not in {0, but}:
        raise OSError(error, os.strerror(error))
