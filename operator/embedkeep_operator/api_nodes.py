"""The cache nodes, as the resource asks for them."""

from itertools import combinations
from typing import Annotated, Final

from pydantic import Field

from embedkeep_operator.api_pods import PodSettings, Resources
from embedkeep_operator.fields import (
    ObjectName,
    Part,
    Port,
    Quantity,
    Rule,
    Seconds,
    Text,
    different,
)


class Memory(Part):
    """How much a shard may hold."""

    l1: Annotated[int, Quantity("0", "256Gi")] = 256 << 20
    """Vectors in the node's own memory, bytes. 0: none."""
    valkey: Annotated[int, Quantity("4Mi", "1Ti")] = 1 << 30
    """maxmemory of the shard's Valkey, bytes; the least used entries go first. At most 70 % of its
    container's limit, which is worked out from it."""


class Storage(Part):
    """A claim template for each node. Absent or empty: memory only."""

    size: Annotated[int, Quantity("64Mi", "4Ti")] | None = None
    """Size of the claim. Null: no claim."""
    storage_class_name: ObjectName | None = None
    """Null: the cluster's default."""


class Ports(Part):
    """Ports of a node. Where several share a machine, the first one's: the others follow."""

    grpc: Port | None = None
    """Null: 50051 on Kubernetes, a free one for `embedkeep up`."""
    http: Port | None = None
    """OpenAI's and TEI's APIs. Null: 8080 on Kubernetes, a free one for `embedkeep up`."""
    metrics: Port | None = None
    """Null: 9090 on Kubernetes, a free one for `embedkeep up`."""

    rules = tuple(different(*pair) for pair in combinations(("grpc", "http", "metrics"), 2))


MAX_PODS: Final = 128
"""Of a cache. Each node knows all others."""


class Nodes(PodSettings):
    """The cache nodes: each a gRPC server with a Valkey beside it."""

    shards: Annotated[int, Field(ge=1, le=64)] = 1
    """Primaries that share the keys."""
    replicas_per_shard: Annotated[int, Field(ge=0, le=3)] = 0
    """Copies of each shard. 0, because a lost entry costs a computation and never an answer."""
    memory: Memory | None = None
    """Sizes. Absent: their defaults."""
    ttl: Seconds | None = None
    """Life of an entry: 45s, 90m, 12h, 30d. Null: until evicted; a model's answer does not age."""
    storage: Storage | None = None
    """A claim template; cannot be changed. Absent: memory only."""
    ports: Ports | None = None
    """Where nodes listen. Absent: as null in each."""
    valkey_image: Text | None = None
    """Image of Valkey. Null: the operator's default, resolved once; see upgradePolicy."""
    valkey_resources: Resources | None = None
    """Of Valkey's container. Absent: worked out from memory.valkey."""

    rules = (
        Rule(
            cel=f"self.shards * (1 + self.replicasPerShard) <= {MAX_PODS}",
            message=f"shards and replicasPerShard: at most {MAX_PODS} pods in all",
            check=lambda part: part.shards * (1 + part.replicas_per_shard) <= MAX_PODS,
        ),
    )
