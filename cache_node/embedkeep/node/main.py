"""The node's process: puts the parts together, runs what must run beside requests, and drains."""

import asyncio
import contextlib
import time
from contextlib import AbstractAsyncContextManager
from functools import partial

import grpc

from embedkeep.config import NodeConfig
from embedkeep.errors import Unavailable
from embedkeep.keys import peer_token
from embedkeep.node.agreement import Agreement
from embedkeep.node.cache import Cache
from embedkeep.node.calls import Calls
from embedkeep.node.connection import read_address
from embedkeep.node.embedders import Embedders
from embedkeep.node.hosting import PeerService
from embedkeep.node.http.facades import facades
from embedkeep.node.http.server import HttpServer
from embedkeep.node.imports import Importer
from embedkeep.node.metrics import Metrics
from embedkeep.node.peers import Peer, Peers
from embedkeep.node.recorder import forget_kept
from embedkeep.node.service import CacheService
from embedkeep.node.shards import Shards
from embedkeep.node.space import agreement_key
from embedkeep.node.tenants import Tenants, open_tenants, read_secret
from embedkeep.node.tier import ValkeyTier
from embedkeep.node.tiers import Tier
from embedkeep.node.tuned import Tuned
from embedkeep.node.unary import Unary
from embedkeep.node.warming import Warmer
from embedkeep.node.wire import SERVICE
from embedkeep.serving import Endpoint, Health, run, serving
from embedkeep.v1 import cache_pb2_grpc, peers_pb2_grpc


def main(config: NodeConfig) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        InvalidConfig: A file, port or certificate that *config* names cannot be used.
    """
    run(lambda stop: serve(config, stop), process="node")


async def serve(config: NodeConfig, stop: asyncio.Event) -> None:
    """Serve until *stop* is set, then drain. Health says SERVING once there is a space to serve."""
    metrics = Metrics()
    tenants = open_tenants(config)

    def noted(why: str | None) -> None:
        agreement.note_drift(why)

    async with Embedders(config.embedder, on_drift=noted) as embedders:
        cache = Cache(
            tenants=tenants,
            embedders=embedders,
            metrics=metrics,
            config=config,
            clock_ms=lambda: time.time_ns() // 1_000_000,
        )
        agreement = Agreement(
            key=agreement_key(config),
            tenants=tenants,
            on_space=cache.adopt,
            on_epoch=cache.epoch_moved,
        )
        metrics.drift.set_function(lambda: agreement.drifting)
        token = peer_token(read_secret(config)) if config.has_peers else ""
        _connect(config, cache, agreement, metrics, token)

        calls = Calls(config=config, cache=cache, tenants=tenants, embedders=embedders)
        unary = Unary(
            config=config,
            cache=cache,
            importer=Importer(cache=cache, config=config, metrics=metrics),
            agreement=agreement,
            calls=calls,
        )
        service = CacheService(
            unary, calls=calls, max_stream_requests=config.limits.max_stream_requests
        )
        health = Health([SERVICE])

        def register(server: grpc.aio.Server) -> None:
            cache_pb2_grpc.add_EmbeddingCacheServicer_to_server(service, server)
            if cache.peers is not None:
                hosting = PeerService(
                    config=config, cache=cache, tenants=tenants, metrics=metrics, token=token
                )
                peers_pb2_grpc.add_PeersServicer_to_server(hosting, server)

        endpoint = Endpoint(
            grpc=config.grpc,
            metrics=config.metrics,
            tls=config.tls,
            max_message_bytes=config.limits.max_message_bytes,
            announce_file=config.announce_file,
            drain_s=config.drain_s,
        )
        async with asyncio.TaskGroup() as beside:
            tasks = [
                beside.create_task(
                    agreement.follow_embedder(embedders, cache.tier), name="embedder"
                ),
                beside.create_task(tenants.follow(poll_s=config.epoch_poll_s), name="api keys"),
            ]
            if (tier := cache.tier) is not None:
                tasks.append(beside.create_task(tier.run(), name="valkey"))
                kept = (
                    cache.recorder.run(tier)
                    if cache.recorder is not None
                    else forget_kept(tenants, tier, retry_s=config.epoch_poll_s)
                )
                tasks.append(beside.create_task(kept, name="history"))
                warming = _warming(config, cache, tenants, metrics, tier)
                tasks.append(beside.create_task(warming, name="warming"))
            if cache.peers is not None:
                tasks.append(beside.create_task(cache.peers.run(), name="peers"))
            try:
                async with (
                    _facades(config, calls, cache, unary) as http,
                    serving(
                        endpoint,
                        register=register,
                        health=health,
                        registry=metrics.registry,
                        beside={"http": http.port} if http is not None else {},
                    ),
                ):
                    ready = beside.create_task(_ready(agreement, health), name="ready")
                    tasks.append(ready)
                    await stop.wait()
                    ready.cancel()
                    service.drain()
                    if http is not None:
                        http.drain()
            finally:
                await cache.close()
                for task in tasks:
                    task.cancel()


def _facades(
    config: NodeConfig, calls: Calls, cache: Cache, unary: Unary
) -> AbstractAsyncContextManager[HttpServer | None]:
    if config.http is None:
        return contextlib.nullcontext()
    return HttpServer(
        config.http,
        facades(config, calls=calls, cache=cache, unary=unary),
        tls=config.tls,
        max_body_bytes=config.limits.max_message_bytes,
        drain_s=config.drain_s,
    )


def _connect(
    config: NodeConfig, cache: Cache, agreement: Agreement, metrics: Metrics, token: str
) -> None:
    """Give *cache* the Valkey beside this node, or all of its cluster and the nodes beside them."""
    if config.valkey is None:
        return
    with contextlib.suppress(Unavailable):  # what is not mounted yet is read later
        read_address(config.valkey)
    poll_s = config.epoch_poll_s
    tier: Tier
    peers = None
    if config.cluster is None or not config.has_peers:
        tier = ValkeyTier(config.valkey, shared=agreement, metrics=metrics, poll_s=poll_s)
    else:
        tier = shards = Shards(
            config.valkey, config.cluster, shared=agreement, metrics=metrics, poll_s=poll_s
        )
        peers = Peers(
            config.cluster,
            owner=shards.owner,
            dial=partial(Peer, config=config, token=token, metrics=metrics),
        )
        metrics.breaker_open.labels("peers").set_function(lambda: peers.left_alone)
    metrics.breaker_open.labels("valkey").set_function(lambda: tier.left_alone)
    cache.connect(tier, peers)


async def _warming(
    config: NodeConfig, cache: Cache, tenants: Tenants, metrics: Metrics, tier: Tier
) -> None:
    """Carry plans out, count what that saves, and follow what is tuned, until cancelled."""
    if (warmup := config.warmup) is None or cache.credits is None:
        return
    tuned = Tuned(config.tuned_file, {"warmup_budget": warmup.budget})
    warmer = Warmer(
        warmup,
        prompts=config.model.prompts.values(),
        cache=cache,
        tenants=tenants,
        tuned=tuned,
        metrics=metrics,
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(tuned.follow(poll_s=config.epoch_poll_s), name="tuned values")
        tasks.create_task(warmer.run(tier), name="warm")
        tasks.create_task(cache.credits.run(tier), name="first hits")


async def _ready(agreement: Agreement, health: Health) -> None:
    await agreement.adopted.wait()
    await health.set(serving=True)
