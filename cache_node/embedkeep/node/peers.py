"""The way to the other nodes of a cache: who owns a missing key, and one hop to it.

A peer is used while it is known to answer: it is greeted every second, and one that does not
answer, or no longer, is left alone for a while. So an owner that is gone costs its callers a few
short waits in all, and then nothing.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import grpc
import structlog

from embedkeep import tls
from embedkeep.channels import AsyncLines, Lines, lent
from embedkeep.config import Cluster, Member, NodeConfig
from embedkeep.errors import REASON_KEY, EmbedKeepError, Unavailable, from_call
from embedkeep.keys import Key
from embedkeep.node.breaker import Breaker
from embedkeep.node.metrics import Hop, Metrics
from embedkeep.node.roundtrip import RoundTrip
from embedkeep.node.trace import Trace
from embedkeep.v1 import peers_pb2, peers_pb2_grpc

SHOWN_AS: Final = "embedkeep-peer"
"""Metadata: the nodes' token."""
GREET_S: Final = 1.0
"""Between two greetings of a peer that answers."""
PAUSE_S: Final = 0.5
"""First pause after a failure; it doubles up to 16 times this."""
WITHDRAW_S: Final = 3.0
"""Longest wait until a peer that answers has nothing on its way: a little more than its Valkeys may
take to answer it."""
LOOKS: Final = 6
"""Turns of the loop that a reply may need from the socket to its reader."""

_OPTIONS: Final[list[tuple[str, int | str]]] = [
    # A restarted peer is found again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
]

_WITHOUT_WORDS: Final = (
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # a message that gRPC finds too large
)
"""Failures of one call, of which gRPC itself tells: they say nothing of the peer."""

Call = grpc.aio.UnaryStreamCall[peers_pb2.CarryRequest, peers_pb2.CarryReply]

log = structlog.stdlib.get_logger()


class Peer:
    """One other node. Left alone until it was greeted.

    Args:
        member: Which.
        config: How peers are reached, and how long is waited for them. A call lives no longer than
            a computation, however often the peer says that it works.
        token: What the nodes of this cache show one another.
        metrics: Where calls are counted.
    """

    def __init__(
        self,
        member: Member,
        *,
        config: NodeConfig,
        token: str,
        metrics: Metrics,
    ) -> None:
        cluster = cluster_of(config)
        self.name: Final = member.name
        self._first_sign_s = cluster.first_sign_s
        self._silence_s = cluster.silence_s
        self._metadata = ((SHOWN_AS, token),)
        self._timeout_s = config.embedder.timeout_s
        self._metrics = metrics
        self._breaker = Breaker(pause_s=PAUSE_S)
        self._way: RoundTrip | None = None
        """None: it was never greeted."""
        self._lines: AsyncLines[peers_pb2_grpc.PeersAsyncStub] = Lines(
            partial(_dial, member.address, cluster, config.limits.max_message_bytes),
            tls.FollowedCredentials(cluster.tls, tls.channel_credentials) if cluster.tls else None,
        )

    @property
    def open(self) -> bool:
        """It answered when it was last heard."""
        return self._breaker.closed

    async def carry(
        self, request: peers_pb2.CarryRequest, *, trace: Trace | None = None
    ) -> peers_pb2.Carried:
        """Have the peer answer.

        Raises:
            Unavailable: It did not take the work in time, fell silent, or is gone.
            EmbedKeepError: It refuses.
        """
        began = time.monotonic()
        try:
            carried = await self._carry(request, self._patience_s(), trace)
        except _Silent as error:
            late = error.after_signs == 0
            # Where other calls have shut it already, this one must not lengthen the pause.
            if (breaker := self._breaker).closed:
                now = time.monotonic()
                self._turn(breaker.timeout(now, began=began) if late else breaker.open(now), error)
            self._metrics.hops[Hop.LATE if late else Hop.SILENT].inc()
            raise
        except _Unanswered:
            self._metrics.hops[Hop.UNANSWERED].inc()
            raise
        except grpc.aio.AioRpcError as error:
            raise self._failed(error) from error
        except asyncio.CancelledError:
            self._metrics.hops[Hop.LEFT].inc()
            raise
        self._breaker = self._breaker.success()
        self._metrics.hops[Hop.ANSWERED].inc()
        return carried

    async def withdraw(self, request: peers_pb2.WithdrawRequest) -> None:
        """Have it keep nothing that is on its way; one that cannot be told keeps what it does."""
        timeout_s = WITHDRAW_S if self.open else self._silence_s
        with contextlib.suppress(grpc.aio.AioRpcError, Unavailable):
            async with lent(self._lines) as stub:
                await stub.Withdraw(request, metadata=self._metadata, timeout=timeout_s)

    async def follow(self) -> None:
        """Greet the peer again and again until cancelled."""
        while True:
            await self._greet()
            await asyncio.sleep(GREET_S if self.open else 0)
            if not self.open:
                await asyncio.sleep(max(0.0, self._breaker.retry_at - time.monotonic()))

    async def close(self) -> None:
        """Hang up."""
        for channel in self._lines.close():
            await channel.close()

    async def _greet(self) -> None:
        try:
            if not self.open:
                await self._round_trip_s()  # may have had to connect, which says nothing of the way
            took_s = await self._round_trip_s()
        except (grpc.aio.AioRpcError, Unavailable) as error:
            self._turn(self._breaker.open(time.monotonic()), error)
            return
        if self.open and self._way is not None:
            self._way = self._way.seen(took_s)
        else:
            self._way = RoundTrip.first(took_s)
            self._turn(self._breaker.close(), None)

    async def _round_trip_s(self) -> float:
        began_s = time.monotonic()
        await self._carry(peers_pb2.CarryRequest(), self._silence_s)
        return time.monotonic() - began_s

    def _patience_s(self) -> float:
        """How long to wait for the first sign."""
        if self._way is None:
            return self._first_sign_s
        return self._way.patience_s(least_s=self._first_sign_s, most_s=self._silence_s)

    async def _carry(
        self,
        request: peers_pb2.CarryRequest,
        first_sign_s: float,
        trace: Trace | None = None,
    ) -> peers_pb2.Carried:
        traced = () if trace is None else trace.metadata
        async with lent(self._lines) as stub:
            call = stub.Carry(request, metadata=(*self._metadata, *traced), timeout=self._timeout_s)
            try:
                return await self._listen(call, first_sign_s)
            finally:
                call.cancel()

    async def _listen(self, call: Call, first_sign_s: float) -> peers_pb2.Carried:
        """What the peer answers, as long as it gives signs of life."""
        signs, within_s = 0, first_sign_s
        while True:
            try:
                reply = await _next(call, within_s)
            except TimeoutError as error:
                raise _Silent(self.name, signs, within_s) from error
            if reply is None:
                raise _Unanswered(f"node {self.name} ended the call without an answer")
            if reply.HasField("carried"):
                return reply.carried
            signs, within_s = signs + 1, self._silence_s

    def _failed(self, error: grpc.aio.AioRpcError) -> EmbedKeepError:
        """A failed call, counted: a refusal in words shows that the peer lives."""
        trailers = dict(error.trailing_metadata() or ())
        message = f"node {self.name}: {error.details() or error.code().name}"
        if REASON_KEY in trailers or error.code() in _WITHOUT_WORDS:
            self._metrics.hops[Hop.REFUSED].inc()
            return from_call(error.code(), trailers, message)
        self._metrics.hops[Hop.LOST].inc()
        if self.open:
            self._turn(self._breaker.open(time.monotonic()), error)
        return Unavailable(message)

    def _turn(self, breaker: Breaker, why: Exception | None) -> None:
        if breaker.closed != self._breaker.closed:
            said = why.details() if isinstance(why, grpc.aio.AioRpcError) else why
            log.info("peer", name=self.name, open=breaker.closed, why=str(said) if said else None)
        self._breaker = breaker


class Peers:
    """All other nodes of a cache.

    Args:
        cluster: Who they are.
        owner: Name of the member beside the Valkey that holds a key, where that is known.
        dial: Makes the way to one of them.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        owner: Callable[[Key], str | None],
        dial: Callable[[Member], Peer],
    ) -> None:
        self._owner = owner
        self._peers = {
            member.name: dial(member) for member in cluster.members if member.name != cluster.name
        }

    @property
    def left_alone(self) -> int:
        """How many are not asked now."""
        return sum(not peer.open for peer in self._peers.values())

    def owner(self, key: Key) -> Peer | None:
        """Whom to ask for *key*. None: this node is the owner, or the owner cannot be asked."""
        peer = self._peers.get(self._owner(key) or "")
        return peer if peer is not None and peer.open else None

    async def withdraw(self, tag: bytes) -> None:
        """Have all that can be reached keep nothing of a tenant's that is on its way there.

        Those left alone are told too: one that was only late is at work.
        """
        request = peers_pb2.WithdrawRequest(tenant=tag)
        await asyncio.gather(*(peer.withdraw(request) for peer in self._peers.values()))

    async def run(self) -> None:
        """Keep in touch with all until cancelled; then hang up."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, peer in self._peers.items():
                    tasks.create_task(peer.follow(), name=f"peer {name}")
        finally:
            for peer in self._peers.values():
                await peer.close()


def cluster_of(config: NodeConfig) -> Cluster:
    """Whom *config* names beside this node."""
    assert config.cluster is not None  # noqa: S101 - else there are no peers to ask for
    return config.cluster


class _Unanswered(Unavailable):
    """A peer ended a call in good order, and without an answer."""


class _Silent(Unavailable):
    """A peer did not say in time that it has taken the work, or that it goes on.

    Args:
        after_signs: How often it had said so.
    """

    def __init__(self, name: str, after_signs: int, within_s: float) -> None:
        super().__init__(f"node {name} gave no sign of life for {within_s:g} s")
        self.after_signs = after_signs


async def _next(call: Call, within_s: float) -> peers_pb2.CarryReply | None:
    """The next reply; None: there is none. What came while this process was busy is in time.

    Raises:
        TimeoutError: Nothing came.
        AioRpcError: The call has failed.
    """
    reading = asyncio.ensure_future(call.read())
    try:
        await asyncio.wait({reading}, timeout=within_s)
        for _ in range(LOOKS):
            if reading.done():
                break
            await asyncio.sleep(0)
        if not reading.done():
            raise TimeoutError
        reply = reading.result()
        return reply if isinstance(reply, peers_pb2.CarryReply) else None
    finally:
        reading.cancel()


def _dial(
    address: str,
    cluster: Cluster,
    max_message_bytes: int,
    trusted: grpc.ChannelCredentials | None,
) -> "tuple[grpc.aio.Channel, peers_pb2_grpc.PeersAsyncStub]":  # a name for types only
    options = [
        *_OPTIONS,
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        *tls.channel_options(cluster.tls),
    ]
    channel = (
        grpc.aio.insecure_channel(address, options)
        if trusted is None
        else grpc.aio.secure_channel(address, trusted, options)
    )
    return channel, peers_pb2_grpc.PeersStub(channel)
