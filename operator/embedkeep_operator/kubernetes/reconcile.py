"""Looks at one resource, does what it needs, and says how it is. The shell around `planning`.

Level-based: it does not matter which event it was called for. What fails is said in the resource's
conditions and tried again; one object that cannot be applied does not keep the others from it.
"""

import base64
import contextlib
import math
import secrets
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import TracebackType
from typing import Final, Self

import msgspec
import structlog
from lightkube.core.resource import NamespacedResource
from lightkube.models.core_v1 import ObjectReference
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Event, Pod

from embedkeep.errors import InvalidConfig, NotBuilt
from embedkeep_operator import topology
from embedkeep_operator.api import API_VERSION, KIND, EmbeddingCache
from embedkeep_operator.cluster import Endpoint, Wanted
from embedkeep_operator.forming import lead_on
from embedkeep_operator.kubernetes import conditions
from embedkeep_operator.kubernetes.conditions import Report, Stop
from embedkeep_operator.kubernetes.containment import Json
from embedkeep_operator.kubernetes.failures import (
    ApiFailed,
    Conflict,
    Missing,
    Rejected,
    Unreachable,
)
from embedkeep_operator.kubernetes.kube import Kube
from embedkeep_operator.kubernetes.metrics import OperatorMetrics
from embedkeep_operator.kubernetes.planning import KINDS, Formed, Observed, Plan, all_well, plan
from embedkeep_operator.kubernetes.reading import Seen, read
from embedkeep_operator.kubernetes.releases import RESOLVED, Resolved, kept_images, resolve
from embedkeep_operator.kubernetes.settings import OPERATOR_PODS, Settings
from embedkeep_operator.kubernetes.store import Id, Key, Store, identity
from embedkeep_operator.render import tls_secret
from embedkeep_operator.render_valkey import CERT_FILE
from embedkeep_operator.resources import (
    Context,
    Images,
    Pods,
    auth_of,
    build,
    build_auth,
    missing,
    ports,
)
from embedkeep_operator.resources.names import host_of, of, pods_of, shards
from embedkeep_operator.resources.security import AUTHORITY, PASSWORD_KEY, expected_name
from embedkeep_operator.rotation import shown_by
from embedkeep_operator.unbuilt import refuse_unbuilt_on_kubernetes

_log = structlog.get_logger()

SETTLED_S: Final = 60.0
"""Between two looks at a cache that is as wanted, seconds. Its Valkeys are asked, and nothing is
written: pods and objects tell of themselves, only a Valkey's opinion of its cluster does not."""
UNSETTLED_S: Final = 1.0
"""The same while something is on its way."""
RENEW_S: Final = 300.0
"""After which the Secrets are read again where nothing is wrong: a new password or certificate."""
ACCESS_S: Final = 30.0
"""After which passwords and authorities are read again while a Valkey does not answer, seconds."""
EVENTS_S: Final = 10.0
"""Between two reads of a namespace's events while something is not ready, seconds."""
PASSES: Final = (Conflict, Unreachable)
"""What passes by itself; all else waits for somebody."""
PINNED: Final = frozenset({"StatefulSet", "Deployment"})
"""Kinds that say which images were chosen for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a look has ended."""

    again_s: float | None
    """When to look again, seconds. None: not before something happens."""
    failed: ApiFailed | None = None
    """What could not be done. It is said in the resource's conditions already."""


class _Failures:
    """Collects what cannot be done, so that the rest is done all the same.

    with failures:
        await apply(one)
    """

    def __init__(self) -> None:
        self.first: ApiFailed | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, ApiFailed):
            return False
        if self.first is None or isinstance(self.first, PASSES):
            self.first = error
        return True

    @property
    def stop(self) -> Stop | None:
        """As conditions say it."""
        if self.first is None:
            return None
        passes = isinstance(self.first, PASSES)
        return Stop(reason=self.first.reason, message=str(self.first), passes=passes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What is the same for all resources."""

    settings: Settings
    kinds: frozenset[str]
    """Names of the cluster's CustomResourceDefinitions."""
    now: Callable[[], datetime]
    """The time of day, for what is shown."""


def context_of(seen: Seen, around: Surroundings, images: Resolved) -> Context:
    """What the builders need beside the resource."""
    settings = around.settings
    return Context(
        namespace=seen.key.namespace,
        uid=seen.uid,
        images=Images(
            node=images.node,
            valkey=images.valkey,
            embedder=images.embedder,
            embedder_cpu=images.embedder,
        ),
        pull_secrets=settings.pull_secrets,
        kinds=around.kinds,
        cluster_domain=settings.cluster_domain,
        operator=Pods(namespace=settings.namespace, labels=OPERATOR_PODS),
        scrapers=(Pods(),),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Access:
    """How the Valkeys of a cache are reached."""

    passwords: tuple[str, ...] = field(repr=False)
    tls: ssl.SSLContext | None
    certificate: str | None
    """Digest of what they are to show. None: they speak plain TCP."""
    read_s: float
    """When it was read, monotonic."""


def _decoded(found: Mapping[str, str], secret: str, key: str) -> str:
    """A key of a Secret.

    Raises:
        Rejected: It is not there, or no text.
    """
    try:
        return base64.b64decode(found[key]).decode()
    except (KeyError, ValueError) as error:
        raise Rejected(f"Secret {secret}: {key} is missing, or no text") from error


def _trusting(authority: str, secret: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cadata=authority)
    except ssl.SSLError as error:
        raise Rejected(f"Secret {secret}: {AUTHORITY} is no certificate in PEM") from error


class Reconciler:
    """Works on one resource at a time, whichever it is called for.

    Args:
        kube: The API server.
        store: What the watches have shown.
        around: What is the same for all.
        metrics: Counts what is applied.
    """

    def __init__(
        self, kube: Kube, store: Store, around: Surroundings, metrics: OperatorMetrics
    ) -> None:
        self._kube = kube
        self._store = store
        self._around = around
        self._metrics = metrics
        self._access: dict[Key, _Access] = {}
        """To Valkeys, by cache: so that a steady state seldom reads a Secret."""
        self._warned: dict[Key, tuple[float, tuple[Event, ...]]] = {}
        """Events, and when they were read; only of what is not ready."""

    async def reconcile(self, key: Key) -> Outcome:
        """Look, do, and say.

        Raises:
            ApiFailed: Not even the status could be written.
        """
        raw = self._store.get(KIND, key.namespace, key.name)
        if raw is None or (seen := Seen(key=key, raw=raw)).leaves:
            self._warned.pop(key, None)
            self._access.pop(key, None)  # what the resource owns, the garbage collector deletes
            return Outcome(again_s=None)
        try:
            resource = read(seen)
            if resource.spec.paused:
                await self._say(seen, replace(seen.last(), paused=True))
                return Outcome(again_s=None)
            refuse_unbuilt_on_kubernetes(resource)
            return await self._lead_on(seen, resource)
        except NotBuilt as error:
            stop = Stop(reason=NotBuilt.reason, message="; ".join(str(error).splitlines()))
        except InvalidConfig as error:  # also what no schema bounds, as an affinity that is none
            stop = Stop(reason=conditions.Reason.INVALID, message=str(error))
        await self._say(seen, replace(seen.last(), stop=stop))
        return Outcome(again_s=None)

    async def _lead_on(self, seen: Seen, resource: EmbeddingCache) -> Outcome:
        live = {identity(each): each for each in self._store.owned(seen.key)}
        around, failures = self._around, _Failures()
        images = resolve(
            resource.spec,
            around.settings.images,
            kept=kept_images(each for where, each in live.items() if where.kind in PINNED),
        )
        context = context_of(seen, around, images)
        with failures:
            await self._ensure_access(seen, resource, context)
        formed = None
        with failures:
            formed = await self._form(seen.key, resource, context, live.values())
        events: tuple[Event, ...] = ()
        with failures:
            events = await self._warnings(seen.key, live)
        planned = plan(
            Observed(
                resource=resource,
                generation=seen.generation,
                endpoint=f"{host_of(context, of(resource))}:{ports.node_ports(resource).grpc}",
                live=live,
                events=events,
                formed=formed,
            ),
            [_noted(each, images) for each in build(resource, context)],
        )
        await self._write(planned, seen.key, failures)
        report = replace(
            planned.report,
            newer=images.newer,
            skipped=tuple(f"{each.field} ({each.kind})" for each in missing(resource, context)),
            stop=failures.stop,
        )
        await self._say(seen, report)
        settled = report.is_settled and not planned.apply and not planned.delete
        return Outcome(again_s=SETTLED_S if settled else UNSETTLED_S, failed=failures.first)

    async def _ensure_access(self, seen: Seen, resource: EmbeddingCache, context: Context) -> None:
        """Create what only the cache's own processes know, once; what it says is remembered."""
        if seen.key in self._access:
            return
        name, namespace = auth_of(resource), seen.key.namespace
        found = await self._kube.secret(name, namespace)
        if found is None:
            password, secret = secrets.token_hex(32), secrets.token_hex(32)
            made = build_auth(resource, context, password=password, cluster_secret=secret)
            await self._kube.create(made)
            passwords: tuple[str, ...] = (password,)
        else:
            passwords = tuple(_decoded(found, name, PASSWORD_KEY).split())
        tls = shown = None
        if (certificates := tls_secret(resource)) is not None:
            trusted = await self._kube.secret(certificates, namespace)
            if trusted is None:
                raise Missing(
                    f"spec.security.tls: there is no Secret {certificates} in {namespace}; create "
                    "it, or correct its name"
                )
            tls = _trusting(_decoded(trusted, certificates, AUTHORITY), certificates)
            with contextlib.suppress(ValueError, Rejected):  # its pods say what is wrong with it
                shown = shown_by(_decoded(trusted, certificates, CERT_FILE))
        self._access[seen.key] = _Access(
            passwords=passwords, tls=tls, certificate=shown, read_s=time.monotonic()
        )

    async def _form(
        self, key: Key, resource: EmbeddingCache, context: Context, live: Iterable[Json]
    ) -> Formed | None:
        if (access := self._access.get(key)) is None:
            return None
        wanted = valkeys_of(resource, context, live)
        led = await lead_on(
            wanted, *access.passwords, tls=access.tls, certificate=access.certificate
        )
        if time.monotonic() - access.read_s > (ACCESS_S if led.detail else RENEW_S):
            del self._access[key]  # it may have been changed by hand, or renewed
        return Formed(
            settled=led.reason is topology.Reason.SETTLED,
            why=led.standing,
            primaries=frozenset(
                name
                for name, view in led.seen.items()
                if view.own.primary is None and view.own.slots
            ),
        )

    async def _warnings(self, key: Key, live: Mapping[Id, Json]) -> tuple[Event, ...]:
        """What the kubelet and the controllers could not do, while something is not ready."""
        if all_well(live):
            self._warned.pop(key, None)
            return ()
        now_s = time.monotonic()
        read_s, known = self._warned.get(key, (-math.inf, ()))
        if now_s - read_s < EVENTS_S:
            return known
        names = {where.name for where in live}
        found = await self._kube.list(Event, key.namespace, fields={"type": "Warning"})
        events = (msgspec.convert(each, Event) for each in found)
        mine = tuple(each for each in events if each.involvedObject.name in names)
        self._warned[key] = (now_s, mine)
        return mine

    async def _write(self, planned: Plan, key: Key, failures: _Failures) -> None:
        for each in planned.apply:
            with failures:
                self._store.put(await self._kube.apply(each))
                self._metrics.applied.labels(type(each).__name__).inc()
        for where in planned.delete:
            with failures:
                await self._kube.delete(KINDS[where.kind], where.name, where.namespace)
        if planned.replace is not None:
            with failures:
                await self._kube.delete(Pod, planned.replace, key.namespace)

    async def _say(self, seen: Seen, report: Report) -> None:
        """Write the status where it has changed, and events for what is new in it."""
        status = conditions.status(report, seen.status, now=self._around.now())
        if status == seen.status:
            return
        self._store.put(await self._kube.apply_status(seen.key.name, seen.key.namespace, status))
        about = ObjectReference(
            apiVersion=API_VERSION, kind=KIND, name=seen.key.name,
            namespace=seen.key.namespace, uid=seen.uid,
        )  # fmt: skip
        for notice in conditions.notices(seen.status, status):
            try:
                await self._kube.emit(notice, about, at=self._around.now())
            except ApiFailed as error:  # the conditions say the same
                _log.warning("event not written", cache=str(seen.key), error=str(error))


def _noted(wanted: NamespacedResource, images: Resolved) -> NamespacedResource:
    """A workload says which images were chosen for it."""
    if type(wanted).__name__ in PINNED:
        metadata: ObjectMeta = wanted.metadata  # type: ignore[attr-defined]  # each has it
        metadata.annotations = {**(metadata.annotations or {}), RESOLVED: images.annotation}
    return wanted


def valkeys_of(
    resource: EmbeddingCache, context: Context, live: Iterable[Json]
) -> dict[str, Wanted]:
    """Where each Valkey is, by its pod's name. A pod without an address does not run yet."""
    addresses = {identity(each).name: _address(each) for each in live if each.get("kind") == "Pod"}
    return {
        pod: Wanted(
            shard=shard,
            endpoint=Endpoint(host=address, port=ports.VALKEY, bus_port=ports.VALKEY_BUS)
            if (address := addresses.get(pod))
            else None,
            hostname=expected_name(resource, context),
        )
        for shard in shards(resource)
        for pod in pods_of(resource, shard)
    }


def _address(pod: Json) -> str:
    status = pod.get("status")
    return str(status.get("podIP") or "") if isinstance(status, Mapping) else ""
