"""The API server, as the operator uses it: a thin shell over lightkube that raises our own errors.

Objects go out typed and come back as they are, because what the operator asks of a live object is
whether it holds what is wanted, see `containment`.
"""

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from http import HTTPStatus
from types import MappingProxyType
from typing import Final, Protocol, TypeAlias, cast

import httpx2
import msgspec
from lightkube import ApiError, AsyncClient
from lightkube.core.exceptions import ConfigError
from lightkube.core.resource import NamespacedResource, NamespacedSubResource
from lightkube.generic_resource import GenericNamespacedResource, create_namespaced_resource
from lightkube.models.coordination_v1 import LeaseSpec
from lightkube.models.core_v1 import ObjectReference
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.coordination_v1 import Lease
from lightkube.resources.core_v1 import Secret
from lightkube.resources.events_v1 import Event
from lightkube.types import CascadeType

from embedkeep.errors import InvalidConfig
from embedkeep_operator.api import GROUP, KIND, VERSION
from embedkeep_operator.kubernetes.conditions import Notice
from embedkeep_operator.kubernetes.containment import Json
from embedkeep_operator.kubernetes.failures import (
    ApiFailed,
    Conflict,
    Forbidden,
    Missing,
    Rejected,
    Unreachable,
)
from embedkeep_operator.kubernetes.leadership import Held
from embedkeep_operator.resources.names import OPERATOR

MANAGER: Final = OPERATOR
"""Field manager of all that the operator applies, and who its events are from."""
PLURAL: Final = "embeddingcaches"
TIMEOUT_S: Final = 30.0
"""Longest wait for one answer, seconds."""
MAX_NOTE: Final = 1024
"""Characters of an event's note, the API server's own bound."""

Cache: type[GenericNamespacedResource] = create_namespaced_resource(GROUP, VERSION, KIND, PLURAL)

Kind: TypeAlias = type[NamespacedResource]

_ERRORS: Final[Mapping[int, type[ApiFailed]]] = MappingProxyType(
    {
        HTTPStatus.BAD_REQUEST: Rejected,
        HTTPStatus.UNAUTHORIZED: Forbidden,
        HTTPStatus.FORBIDDEN: Forbidden,
        HTTPStatus.NOT_FOUND: Missing,
        HTTPStatus.METHOD_NOT_ALLOWED: Rejected,
        HTTPStatus.CONFLICT: Conflict,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: Rejected,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE: Rejected,
        HTTPStatus.UNPROCESSABLE_ENTITY: Rejected,
    }
)
"""All others may pass by themselves: too many requests, timeouts, what is broken in the server."""


class Requests(Protocol):
    """Counts what the API server is asked."""

    def ended(self, verb: str, result: str) -> None:
        """A request has ended: *result* is ok, or an error's reason."""
        ...


class Kube:
    """Calls of one operator.

    Args:
        client: Of lightkube; closed by whoever made it.
        requests: Told of each request.
        instance: Of this operator, as events name it.
    """

    def __init__(self, client: AsyncClient, *, requests: Requests, instance: str) -> None:
        self._client = client
        self._requests = requests
        self._instance = instance[:128]

    async def get(self, kind: Kind, name: str, namespace: str) -> Json | None:
        """One object. None: there is none."""
        try:
            async with self._asking("get", f"{kind.__name__} {namespace}/{name}"):
                found = await self._client.get(kind, name, namespace=namespace)
        except Missing:
            return None
        return _plain(found)

    async def list(
        self,
        kind: Kind,
        namespace: str,
        *,
        labels: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> list[Json]:
        """All objects of a kind. *namespace* "*": of all namespaces."""
        async with self._asking("list", f"{kind.__name__} in {namespace}"):
            return [
                _plain(each)
                async for each in self._client.list(
                    kind,
                    namespace=namespace,
                    labels=dict(labels) if labels else None,
                    fields=dict(fields) if fields else None,
                )
            ]

    async def apply(self, wanted: NamespacedResource) -> Json:
        """Server-side apply, taking over the fields it names from whoever has them."""
        async with self._asking("apply", _named(wanted)):
            return _plain(await self._client.apply(wanted, field_manager=MANAGER, force=True))

    async def create(self, wanted: NamespacedResource) -> Json:
        """Create.

        Raises:
            Conflict: It is there.
        """
        async with self._asking("create", _named(wanted)):
            return _plain(await self._client.create(wanted, field_manager=MANAGER))

    async def replace(self, wanted: NamespacedResource) -> Json:
        """Replace the object of the resourceVersion that *wanted* names.

        Raises:
            Conflict: It was written since.
        """
        async with self._asking("update", _named(wanted)):
            return _plain(await self._client.replace(wanted, field_manager=MANAGER))

    async def delete(self, kind: Kind, name: str, namespace: str) -> None:
        """Delete, with what belongs to it; well also where it is gone already."""
        try:
            async with self._asking("delete", f"{kind.__name__} {namespace}/{name}"):
                await self._client.delete(
                    kind, name, namespace=namespace, cascade=CascadeType.BACKGROUND
                )
        except Missing:
            return

    async def apply_status(self, name: str, namespace: str, status: Json) -> Json:
        """Set the status of an EmbeddingCache. Returns the whole of it."""
        wanted = Cache.Status(
            apiVersion=f"{GROUP}/{VERSION}",
            kind=KIND,
            metadata=ObjectMeta(name=name, namespace=namespace),
            status=status,
        )
        async with self._asking("apply", f"status of {KIND} {namespace}/{name}"):
            written = await self._client.apply(
                cast(NamespacedSubResource, wanted),
                name,
                namespace=namespace,
                field_manager=MANAGER,
                force=True,
            )
        return _plain(cast(NamespacedResource, written))

    async def emit(self, notice: Notice, about: ObjectReference, *, at: datetime) -> None:
        """Write an event."""
        note = notice.note
        event = Event(
            metadata=ObjectMeta(
                name=f"{about.name}.{secrets.token_hex(8)}", namespace=about.namespace
            ),
            eventTime=at,
            type="Warning" if notice.warning else "Normal",
            reason=notice.reason,
            note=note if len(note) <= MAX_NOTE else note[: MAX_NOTE - 1] + "…",
            action="Reconcile",
            regarding=about,
            reportingController=MANAGER,
            reportingInstance=self._instance,
        )
        async with self._asking("create", f"event on {about.namespace}/{about.name}"):
            await self._client.create(event)

    async def has(self, kind: Kind, namespace: str) -> bool:
        """The cluster has this kind.

        Raises:
            Forbidden: It may have; we have no right to list it.
        """
        try:
            async with self._asking("list", f"{kind.__name__} in {namespace}"):
                async for _ in self._client.list(kind, namespace=namespace, chunk_size=1):
                    break
        except Missing:
            return False
        return True

    async def secret(self, name: str, namespace: str) -> Mapping[str, str] | None:
        """A Secret's values, still in Base64. None: there is none. Never kept in a store."""
        try:
            async with self._asking("get", f"Secret {namespace}/{name}"):
                found = await self._client.get(Secret, name, namespace=namespace)
        except Missing:
            return None
        return found.data or {}

    @asynccontextmanager
    async def _asking(self, verb: str, what: str) -> AsyncIterator[None]:
        """Foreign errors become ours, saying what was asked."""
        try:
            yield
        except ApiError as error:
            failed = _ERRORS.get(int(error.status.code or 0), Unreachable)
            self._requests.ended(verb, failed.reason)
            raise failed(f"{verb} {what}: {error.status.message}") from error
        except httpx2.HTTPStatusError as error:  # an answer that is no Status: no such API group
            failed = _ERRORS.get(error.response.status_code, Unreachable)
            self._requests.ended(verb, failed.reason)
            raise failed(f"{verb} {what}: {error.response.reason_phrase}") from error
        except (httpx2.HTTPError, OSError) as error:
            self._requests.ended(verb, Unreachable.reason)
            raise Unreachable(f"{verb} {what}: {str(error) or type(error).__name__}") from error
        self._requests.ended(verb, "ok")


class KubeLease:
    """One Lease, for `leadership`."""

    def __init__(self, kube: Kube, *, name: str, namespace: str) -> None:
        self._kube = kube
        self._name = name
        self._namespace = namespace

    async def lease(self) -> Held | None:
        """As it is now."""
        found = await self._kube.get(Lease, self._name, self._namespace)
        return None if found is None else held(msgspec.convert(found, Lease))

    async def write_lease(self, wanted: Held, *, renewed: datetime) -> Held:
        """Create it, or replace the one that was read."""
        lease = Lease(
            metadata=ObjectMeta(
                name=self._name, namespace=self._namespace, resourceVersion=wanted.version or None
            ),
            spec=LeaseSpec(
                holderIdentity=wanted.holder,
                leaseDurationSeconds=round(wanted.hold_s),
                leaseTransitions=wanted.transitions,
                acquireTime=wanted.acquired,
                renewTime=renewed,
            ),
        )
        if not wanted.version:
            return held(msgspec.convert(await self._kube.create(lease), Lease))
        return held(msgspec.convert(await self._kube.replace(lease), Lease))


def held(lease: Lease) -> Held:
    """What a Lease says."""
    spec, metadata = lease.spec or LeaseSpec(), lease.metadata or ObjectMeta()
    return Held(
        holder=spec.holderIdentity or "",
        version=metadata.resourceVersion or "",
        hold_s=float(spec.leaseDurationSeconds or 0),
        transitions=spec.leaseTransitions or 0,
        acquired=spec.acquireTime,
    )


@asynccontextmanager
async def connected() -> AsyncIterator[AsyncClient]:
    """A client of the cluster that this process is in, or that KUBECONFIG names.

    Raises:
        InvalidConfig: There is none.
    """
    try:
        client = AsyncClient(timeout=httpx2.Timeout(TIMEOUT_S), field_manager=MANAGER)
    except (ConfigError, OSError) as error:
        raise InvalidConfig(
            f"no Kubernetes cluster: {error}; run it in a pod, or set KUBECONFIG",
            field="KUBECONFIG",
        ) from error
    async with client:
        yield client


def _plain(found: NamespacedResource) -> Json:
    return cast(_Described, found).to_dict()


def _named(wanted: NamespacedResource) -> str:
    metadata = cast(_Described, wanted).metadata or ObjectMeta()
    return f"{type(wanted).__name__} {metadata.namespace}/{metadata.name}"


class _Described(Protocol):
    """What each of lightkube's resources has, and their common base does not say."""

    metadata: ObjectMeta | None

    def to_dict(self) -> dict[str, object]: ...
