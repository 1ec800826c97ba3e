"""HTTP for threads: connections that are kept, one for each request under way."""

import os
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Final

from embedkeep.channels import CLOSED, Credentials
from embedkeep.client.exchange import Metadata, Request, Response
from embedkeep.client.transports import pooling
from embedkeep.client.transports.http_connection import Connection
from embedkeep.client.transports.messages import Asking, answer_of
from embedkeep.client.transports.origins import Origin
from embedkeep.client.transports.pooling import Kept, Lost, Pool
from embedkeep.client.transports.rotation import Address, Rotation
from embedkeep.errors import InvalidResponse, Unavailable

MAX_THREADS: Final = 256
"""Of all calls that have several requests under way. Others need no thread of their own, and where
all are taken a call sends its requests itself, one after the other."""
Clock = Callable[[], float]


_Kept = Kept[Connection]


class _Flight:
    """A request under way in another thread."""

    def __init__(self) -> None:
        self.answer: Future[Response] | None = None
        self._lock = threading.Lock()
        self._kept: _Kept | None = None
        self._cancelled = False

    def result(self) -> Response:
        """Once it has landed."""
        assert self.answer is not None  # noqa: S101  # set before it is handed out
        return self.answer.result()

    def cancel(self) -> None:
        """Let it end soon; nobody wants its answer."""
        with self._lock:
            self._cancelled = True
            if self._kept is not None:
                self._kept.connection.wake()

    def holds(self, kept: _Kept | None) -> None:
        """It goes over this connection now.

        Raises:
            Unavailable: It was cancelled.
        """
        with self._lock:
            self._kept = kept
            if self._cancelled and kept is not None:
                raise Unavailable("the request was given up")


class HttpTransport:
    """Sends requests over HTTP/1.1. Thread-safe; survives a fork, in which the child dials anew.

    Args:
        target: For errors.
        origins: Where nodes are.
        contexts: Certificates. None: plain text.
        server_name: In the node's certificate. None: the host in the target.
    """

    def __init__(
        self,
        target: str,
        origins: tuple[Origin, ...],
        contexts: Credentials[ssl.SSLContext] | None,
        *,
        server_name: str | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._target = target
        self._contexts = contexts
        self._server_name = server_name
        self._clock = clock
        self._askings = {origin: Asking(origin) for origin in origins}
        self._origins = origins
        self.closed = False
        self._reset()
        _TRANSPORTS.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._rotation = Rotation(self._origins)
        self._pool: Pool[Connection] = Pool()
        self._busy: set[_Kept] = set()
        self._threads: ThreadPoolExecutor | None = None
        self._flights = 0
        self._looked_up = threading.Condition(self._lock)
        """What a name stands for is known better, or nobody waits for it any more."""

    @property
    def dialled(self) -> bool:
        """There is something to close."""
        return not self.closed and (bool(self._busy) or not self._pool.empty)

    def call(self, request: Request, metadata: Metadata, *, timeout_s: float) -> Response:
        """Send *request* and wait for its answer.

        Raises:
            EmbedKeepError: There is none.
        """
        return self._call(request, metadata, self._ends_at(timeout_s), None)

    def _ends_at(self, timeout_s: float) -> float:
        return self._clock() + min(timeout_s, pooling.LONGEST_S)

    def _left_s(self, ends_at: float) -> float:
        if (left_s := ends_at - self._clock()) <= 0:
            raise TimeoutError
        return left_s

    def _call(
        self, request: Request, metadata: Metadata, ends_at: float, flight: _Flight | None
    ) -> Response:
        body = request.SerializeToString()
        left_s = partial(self._left_s, ends_at)

        while True:
            kept = self._take(ends_at)
            reusable = False
            try:
                if flight is not None:
                    flight.holds(kept)
                head = kept.asking.head(request, metadata, timeout_s=left_s(), length=len(body))
                reply = kept.connection.ask(head, body, left_s)
                reusable = reply.reusable
            except TimeoutError as error:
                raise pooling.late(self._target) from error
            except InvalidResponse as error:
                raise pooling.unread(self._target, error) from error
            except Lost as error:
                if self.closed:
                    raise Unavailable(CLOSED) from error
                if not kept.used or error.begun:
                    self._failed(kept.address)
                    raise pooling.lost(self._target, error) from error
                # It was closed while nobody used it, and its like with it: that is no failure.
                with self._lock:
                    self._pool.drop(kept.address)
            else:
                return answer_of(reply, request, target=self._target)
            finally:
                if flight is not None:
                    flight.holds(None)
                self._give_back(kept, reusable=reusable)

    def begin(
        self,
        request: Request,
        metadata: Metadata,
        *,
        timeout_s: float,
        landed: Callable[[], None],
    ) -> _Flight:
        """Send *request* in another thread.

        Args:
            landed: Called, in any thread, once the answer or the error is there.
        """
        ends_at = self._ends_at(timeout_s)
        flight = _Flight()
        flight.answer = self._submitted(partial(self._call, request, metadata, ends_at, flight))
        flight.answer.add_done_callback(lambda _: landed())
        return flight

    def _submitted(self, call: Callable[[], Response]) -> "Future[Response]":
        with self._lock:
            if self.closed:
                raise Unavailable(CLOSED)
            if self._threads is None:
                self._threads = ThreadPoolExecutor(MAX_THREADS, "embedkeep-http")
            threads = self._threads if self._flights < MAX_THREADS else None
            self._flights += 1
        answer: Future[Response] = Future()

        def fly() -> None:
            try:
                answer.set_result(call())
            except BaseException as error:  # noqa: BLE001  # it is raised where it is waited for
                answer.set_exception(error)
            finally:
                with self._lock:
                    self._flights -= 1

        if threads is None:  # in a queue its time would run out
            fly()
            return answer
        try:
            threads.submit(fly)
        except RuntimeError as error:  # they were closed just now, or Python ends
            with self._lock:
                self._flights -= 1
            if self.closed:
                raise Unavailable(CLOSED) from error
            raise
        return answer

    def close(self) -> None:
        """Close all connections; calls under way raise Unavailable."""
        with self._lock:
            self.closed = True
            self._pool.drop_all()
            idle, busy = self._pool.over(), list(self._busy)
            threads = self._threads
            self._looked_up.notify_all()
        for kept in idle:
            kept.connection.end()
        for kept in busy:
            kept.connection.wake()
        if threads is not None:
            threads.shutdown(wait=False)

    def _take(self, ends_at: float) -> _Kept:
        """A connection to the next node that has one or can be dialled."""
        why: object = "its name cannot be looked up"
        context = None if self._contexts is None else self._contexts.newest()
        for address in self._addresses(ends_at):
            with self._lock:
                if self.closed:
                    raise Unavailable(CLOSED)
                kept = self._pool.take(address, context, self._clock())
                if kept is not None:
                    self._busy.add(kept)
                    return kept
            try:
                return self._dial(address, context, ends_at)
            except OSError as error:
                if self.closed:
                    raise Unavailable(CLOSED) from error
                self._failed(address)
                why = pooling.undialled(address, error)
                if self._clock() >= ends_at:
                    raise pooling.late(self._target) from error
        raise pooling.unreachable(self._target, why)

    def _dial(self, address: Address, context: ssl.SSLContext | None, ends_at: float) -> _Kept:
        now = self._clock()
        kept = Kept(
            connection=Connection(address.ip, address.origin.port),
            address=address,
            asking=self._askings[address.origin],
            context=context,
            opened_at=now,
            idle_since=now,
        )
        with self._lock:
            if not (closed := self.closed):
                self._busy.add(kept)  # so that it is woken where the client is closed
        if closed:
            kept.connection.end()
            raise Unavailable(CLOSED)
        try:
            kept.connection.dial(
                context,
                self._server_name or address.origin.host,
                partial(self._left_s, min(ends_at, now + pooling.DIAL_S)),
            )
        except BaseException:
            self._give_back(kept, reusable=False)
            raise
        with self._lock:
            self._rotation.worked(address)
        return kept

    def _addresses(self, ends_at: float) -> list[Address]:
        """In the order in which they are to be tried. The first call waits for a name of theirs."""
        with self._lock:
            while True:
                now = self._clock()
                for origin in self._rotation.due(now):
                    self._begin_look_up(origin)
                if (order := self._rotation.order(now)) or not self._rotation.looking:
                    return order
                if self.closed:
                    raise Unavailable(CLOSED)
                if not self._looked_up.wait(ends_at - now):
                    raise pooling.late(self._target)

    def _begin_look_up(self, origin: Origin) -> None:
        """In a thread whose wait for a name server nothing can cut short."""
        thread = threading.Thread(
            target=self._look_up, args=(origin,), name="embedkeep-names", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # Python ends, or has no thread for it: what was known may hold
            self._rotation.unknown(origin, self._clock())

    def _look_up(self, origin: Origin) -> None:
        try:
            found = socket.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # UnicodeError: no name server could be asked for it
            found = []
        with self._lock:
            if found:
                self._rotation.found(origin, [str(each[4][0]) for each in found])
            else:
                self._rotation.unknown(origin, self._clock())
            self._looked_up.notify_all()

    def _failed(self, address: Address) -> None:
        with self._lock:
            self._rotation.failed(address, self._clock())
            self._pool.drop(address)
        if self._contexts is not None:
            self._contexts.doubt()

    def _give_back(self, kept: _Kept, *, reusable: bool) -> None:
        with self._lock:
            self._busy.discard(kept)
            if reusable and not self.closed:
                self._pool.put(kept, self._clock())
                over = self._pool.over()
            else:
                over = [*self._pool.over(), kept]
        for each in over:
            each.connection.end()

    def forked(self) -> None:
        """What the parent has open is the parent's, and its threads are not here."""
        self._pool.drop_all()
        for kept in (*self._pool.over(), *self._busy):
            kept.connection.leave()
        self._reset()


_TRANSPORTS: Final[weakref.WeakSet[HttpTransport]] = weakref.WeakSet()
"""All there are."""


def _forked() -> None:
    for transport in list(_TRANSPORTS):
        transport.forked()


os.register_at_fork(after_in_child=_forked)
