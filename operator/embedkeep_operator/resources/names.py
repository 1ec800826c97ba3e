"""What the objects of a cache are called, and what they all carry."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from lightkube.models.meta_v1 import LabelSelector, ObjectMeta, OwnerReference

from embedkeep_operator.api import API_VERSION, KIND, EmbeddingCache
from embedkeep_operator.api_nodes import Nodes
from embedkeep_operator.resources.context import Context

NAME: Final = "app.kubernetes.io/name"
INSTANCE: Final = "app.kubernetes.io/instance"
COMPONENT: Final = "app.kubernetes.io/component"
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
SHARD: Final = "embedkeep.dev/shard"
SCRAPED: Final = "embedkeep.dev/scraped"
"""On the Services whose endpoints Prometheus reads; the others have the same pods."""
TEMPLATE_HASH: Final = "embedkeep.dev/template-hash"
PRODUCT: Final = "embedkeep"
OPERATOR: Final = "embedkeep-operator"


class Component(StrEnum):
    """Which of a cache's workloads."""

    NODE = "node"
    EMBEDDER = "embedder"
    PREDICTOR = "predictor"


def of(resource: EmbeddingCache, suffix: str = "") -> str:
    """The name of an owned object: that of the resource, with *suffix* behind it."""
    return f"{resource.metadata.name}-{suffix}" if suffix else resource.metadata.name


def shard_of(resource: EmbeddingCache, shard: int) -> str:
    """The name of a shard's StatefulSet, and of its PodDisruptionBudget."""
    return of(resource, f"shard-{shard}")


def shards(resource: EmbeddingCache) -> range:
    """Numbers of the shards."""
    return range((resource.spec.nodes or Nodes()).shards)


def pods_of(resource: EmbeddingCache, shard: int) -> tuple[str, ...]:
    """Names of a shard's pods: whichever of them is the primary."""
    replicas = (resource.spec.nodes or Nodes()).replicas_per_shard
    return tuple(f"{shard_of(resource, shard)}-{ordinal}" for ordinal in range(1 + replicas))


def host_of(context: Context, service: str) -> str:
    """The full DNS name of one of the Services: with so many dots it is looked up at once."""
    return f"{service}.{context.namespace}.svc.{context.cluster_domain}"


def pod_host_of(resource: EmbeddingCache, context: Context, pod: str) -> str:
    """The full DNS name of a node's pod."""
    return f"{pod}.{host_of(context, of(resource, 'nodes'))}"


def selector(
    resource: EmbeddingCache, component: Component | None, *, shard: int | None = None
) -> dict[str, str]:
    """Labels that only the pods of this component have, or of this shard."""
    found = {NAME: PRODUCT, INSTANCE: resource.metadata.name}
    if component is not None:
        found[COMPONENT] = component.value
    if shard is not None:
        found[SHARD] = str(shard)
    return found


def selecting(
    resource: EmbeddingCache, component: Component | None, *, shard: int | None = None
) -> LabelSelector:
    """`selector`, as most kinds want it."""
    return LabelSelector(matchLabels=selector(resource, component, shard=shard))


def labels(
    resource: EmbeddingCache, component: Component | None, *, shard: int | None = None
) -> dict[str, str]:
    """What an owned object carries; of no component: it serves several."""
    return {**selector(resource, component, shard=shard), MANAGED_BY: OPERATOR}


def meta(  # noqa: PLR0913  # what tells one object from another
    resource: EmbeddingCache,
    context: Context,
    name: str,
    component: Component | None = None,
    *,
    shard: int | None = None,
    more: Mapping[str, str] | None = None,
) -> ObjectMeta:
    """Of an owned object.

    Args:
        more: Labels beside those of all.
    """
    return ObjectMeta(
        name=name,
        namespace=context.namespace,
        labels={**(more or {}), **labels(resource, component, shard=shard)},
        ownerReferences=[owner(resource, context)],
    )


def owner(resource: EmbeddingCache, context: Context) -> OwnerReference:
    """Who is asked before the object is, and with whom it goes."""
    return OwnerReference(
        apiVersion=API_VERSION,
        kind=KIND,
        name=resource.metadata.name,
        uid=context.uid,
        controller=True,
    )
