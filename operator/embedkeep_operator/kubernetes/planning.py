"""From what is seen of one resource to what to write now. Pure; see `reconcile` for the doing.

Nothing is remembered between two looks: whatever the state, the same few rules lead on from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import msgspec
from lightkube.core.resource import NamespacedResource
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.apps_v1 import Deployment, StatefulSet
from lightkube.resources.core_v1 import Event, Pod

from embedkeep_operator.api import KIND, EmbeddingCache
from embedkeep_operator.api_nodes import Nodes
from embedkeep_operator.kubernetes.conditions import Count, Report
from embedkeep_operator.kubernetes.containment import Json, is_applied
from embedkeep_operator.kubernetes.rollout import Member, next_step
from embedkeep_operator.kubernetes.store import Id, identity, metadata_of
from embedkeep_operator.kubernetes.troubles import troubles
from embedkeep_operator.resources import OWNED
from embedkeep_operator.resources.monitoring import PrometheusRule, ServiceMonitor
from embedkeep_operator.resources.names import COMPONENT, OPERATOR, SHARD
from embedkeep_operator.resources.security import Certificate

REVISION: Final = "controller-revision-hash"


@dataclass(frozen=True, slots=True, kw_only=True)
class Formed:
    """How far the Valkeys are, see `topology`."""

    settled: bool
    why: str
    """What they still need, for people."""
    primaries: frozenset[str] = frozenset()
    """Pods whose Valkey has slots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One resource and all that belongs to it."""

    resource: EmbeddingCache
    generation: int
    endpoint: str
    """gRPC target for clients."""
    live: Mapping[Id, Json]
    """What it owns, by identity; Secrets excepted."""
    events: tuple[Event, ...] = ()
    """Warnings on what it owns; asked for only while something is not ready."""
    formed: Formed | None = None
    """None: the Valkeys were not looked at yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to write now."""

    apply: tuple[NamespacedResource, ...]
    """In order."""
    delete: tuple[Id, ...]
    """What belongs to the resource and is no longer wanted."""
    replace: str | None
    """A pod to delete, so that its StatefulSet makes it anew."""
    report: Report


KINDS: Final[Mapping[str, type[NamespacedResource]]] = MappingProxyType(
    {kind.__name__: kind for kind in (*OWNED, ServiceMonitor, PrometheusRule, Certificate)}
)
"""What the operator makes itself, and deletes where it is no longer wanted, by name."""


def plan(observed: Observed, wanted: Sequence[NamespacedResource]) -> Plan:
    """Decide.

    Args:
        wanted: All objects that the resource should have, as they should be, in the order in which
            they are applied.
    """
    objects = {identity(plain): (each, plain) for each in wanted if (plain := plain_of(each))}
    missing = tuple(
        each
        for where, (each, plain) in objects.items()
        if not is_applied(plain, observed.live.get(where, {}), manager=OPERATOR)
    )
    surplus = tuple(
        where
        for where, live in sorted(observed.live.items())
        if where.kind in KINDS and where not in objects and _is_controlled(live)
    )
    pods = [_pod(live) for where, live in sorted(observed.live.items()) if where.kind == "Pod"]
    members = [_member(pod, observed) for pod in pods if _label(pod, COMPONENT) == "node"]
    spec = observed.resource.spec.nodes or Nodes()
    count = spec.shards * (1 + spec.replicas_per_shard)
    formed = observed.formed
    step = next_step(members, wanted=count, settled=formed is not None and formed.settled)
    ready = [each for each in members if each.ready]
    report = Report(
        generation=observed.generation,
        shards=Count(wanted=spec.shards, ready=len({each.shard for each in ready})),
        nodes=Count(wanted=count, ready=len(ready)),
        embedders=_embedders(observed, pods),
        forming=_forming(formed),
        rolling=step.doing,
        troubles=troubles(pods, observed.events),
        endpoint=observed.endpoint,
    )
    return Plan(apply=missing, delete=surplus, replace=step.replace, report=report)


def _forming(formed: Formed | None) -> str | None:
    if formed is None:
        return "not looked at yet"
    return None if formed.settled else formed.why


def plain_of(wanted: NamespacedResource) -> Json:
    """As it is sent."""
    plain: Json = wanted.to_dict()  # type: ignore[attr-defined]  # each has it, their base does not say
    return plain


def _pod(live: Json) -> Pod:
    return msgspec.convert(live, Pod)


def _label(pod: Pod, name: str) -> str:
    metadata = pod.metadata or ObjectMeta()
    return str((metadata.labels or {}).get(name, ""))


def _member(pod: Pod, observed: Observed) -> Member:
    metadata, shard = pod.metadata or ObjectMeta(), _label(pod, SHARD)
    name = metadata.name or ""
    return Member(
        name=name,
        shard=int(shard) if shard.isdigit() else -1,
        current=_label(pod, REVISION) in {"", _revision(observed, name)},
        ready=is_ready(pod),
        primary=observed.formed is not None and name in observed.formed.primaries,
        leaving=metadata.deletionTimestamp is not None,
    )


def is_ready(pod: Pod) -> bool:
    """The kubelet says that it can answer."""
    conditions = (pod.status.conditions if pod.status else None) or ()
    return any(each.type == "Ready" and each.status == "True" for each in conditions)


def _revision(observed: Observed, pod: str) -> str:
    """That the pod's StatefulSet wants. Empty: it has not said yet what it makes of its spec."""
    for where, live in observed.live.items():
        if where.kind == "StatefulSet" and where.name == pod.rpartition("-")[0]:
            found = msgspec.convert(live, StatefulSet)
            status, metadata = found.status, found.metadata or ObjectMeta()
            if status is not None and status.observedGeneration == metadata.generation:
                return status.updateRevision or ""
    return ""


def _embedders(observed: Observed, pods: Sequence[Pod]) -> Count:
    """Also of those that ask somebody else's model."""
    ready = sum(is_ready(pod) for pod in pods if _label(pod, COMPONENT) == "embedder")
    wanted = [
        spec.replicas
        for where, live in observed.live.items()
        if where.kind == "Deployment"
        and (spec := msgspec.convert(live, Deployment).spec) is not None
    ]
    return Count(wanted=next((each for each in wanted if each is not None), 1), ready=ready)


def _is_controlled(live: Json) -> bool:
    """An EmbeddingCache made it, and not one of the things that we make."""
    owners = metadata_of(live).get("ownerReferences")
    return isinstance(owners, Sequence) and any(
        each.get("kind") == KIND and each.get("controller") for each in owners
    )


def all_well(live: Mapping[Id, Json]) -> bool:
    """Every pod is ready, and none is missing."""
    pods = [_pod(each) for where, each in live.items() if where.kind == "Pod"]
    wanted = sum(
        int(spec.get("replicas", 1))
        for where, each in live.items()
        if where.kind in {"StatefulSet", "Deployment"}
        and isinstance(spec := each.get("spec"), Mapping)
    )
    return sum(map(is_ready, pods)) == len(pods) >= wanted > 0
