"""All objects of a cache."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from lightkube.core.resource import NamespacedResource
from lightkube.resources.apps_v1 import Deployment, StatefulSet
from lightkube.resources.batch_v1 import CronJob
from lightkube.resources.core_v1 import ConfigMap, Service, ServiceAccount
from lightkube.resources.networking_v1 import NetworkPolicy
from lightkube.resources.policy_v1 import PodDisruptionBudget

from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.api_policies import Monitoring
from embedkeep_operator.resources.configs import (
    build_embedder_config,
    build_node_config,
    build_predictor_config,
    build_tuned,
    build_valkey_config,
)
from embedkeep_operator.resources.context import CERTIFICATES, RULES, SERVICE_MONITORS, Context
from embedkeep_operator.resources.dashboard import build_dashboard
from embedkeep_operator.resources.embedder import build_embedder
from embedkeep_operator.resources.monitoring import build_rules, build_service_monitor
from embedkeep_operator.resources.names import shards
from embedkeep_operator.resources.nodes import build_budget, build_shard
from embedkeep_operator.resources.policies import (
    build_embedder_policy,
    build_node_policy,
    build_predictor_policy,
)
from embedkeep_operator.resources.predictor import build_predictor
from embedkeep_operator.resources.security import build_certificate
from embedkeep_operator.resources.services import (
    build_client_service,
    build_embedder_service,
    build_grpc_service,
    build_nodes_service,
    build_service_account,
)

OWNED: Final[tuple[type[NamespacedResource], ...]] = (
    ServiceAccount,
    NetworkPolicy,
    ConfigMap,
    Service,
    PodDisruptionBudget,
    StatefulSet,
    Deployment,
    CronJob,
)
"""Kinds that every cluster has. What is owned of them and no longer built is to be deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Something that is asked for, and of a kind that the cluster does not have."""

    field: str
    """That asks for it."""
    kind: str
    """Name of the CustomResourceDefinition."""


def build(resource: EmbeddingCache, context: Context) -> tuple[NamespacedResource, ...]:
    """All objects that are applied for *resource*, each before those that need it.

    Raises:
        InvalidConfig: A field that no schema bounds is not what Kubernetes takes; names it.
    """
    return tuple(
        built
        for part in (_around, _told, _found, _run, _predicted, _watched)
        for built in part(resource, context)
    )


def _around(resource: EmbeddingCache, context: Context) -> Iterator[NamespacedResource]:
    """What pods must find when they start: who they are, whom they may talk to, certificates."""
    yield build_service_account(resource, context)
    yield build_node_policy(resource, context)
    yield build_embedder_policy(resource, context)
    certificate = build_certificate(resource, context)
    if certificate is not None and CERTIFICATES in context.kinds:
        yield certificate


def _told(resource: EmbeddingCache, context: Context) -> Iterator[NamespacedResource]:
    yield build_node_config(resource, context)
    yield build_tuned(resource, context)
    yield build_valkey_config(resource, context)
    yield build_embedder_config(resource, context)


def _found(resource: EmbeddingCache, context: Context) -> Iterator[NamespacedResource]:
    """Names before pods: one that is looked up too early is not found for half a minute."""
    yield build_nodes_service(resource, context)
    yield build_embedder_service(resource, context)
    yield build_client_service(resource, context)
    yield build_grpc_service(resource, context)


def _run(resource: EmbeddingCache, context: Context) -> Iterator[NamespacedResource]:
    for shard in shards(resource):
        yield build_budget(resource, context, shard)
        yield build_shard(resource, context, shard)
    yield build_embedder(resource, context)


def _predicted(resource: EmbeddingCache, context: Context) -> Iterator[NamespacedResource]:
    config = build_predictor_config(resource, context)
    job = build_predictor(resource, context)
    if config is not None and job is not None:
        yield build_predictor_policy(resource, context)
        yield config
        yield job


def _watched(resource: EmbeddingCache, context: Context) -> Iterator[NamespacedResource]:
    wanted = resource.spec.monitoring or Monitoring()
    if wanted.service_monitor and SERVICE_MONITORS in context.kinds:
        yield build_service_monitor(resource, context)
    if wanted.rules_ and RULES in context.kinds:
        yield build_rules(resource, context)
    if wanted.dashboard:
        yield build_dashboard(resource, context)


def missing(resource: EmbeddingCache, context: Context) -> tuple[Missing, ...]:
    """What `build` leaves out, because the cluster knows no such kind."""
    monitoring = resource.spec.monitoring or Monitoring()
    wishes = (
        ("spec.security.tls.issuerRef", CERTIFICATES, _has_issuer(resource)),
        ("spec.monitoring.serviceMonitor", SERVICE_MONITORS, monitoring.service_monitor),
        ("spec.monitoring.rules", RULES, monitoring.rules_),
    )
    return tuple(
        Missing(field=field, kind=kind)
        for field, kind, asked in wishes
        if asked and kind not in context.kinds
    )


def _has_issuer(resource: EmbeddingCache) -> bool:
    security = resource.spec.security
    return security is not None and security.tls is not None and security.tls.issuer_ref is not None
