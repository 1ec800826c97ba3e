"""Where the containers listen."""

from dataclasses import dataclass
from typing import Final

from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.api_nodes import Nodes
from embedkeep_operator.api_nodes import Ports as Wanted

GRPC: Final = 50051
HTTP: Final = 8080
METRICS: Final = 9090
EMBEDDER: Final = 50052
VALKEY: Final = 6379
VALKEY_BUS: Final = 16379
DNS: Final = (53, 5353)
"""Of a cluster's DNS as it is asked, and as OpenShift's pods for it listen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePorts:
    """Of a node."""

    grpc: int
    http: int
    metrics: int


def node_ports(resource: EmbeddingCache) -> NodePorts:
    """As the resource wants them."""
    wanted = (resource.spec.nodes or Nodes()).ports or Wanted()
    return NodePorts(
        grpc=wanted.grpc or GRPC,
        http=wanted.http or HTTP,
        metrics=wanted.metrics or METRICS,
    )
