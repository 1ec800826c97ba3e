"""Who may talk to whom, as NetworkPolicies. What no rule allows is refused.

Clients may come from everywhere: API keys and certificates tell who they are. Valkey's own bus
knows no password and lets everybody in, so only the cache's own pods reach it.
"""

from collections.abc import Iterable

from lightkube.models.meta_v1 import LabelSelector
from lightkube.models.networking_v1 import (
    NetworkPolicyEgressRule,
    NetworkPolicyIngressRule,
    NetworkPolicyPeer,
    NetworkPolicyPort,
    NetworkPolicySpec,
)
from lightkube.resources.networking_v1 import NetworkPolicy

from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.resources import ports
from embedkeep_operator.resources.context import Context, Pods
from embedkeep_operator.resources.names import Component, meta, of, selecting

NAMESPACE_NAME = "kubernetes.io/metadata.name"
"""The API server puts it on every namespace."""


def build_node_policy(resource: EmbeddingCache, context: Context) -> NetworkPolicy:
    """Of the nodes and the Valkeys beside them."""
    own = [_own(resource, Component.NODE)]
    trusted = [*own, _own(resource, Component.PREDICTOR), *_operators(context)]
    at = ports.node_ports(resource)
    return _policy(
        resource,
        context,
        Component.NODE,
        ingress=[
            NetworkPolicyIngressRule(ports=_tcp(at.grpc, at.http)),
            NetworkPolicyIngressRule(from_=trusted, ports=_tcp(ports.VALKEY)),
            NetworkPolicyIngressRule(from_=own, ports=_tcp(ports.VALKEY_BUS)),
            *_scraped(context, at.metrics),
        ],
        egress=[
            _dns(),
            NetworkPolicyEgressRule(to=own, ports=_tcp(at.grpc, ports.VALKEY, ports.VALKEY_BUS)),
            NetworkPolicyEgressRule(
                to=[_own(resource, Component.EMBEDDER)], ports=_tcp(ports.EMBEDDER)
            ),
        ],
    )


def build_embedder_policy(resource: EmbeddingCache, context: Context) -> NetworkPolicy:
    """Of the embedders. Those that download a model, or ask somebody else's, may go anywhere."""
    return _policy(
        resource,
        context,
        Component.EMBEDDER,
        ingress=[
            NetworkPolicyIngressRule(
                from_=[_own(resource, Component.NODE)], ports=_tcp(ports.EMBEDDER)
            ),
            *_scraped(context, ports.METRICS),
        ],
        egress=[NetworkPolicyEgressRule()] if _goes_out(resource) else [_dns()],
    )


def build_predictor_policy(resource: EmbeddingCache, context: Context) -> NetworkPolicy:
    """Of the predictor, which reads and writes Valkeys and is asked by nobody."""
    return _policy(
        resource,
        context,
        Component.PREDICTOR,
        ingress=[],
        egress=[
            _dns(),
            NetworkPolicyEgressRule(to=[_own(resource, Component.NODE)], ports=_tcp(ports.VALKEY)),
        ],
    )


def _goes_out(resource: EmbeddingCache) -> bool:
    source = resource.spec.model.source
    downloads = source is None or source.hub is not None
    return downloads or resource.spec.embedder.external is not None


def _policy(
    resource: EmbeddingCache,
    context: Context,
    component: Component,
    *,
    ingress: list[NetworkPolicyIngressRule],
    egress: list[NetworkPolicyEgressRule],
) -> NetworkPolicy:
    return NetworkPolicy(
        metadata=meta(resource, context, of(resource, component), component),
        spec=NetworkPolicySpec(
            podSelector=selecting(resource, component),
            policyTypes=["Ingress", "Egress"],
            ingress=ingress or None,
            egress=egress,
        ),
    )


def _own(resource: EmbeddingCache, component: Component) -> NetworkPolicyPeer:
    """Pods of this cache, in its namespace."""
    return NetworkPolicyPeer(podSelector=selecting(resource, component))


def _operators(context: Context) -> list[NetworkPolicyPeer]:
    return [_peer(context.operator)] if context.operator is not None else []


def _scraped(context: Context, port: int) -> list[NetworkPolicyIngressRule]:
    """Who may read metrics. A rule without a peer would let everybody in."""
    readers = [*_operators(context), *map(_peer, context.scrapers)]
    return [NetworkPolicyIngressRule(from_=readers, ports=_tcp(port))] if readers else []


def _peer(pods: Pods) -> NetworkPolicyPeer:
    """Pods elsewhere. An empty selector chooses all."""
    namespaces = {NAMESPACE_NAME: pods.namespace} if pods.namespace is not None else None
    return NetworkPolicyPeer(
        namespaceSelector=LabelSelector(matchLabels=namespaces),
        podSelector=LabelSelector(matchLabels=dict(pods.labels)) if pods.labels else None,
    )


def _tcp(*numbers: int) -> list[NetworkPolicyPort]:
    return [NetworkPolicyPort(port=number, protocol="TCP") for number in _distinct(numbers)]


def _distinct(numbers: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(numbers))


def _dns() -> NetworkPolicyEgressRule:
    """To anywhere, since where a cluster's DNS runs differs from one to the next."""
    return NetworkPolicyEgressRule(
        ports=[
            NetworkPolicyPort(port=port, protocol=kind)
            for port in ports.DNS
            for kind in ("UDP", "TCP")
        ]
    )
