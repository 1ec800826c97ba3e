"""`embedkeep operator`, the process: its options, its Lease, its health, its end."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import click
import structlog
from aiohttp import web
from prometheus_client import start_http_server

from embedkeep.errors import InvalidConfig, Unavailable
from embedkeep.serving import configure_logs
from embedkeep_operator.kubernetes.failures import ApiFailed
from embedkeep_operator.kubernetes.kube import Cache, Kube, KubeLease, connected
from embedkeep_operator.kubernetes.leadership import Leadership, utc_now
from embedkeep_operator.kubernetes.metrics import OperatorMetrics
from embedkeep_operator.kubernetes.operating import EVERYWHERE, Operator
from embedkeep_operator.kubernetes.settings import IMAGES, PREFIX, Settings, prometheus_urls
from embedkeep_operator.resources import Images

_log = structlog.get_logger()

CRD_S: Final = 5.0
"""Between two looks for the EmbeddingCache kind, where the cluster lacks it, seconds."""


class LeaseLost(Unavailable):
    """Another operator may work now; this process must end, and may start again."""

    reason = "LeaseLost"


@dataclass(slots=True)
class Health:
    """What the kubelet asks for."""

    operator: Operator | None = field(default=None)
    """None: another holds the Lease, or the kind is not there yet."""

    async def live(self, _: web.Request) -> web.Response:
        """Alive, unless it must be started again."""
        deaf = self.operator.deaf if self.operator is not None else None
        return web.Response(status=503 if deaf else 200, text=f"{deaf or 'ok'}\n")

    async def ready(self, _: web.Request) -> web.Response:
        """Up; a standby too, else a rollout with one would never end."""
        return web.Response(text="leading\n" if self.operator is not None else "standing by\n")


async def operate(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        LeaseLost: Another operator may work now.
        InvalidConfig: There is no cluster, or a port is taken.
    """
    metrics, health = OperatorMetrics(), Health()
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    with _metrics_served(settings, metrics):
        async with _health_served(settings, health), connected() as client:
            kube = Kube(client, requests=metrics, instance=settings.instance)
            lease = KubeLease(kube, name=settings.lease, namespace=settings.namespace)
            leadership = Leadership(lease, me=settings.instance, clock=loop.time, now=utc_now)
            leading = asyncio.create_task(_lead(kube, leadership, settings, metrics, health))
            stopping = asyncio.create_task(stopped.wait())
            try:
                await asyncio.wait((leading, stopping), return_when=asyncio.FIRST_COMPLETED)
                if leading.done():
                    leading.result()
            finally:
                leading.cancel()
                stopping.cancel()
                await asyncio.gather(leading, stopping, return_exceptions=True)
                metrics.leading.set(0)
                await leadership.give_back()


async def _lead(
    kube: Kube,
    leadership: Leadership,
    settings: Settings,
    metrics: OperatorMetrics,
    health: Health,
) -> None:
    """Wait for the kind and for the Lease, then work as long as it is ours."""
    await _has_kind(kube, settings)
    await leadership.acquire()
    metrics.leading.set(1)
    operator = health.operator = Operator(kube, settings, metrics)
    working = asyncio.create_task(operator.run(), name="work")
    keeping = asyncio.create_task(leadership.keep(), name="lease")
    try:
        await asyncio.wait((working, keeping), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        raise LeaseLost("the Lease is another's now, or could not be renewed in time")
    finally:
        working.cancel()
        keeping.cancel()
        await asyncio.gather(working, keeping, return_exceptions=True)


async def _has_kind(kube: Kube, settings: Settings) -> None:
    namespace = settings.namespaces[0] if settings.namespaces else EVERYWHERE
    while True:
        try:
            if await kube.has(Cache, namespace):
                return
            _log.warning("the cluster has no EmbeddingCache kind: apply crds/", again_s=CRD_S)
        except ApiFailed as error:
            _log.warning("the cluster cannot be asked", error=str(error), again_s=CRD_S)
        await asyncio.sleep(CRD_S)


@contextlib.contextmanager
def _metrics_served(settings: Settings, metrics: OperatorMetrics):  # type: ignore[no-untyped-def]  # noqa: ANN202  # its types are wsgiref's
    try:
        server, thread = start_http_server(settings.metrics_port, registry=metrics.registry)
    except OSError as error:
        raise InvalidConfig(
            f"cannot listen on port {settings.metrics_port}: {error.strerror}",
            field="--metrics-port",
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@asynccontextmanager
async def _health_served(settings: Settings, health: Health) -> AsyncIterator[None]:
    app = web.Application()
    app.add_routes([web.get("/livez", health.live), web.get("/readyz", health.ready)])
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await _listen(runner, settings.health_port)
        yield
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, port: int) -> None:
    try:
        await web.TCPSite(runner, "0.0.0.0", port).start()  # noqa: S104  # the kubelet comes from outside
    except OSError as error:
        raise InvalidConfig(
            f"cannot listen on port {port}: {error.strerror}", field="--health-port"
        ) from error


_DEFAULT: Final = Settings()


@click.command(
    context_settings={"auto_envvar_prefix": PREFIX},
    epilog="\b\nExample, with the rights of who runs it, on the cluster that kubectl talks to:\n"
    "  embedkeep operator --namespace search --lease-namespace search",
)
@click.option(
    "--namespace",
    "namespaces",
    multiple=True,
    metavar="NAME",
    help="Whose resources to look after; repeatable. None: all of the cluster's.",
)
@click.option(
    "--lease-namespace",
    default=_DEFAULT.namespace,
    show_default=True,
    metavar="NAME",
    envvar="POD_NAMESPACE",
    help="Where it runs, and keeps its Lease.",
)
@click.option(
    "--lease-name",
    default=_DEFAULT.lease,
    show_default=True,
    metavar="NAME",
    help="Operators that want the same Lease work one at a time.",
)
@click.option(
    "--image-node",
    default=IMAGES.node,
    show_default=True,
    metavar="IMAGE",
    help="Of nodes and predictors, where a resource names none.",
)
@click.option(
    "--image-embedder",
    default=IMAGES.embedder,
    show_default=True,
    metavar="IMAGE",
    help="Of embedders with backend torch, where a resource names none.",
)
@click.option(
    "--image-embedder-cpu",
    default=IMAGES.embedder_cpu,
    show_default=True,
    metavar="IMAGE",
    help="The same with backend onnx.",
)
@click.option(
    "--image-valkey",
    default=IMAGES.valkey,
    show_default=True,
    metavar="IMAGE",
    help="Of Valkeys, where a resource names none.",
)
@click.option(
    "--image-pull-secret",
    "pull_secrets",
    multiple=True,
    metavar="NAME",
    help="Secret with registry credentials, in each resource's namespace; repeatable.",
)
@click.option(
    "--prometheus",
    multiple=True,
    metavar="NAME=URL",
    help="A Prometheus that resources may name; repeatable, the first is the default.",
)
@click.option(
    "--cluster-domain",
    default=_DEFAULT.cluster_domain,
    show_default=True,
    metavar="DOMAIN",
    help="Behind the names of Services.",
)
@click.option(
    "--metrics-port",
    default=_DEFAULT.metrics_port,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="/metrics.",
)
@click.option(
    "--health-port",
    default=_DEFAULT.health_port,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="/livez and /readyz.",
)
@click.option(
    "--workers",
    default=_DEFAULT.workers,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Resources that are worked on at once.",
)
def operator(  # noqa: PLR0913  # one for each option
    *,
    namespaces: tuple[str, ...],
    lease_namespace: str,
    lease_name: str,
    image_node: str,
    image_embedder: str,
    image_embedder_cpu: str,
    image_valkey: str,
    pull_secrets: tuple[str, ...],
    prometheus: tuple[str, ...],
    cluster_domain: str,
    metrics_port: int,
    health_port: int,
    workers: int,
) -> None:
    """Run the Kubernetes operator until SIGTERM or Ctrl-C.

    It makes of each EmbeddingCache in the cluster what the resource asks for, and keeps it so. Each
    option is also a variable: EMBEDKEEP_IMAGE_NODE is --image-node.
    """
    configure_logs("operator")
    settings = Settings(
        namespaces=namespaces,
        namespace=lease_namespace,
        lease=lease_name,
        instance=os.environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}",
        images=Images(
            node=image_node,
            embedder=image_embedder,
            embedder_cpu=image_embedder_cpu,
            valkey=image_valkey,
        ),
        pull_secrets=pull_secrets,
        prometheus=prometheus_urls(prometheus),
        cluster_domain=cluster_domain,
        metrics_port=metrics_port,
        health_port=health_port,
        workers=workers,
    )
    asyncio.run(operate(settings))
