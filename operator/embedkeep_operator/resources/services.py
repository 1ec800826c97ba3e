"""The names under which a cache and its parts are found."""

from lightkube.models.core_v1 import ServicePort, ServiceSpec
from lightkube.resources.core_v1 import Service, ServiceAccount

from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.resources import ports
from embedkeep_operator.resources.context import Context
from embedkeep_operator.resources.names import SCRAPED, Component, meta, of, selector


def build_service_account(resource: EmbeddingCache, context: Context) -> ServiceAccount:
    """Whom the pods run as: somebody who may do nothing."""
    return ServiceAccount(
        metadata=meta(resource, context, of(resource)), automountServiceAccountToken=False
    )


def build_client_service(resource: EmbeddingCache, context: Context) -> Service:
    """For clients: one address, whichever node answers."""
    return Service(
        metadata=meta(resource, context, of(resource), Component.NODE),
        spec=ServiceSpec(
            type="ClusterIP",
            selector=selector(resource, Component.NODE),
            ports=_node_ports(resource, "grpc", "http", "metrics"),
        ),
    )


def build_grpc_service(resource: EmbeddingCache, context: Context) -> Service:
    """For gRPC clients, which keep a connection: the addresses of all nodes that can answer."""
    return Service(
        metadata=meta(resource, context, of(resource, "grpc"), Component.NODE),
        spec=ServiceSpec(
            clusterIP="None",
            selector=selector(resource, Component.NODE),
            ports=_node_ports(resource, "grpc"),
        ),
    )


def build_nodes_service(resource: EmbeddingCache, context: Context) -> Service:
    """For the nodes themselves: a name for each pod, from its start to its end."""
    more = {SCRAPED: "true"}
    return Service(
        metadata=meta(resource, context, of(resource, "nodes"), Component.NODE, more=more),
        spec=ServiceSpec(
            clusterIP="None",
            # Peers and Valkeys find each other before they can answer clients.
            publishNotReadyAddresses=True,
            selector=selector(resource, Component.NODE),
            ports=[
                *_node_ports(resource, "grpc", "metrics"),
                _port("valkey", ports.VALKEY),
                _port("valkey-bus", ports.VALKEY_BUS),
            ],
        ),
    )


def build_embedder_service(resource: EmbeddingCache, context: Context) -> Service:
    """For nodes, which balance over all embedders that are ready."""
    more = {SCRAPED: "true"}
    return Service(
        metadata=meta(resource, context, of(resource, "embedder"), Component.EMBEDDER, more=more),
        spec=ServiceSpec(
            clusterIP="None",
            selector=selector(resource, Component.EMBEDDER),
            ports=[_port("grpc", ports.EMBEDDER), _port("metrics", ports.METRICS)],
        ),
    )


def _node_ports(resource: EmbeddingCache, *names: str) -> list[ServicePort]:
    found = ports.node_ports(resource)
    numbers = {"grpc": found.grpc, "http": found.http, "metrics": found.metrics}
    return [_port(name, numbers[name]) for name in names]


def _port(name: str, number: int) -> ServicePort:
    return ServicePort(name=name, port=number, targetPort=number, protocol="TCP")
