"""What a node does for its peers: embedkeep.v1.Peers in terms of `cache`.

Whatever this node thinks about whose a key is, it answers itself and asks nobody: that is what
keeps a hop from becoming a round trip. Nothing is counted as a lookup here; the node that a
service has asked does that.
"""

import hmac
import math
import time
from collections.abc import Iterable
from typing import Final

import grpc
import structlog

from embedkeep import views
from embedkeep.config import NodeConfig
from embedkeep.errors import (
    EmbedKeepError,
    InvalidRequest,
    ModelDrift,
    Unauthenticated,
    code_of,
)
from embedkeep.node.admission import Admission, Urgency
from embedkeep.node.cache import Cache
from embedkeep.node.exchange import Request
from embedkeep.node.metrics import Metrics
from embedkeep.node.peers import SHOWN_AS, cluster_of
from embedkeep.node.tenants import Partition, Tenants
from embedkeep.node.trace import Trace, trace_of
from embedkeep.node.trips import Hosted
from embedkeep.node.wire import SOURCES, URGENCIES
from embedkeep.records import encode
from embedkeep.refusal import Context, refuse
from embedkeep.v1 import cache_pb2, peers_pb2, peers_pb2_grpc

BEATS: Final = 5
"""Signs of life in the time after which a peer believes that this node has died."""

log = structlog.stdlib.get_logger()

_SIGN: Final = peers_pb2.CarryReply()


class PeerService(peers_pb2_grpc.PeersServicer):
    """Serves the peers of one node.

    Args:
        token: What the nodes of this cache show one another.
    """

    def __init__(
        self,
        *,
        config: NodeConfig,
        cache: Cache,
        tenants: Tenants,
        metrics: Metrics,
        token: str,
    ) -> None:
        self._beat_s = cluster_of(config).silence_s / BEATS
        self._cache = cache
        self._tenants = {partition.tag: partition for partition in tenants.partitions}
        self._metrics = metrics
        self._token = token.encode()
        self._calls = Admission(
            config.limits.max_concurrent_calls, what="calls of peers", stay=cache.stay
        )

    async def Carry(  # type: ignore[override]  # noqa: N802 - the wire's name; gRPC also takes a coroutine that writes
        self, request: peers_pb2.CarryRequest, context: Context
    ) -> None:
        """See the .proto file."""
        try:
            self._check(context.invocation_metadata() or ())
            carried = peers_pb2.Carried()
            if request.inputs:
                carried = await self._carry(request, context)
            await context.write(peers_pb2.CarryReply(carried=carried))
        except EmbedKeepError as error:
            await refuse(context, error)
        except grpc.aio.BaseError:  # the peer has left while it was written to
            log.debug("a peer has left")

    async def Withdraw(  # noqa: N802 - the wire's name
        self, request: peers_pb2.WithdrawRequest, context: Context
    ) -> peers_pb2.WithdrawResponse:
        """See the .proto file."""
        try:
            self._check(context.invocation_metadata() or ())
            tenant = self._tenant(request.tenant)
        except EmbedKeepError as error:
            await refuse(context, error)
        await self._cache.withdraw(tenant)
        return peers_pb2.WithdrawResponse()

    async def _carry(self, request: peers_pb2.CarryRequest, context: Context) -> peers_pb2.Carried:
        tenant = self._tenant(request.tenant)
        asked = _request(request, trace=trace_of(context.invocation_metadata() or ()))
        space = self._cache.serving()
        if space.fingerprint != request.fingerprint:
            raise ModelDrift(f"this node serves {space.fingerprint}")
        self._cache.learn(tenant, epoch=request.epoch, forgotten=request.forgotten)
        self._calls.enter(tenant.tag, 1, asked.urgency)
        try:
            self._metrics.carried.inc(len(asked.texts))
            patience_s = request.patience_ms / 1000 or math.inf
            hosted = self._cache.host(
                asked, tenant, epoch=request.epoch, until_s=time.perf_counter() + patience_s
            )
            try:
                while not hosted.landed:
                    await context.write(_SIGN)
                    await hosted.wait(self._beat_s)
            finally:
                hosted.leave()
            return _carried(hosted, epoch=tenant.epoch)
        finally:
            self._calls.leave(tenant.tag, 1, asked.urgency)

    def _check(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """The caller is a node of this cache.

        Raises:
            Unauthenticated: It does not show the token.
        """
        shown = next((value for name, value in metadata if name == SHOWN_AS), "")
        told = shown if isinstance(shown, bytes) else shown.encode()
        if not hmac.compare_digest(told, self._token):
            raise Unauthenticated("only the nodes of this cache may call this")

    def _tenant(self, tag: bytes) -> Partition:
        if (tenant := self._tenants.get(tag)) is None:
            raise InvalidRequest("tenant: this node knows none with such a tag")
        return tenant


def _request(request: peers_pb2.CarryRequest, *, trace: Trace | None) -> Request:
    return Request(
        texts=request.inputs,
        prompt=request.prompt,
        view=views.View(),
        urgency=URGENCIES.get(request.priority, Urgency.BACKGROUND),
        store=not request.cache_control.no_store,
        fresh=request.cache_control.no_cache,
        trace=trace,
    )


def _carried(hosted: Hosted, *, epoch: int) -> peers_pb2.Carried:
    records, sources, errors = list[bytes](), list[cache_pb2.Source.ValueType](), []
    for index, (key, (outcome, result)) in enumerate(
        zip(hosted.keys, hosted.outcomes(), strict=True)
    ):
        sources.append(SOURCES[result])
        if isinstance(outcome, EmbedKeepError):
            records.append(b"")
            errors.append(
                cache_pb2.InputError(
                    index=index,
                    code=code_of(outcome),
                    reason=outcome.reason,
                    message=str(outcome),
                )
            )
        else:
            records.append(encode(key, outcome))
    return peers_pb2.Carried(records=records, sources=sources, errors=errors, epoch=epoch)
