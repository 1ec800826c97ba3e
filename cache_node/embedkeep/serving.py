"""What every server process here does alike: logs, signals, metrics, health, drain.

What is served lives with its owner; this only runs it. Called by `embedkeep.node` and
`embedkeep.embedder`; `embedkeep.predictor`, which serves nothing, only logs as they do.
"""

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, cast

import grpc
import structlog
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector

from embedkeep.config import Listen, ServerTls
from embedkeep.errors import InvalidConfig
from embedkeep.probing import Probes, serve_metrics
from embedkeep.refusal import Decoding
from embedkeep.tls import server_credentials

MAX_CONNECTION_AGE_MS: Final = 300_000
"""Clients reconnect after five minutes, so that new servers get their share of old clients."""

KEEPALIVE_MS: Final = 20_000
KEEPALIVE_TIMEOUT_MS: Final = 10_000
"""A caller that has vanished without a word is noticed within half a minute, and what it held is
given back: gRPC's own two hours would let dead streams fill the bound on calls."""

COLLECT_EVERY: Final = 10_000
"""Objects more than before, until the collector looks at the newest; Python has 700."""

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
"""Of glibc's mallopt: freed bytes at the heap's end that it keeps, and from what size on memory is
mapped instead. Above any message, twice."""

log = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where and how a process serves; the fields are those of its config."""

    grpc: Listen
    metrics: Listen
    tls: ServerTls | None
    max_message_bytes: int
    announce_file: Path | None
    drain_s: float


class Health:
    """The process's word on whether it can answer, for its services and as a whole ("")."""

    def __init__(self, services: Sequence[str]) -> None:
        self.services = ("", *services)
        self.servicer = health.aio.HealthServicer()
        self.serving = False

    async def set(self, *, serving: bool) -> None:
        """Tell all watchers."""
        self.serving = serving
        status = health_pb2.HealthCheckResponse
        for service in self.services:
            await self.servicer.set(service, status.SERVING if serving else status.NOT_SERVING)


@asynccontextmanager
async def serving(
    endpoint: Endpoint,
    *,
    register: Callable[[grpc.aio.Server], None],
    health: Health,
    registry: CollectorRegistry,
    beside: Mapping[str, int] = MappingProxyType({}),
) -> AsyncIterator[tuple[int, int]]:
    """Listen while the block runs; then take no new calls and let those in flight end.

    Health starts as NOT_SERVING; the owner sets it. Yields the ports of gRPC and metrics, and
    writes them to the announce file.

    Args:
        beside: Ports by name that the process listens on already, to be announced with ours.

    Raises:
        InvalidConfig: A port or an address cannot be bound, or a certificate cannot be read.
    """
    server = grpc.aio.server(
        options=server_options(
            max_message_bytes=endpoint.max_message_bytes, drain_s=endpoint.drain_s
        ),
    )
    register(cast("grpc.aio.Server", Decoding(server)))
    observe_process(registry, asyncio.get_running_loop())
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    reflection.enable_server_reflection(
        [*health.services[1:], health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
         reflection.SERVICE_NAME], server)  # fmt: skip
    await health.set(serving=False)
    # In this order, since a port of gRPC that was bound and never served is not given back.
    probes = Probes(asyncio.get_running_loop(), ready=lambda: health.serving)
    metrics_server, metrics_thread = serve_metrics(endpoint.metrics, registry, probes)
    try:
        ports = (_bind(server, endpoint), metrics_server.server_port)
        await server.start()
        announced = {"grpc": ports[0], "metrics": ports[1], **beside}
        if endpoint.announce_file is not None:
            _write_whole(endpoint.announce_file, json.dumps(announced))
        log.info("listening", **announced, tls=endpoint.tls is not None)
        yield ports
    finally:
        await health.set(serving=False)
        await server.stop(endpoint.drain_s)
        metrics_server.shutdown()
        metrics_server.server_close()
        metrics_thread.join()
        log.info("stopped")


def server_options(*, max_message_bytes: int, drain_s: float) -> list[tuple[str, int]]:
    """How gRPC serves."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_connection_age_ms", MAX_CONNECTION_AGE_MS),
        ("grpc.max_connection_age_grace_ms", int(drain_s * 1000)),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        # A ping that measures bandwidth stands in keepalive's way, and has a minute of its own.
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.so_reuseport", 0),
    ]


def run(main: Callable[[asyncio.Event], Coroutine[None, None, None]], *, process: str) -> None:
    """Run a server process until SIGINT or SIGTERM; a second signal ends it at once.

    Args:
        main: Gets the event that is set by the first signal.
        process: Its name in the logs.
    """
    configure_logs(process)
    keep_freed_memory()

    async def until_signalled() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_signal(number: signal.Signals) -> None:
            if stop.is_set():
                os._exit(128 + number)
            log.info("stopping", signal=number.name)
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal, number)
        await main(stop)

    spare_the_collector()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(until_signalled())


def spare_the_collector() -> None:
    """Never look for garbage among what was imported, and less often among the rest.

    Requests leave hardly any cycles, and what was imported is most of all objects: looking through
    it stops every caller for as long as many calls take.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY)


def keep_freed_memory() -> None:
    """Have glibc keep what one answer frees for the next one; other libcs are left as they are.

    It would give the buffers of a large answer back to the kernel each time, and take them again
    page by page: 16 to 67 page faults a call of 128 texts, and a quarter of its CPU.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for parameter, nbytes in ((_TRIM_THRESHOLD, 16 << 20), (_MMAP_THRESHOLD, 8 << 20)):
            mallopt(parameter, nbytes)


def configure_logs(process: str) -> None:
    """Log to stderr: lines for people on a terminal, JSON elsewhere. Inputs are never logged."""
    terminal = sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            getattr(logging, os.environ.get("EMBEDKEEP_LOG_LEVEL", "INFO").upper(), logging.INFO)
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(process=process)


def observe_process(registry: CollectorRegistry, loop: asyncio.AbstractEventLoop) -> None:
    """Count what a leak would make grow: memory, files (on Linux), and the loop's tasks."""
    ProcessCollector(registry=registry)
    Gauge("embedkeep_tasks", "Tasks of the event loop now.", registry=registry).set_function(
        lambda: len(asyncio.all_tasks(loop))
    )


def _bind(server: grpc.aio.Server, endpoint: Endpoint) -> int:
    address = f"{endpoint.grpc.host}:{endpoint.grpc.port}"
    try:
        if endpoint.tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, server_credentials(endpoint.tls))
    except RuntimeError as error:
        doubt = "" if endpoint.tls is None else " And does the key fit the certificate?"
        raise InvalidConfig(
            f"cannot listen on {address}: is it in use?{doubt}", field="grpc"
        ) from error


def _write_whole(file: Path, text: str) -> None:
    """Readers see the whole file or none."""
    part = file.with_suffix(".part")
    part.write_text(text)
    part.replace(file)
