"""The node's process: puts the parts together, runs what must run beside requests, and drains."""

import asyncio
import contextlib
import time
from contextlib import AbstractAsyncContextManager

import grpc

from embedkeep.config import NodeConfig, ValkeyTarget
from embedkeep.errors import NotBuilt, Unavailable
from embedkeep.node.agreement import Agreement
from embedkeep.node.cache import Cache
from embedkeep.node.calls import Calls
from embedkeep.node.connection import read_address
from embedkeep.node.embedders import Embedders
from embedkeep.node.http.facades import router
from embedkeep.node.http.server import HttpServer
from embedkeep.node.imports import Importer
from embedkeep.node.metrics import Metrics
from embedkeep.node.service import CacheService
from embedkeep.node.shards import Shards
from embedkeep.node.space import agreement_key
from embedkeep.node.tenants import open_tenants
from embedkeep.node.tier import ValkeyTier
from embedkeep.node.tiers import Tier
from embedkeep.serving import Endpoint, Health, run, serving
from embedkeep.v1 import cache_pb2, cache_pb2_grpc

SERVICE = cache_pb2.DESCRIPTOR.services_by_name["EmbeddingCache"].full_name


def main(config: NodeConfig) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        InvalidConfig: A file, port or certificate that *config* names cannot be used.
    """
    run(lambda stop: serve(config, stop), process="node")


async def serve(config: NodeConfig, stop: asyncio.Event) -> None:
    """Serve until *stop* is set, then drain. Health says SERVING once there is a space to serve."""
    if config.cluster is not None and len(config.cluster.members) > 1:
        raise NotBuilt("cluster.members: several are not built yet; give one")
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
        if config.valkey is not None:
            with contextlib.suppress(Unavailable):  # what is not mounted yet is read later
                read_address(config.valkey)
            cache.tier = tier = open_tier(config, config.valkey, agreement, metrics)
            metrics.breaker_open.labels("valkey").set_function(lambda: tier.left_alone)

        calls = Calls(config=config, cache=cache, tenants=tenants, embedders=embedders)
        service = CacheService(
            config=config,
            cache=cache,
            importer=Importer(cache=cache, config=config, metrics=metrics),
            agreement=agreement,
            calls=calls,
        )
        health = Health([SERVICE])

        def register(server: grpc.aio.Server) -> None:
            cache_pb2_grpc.add_EmbeddingCacheServicer_to_server(service, server)

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
            if cache.tier is not None:
                tasks.append(beside.create_task(cache.tier.run(), name="valkey"))
            try:
                async with (
                    _facades(config, calls, cache) as http,
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
    config: NodeConfig, calls: Calls, cache: Cache
) -> AbstractAsyncContextManager[HttpServer | None]:
    if config.http is None:
        return contextlib.nullcontext()
    return HttpServer(
        config.http,
        router(config, calls, cache),
        tls=config.tls,
        max_body_bytes=config.limits.max_message_bytes,
        drain_s=config.drain_s,
    )


def open_tier(
    config: NodeConfig, target: ValkeyTarget, agreement: Agreement, metrics: Metrics
) -> Tier:
    """The Valkey beside this node, or all of its cluster."""
    poll_s = config.epoch_poll_s
    if config.cluster is None or len(config.cluster.members) == 1:
        return ValkeyTier(target, shared=agreement, metrics=metrics, poll_s=poll_s)
    return Shards(target, config.cluster, shared=agreement, metrics=metrics, poll_s=poll_s)


async def _ready(agreement: Agreement, health: Health) -> None:
    await agreement.adopted.wait()
    await health.set(serving=True)
