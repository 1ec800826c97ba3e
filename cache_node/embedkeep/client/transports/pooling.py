"""Connections that are kept between requests; what both HTTP transports say, and their bounds."""

import select
import socket
import ssl
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from embedkeep.client.transports.messages import Asking
from embedkeep.client.transports.rotation import Address
from embedkeep.errors import DeadlineExceeded, InvalidResponse, Unavailable

IDLE_S: Final = 50.0
"""How long a connection is kept that nobody uses: shorter than what stands between client and node
keeps one, which is often a minute, so that hardly any request is sent into a closed one."""
AGE_S: Final = 300.0
"""How long one is used: how late a new certificate is shown, and a new node gets its share."""
DIAL_S: Final = 3.0
"""How long one address is tried: a lost packet is sent again after 1 s."""
SWEEP_S: Final = 1.0
"""How often connections that idle too long are looked for."""
SMALL_BYTES: Final = 64 << 10
"""A body below it is copied behind its head, to go out in one piece."""

_KEEPALIVE: Final = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 2))
"""A node that vanished without a word is noticed within 40 s, also by a request that waits long."""

LONGEST_S: Final = 24 * 3600.0
"""Of one request: a socket cannot be told to wait for longer than some weeks."""

_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL"})
"""How versions of OpenSSL call what is no TLS; the same that urllib3 looks for."""

ConnectionT = TypeVar("ConnectionT")


class Lost(Exception):  # it ends no call by itself
    """A connection ended.

    Args:
        begun: Something of the answer had come.
    """

    def __init__(self, why: object, *, begun: bool) -> None:
        super().__init__(str(why))
        self.begun = begun


@dataclass(slots=True, eq=False, kw_only=True)
class Kept(Generic[ConnectionT]):
    """A connection."""

    connection: ConnectionT
    address: Address
    asking: Asking
    context: object
    """Made with these certificates."""
    opened_at: float
    idle_since: float
    used: bool = False
    """It has answered before, so the node may have closed it since."""


class Pool(Generic[ConnectionT]):
    """Connections that nobody uses now. Not thread-safe.

    They are looked through when one comes back. A client that makes no more calls keeps its last
    ones until the node closes them (after 630 s) or it is closed itself: a thread or a task that
    waits for that would cost more than what are at most as many as calls were under way at once.
    httpx and urllib3 do the same.
    """

    def __init__(self) -> None:
        self._idle: dict[Address, list[Kept[ConnectionT]]] = {}
        self._over: list[Kept[ConnectionT]] = []
        self._swept_at = float("-inf")

    def take(self, address: Address, context: object, now: float) -> Kept[ConnectionT] | None:
        """The one that was used last; None: a new one is to be made."""
        idle = self._idle.get(address)
        while idle:
            kept = idle.pop()
            if (
                kept.context is context
                and now - kept.idle_since < IDLE_S
                and now - kept.opened_at < AGE_S
            ):
                return kept
            self._over.append(kept)
        return None

    def put(self, kept: Kept[ConnectionT], now: float) -> None:
        """It has answered."""
        kept.used, kept.idle_since = True, now
        if now - self._swept_at >= SWEEP_S:
            self._swept_at = now
            self._sweep(now)
        self._idle.setdefault(kept.address, []).append(kept)

    def drop(self, address: Address) -> None:
        """None of that address can be trusted any more."""
        self._over += self._idle.pop(address, [])

    def drop_all(self) -> None:
        """Keep none."""
        for address in list(self._idle):
            self.drop(address)

    def over(self) -> list[Kept[ConnectionT]]:
        """Those to close now; each is given out once."""
        over, self._over = self._over, []
        return over

    def _sweep(self, now: float) -> None:
        """Of all addresses: one that its name no longer stands for is never asked for again."""
        for address, idle in list(self._idle.items()):
            while idle and now - idle[0].idle_since >= IDLE_S:
                self._over.append(idle.pop(0))
            if not idle:
                del self._idle[address]

    @property
    def empty(self) -> bool:
        """There is nothing to close."""
        return not any(self._idle.values())


def prepare(wire: socket.socket) -> None:
    """Have small requests leave at once, and a silent node noticed."""
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if (option := getattr(socket, name, None)) is not None:  # macOS lacks some
            wire.setsockopt(socket.IPPROTO_TCP, option, value)


def silent(wire: int) -> bool:
    """Nothing waits to be read from this file descriptor, not even its end.

    What does before a request is sent answers none, or something else.
    """
    poll = select.poll()
    poll.register(wire, select.POLLIN)
    return not poll.poll(0)


def late(target: str) -> DeadlineExceeded:
    """No answer in time."""
    return DeadlineExceeded(f"{target}: no answer within the call's time")


def undialled(address: Address, error: OSError) -> str:
    """Why *address* could not be dialled."""
    said = str(error)
    if isinstance(error, TimeoutError):
        said = f"it did not answer within {DIAL_S:g} s"
    elif isinstance(error, ssl.SSLError) and error.reason in _NO_TLS:
        said = "the other side does not speak TLS: write http://"
    return f"{address.ip}:{address.origin.port}: {said}"


def unreachable(target: str, why: object) -> Unavailable:
    """No address could be dialled."""
    return Unavailable(f"{target}: no node can be reached: {why}")


def lost(target: str, why: object) -> Unavailable:
    """The connection ended before the answer was there."""
    return Unavailable(f"{target}: the connection was lost: {why}")


def unread(target: str, why: object) -> InvalidResponse:
    """What came is no answer."""
    return InvalidResponse(f"{target}: {why}")
