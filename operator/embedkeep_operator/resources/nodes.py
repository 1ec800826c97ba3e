"""The shards: pods with a node and a Valkey in each."""

from typing import Final

from lightkube.models.apps_v1 import (
    StatefulSetPersistentVolumeClaimRetentionPolicy,
    StatefulSetSpec,
    StatefulSetUpdateStrategy,
)
from lightkube.models.core_v1 import (
    Container,
    ContainerPort,
    EnvVar,
    PersistentVolumeClaim,
    PersistentVolumeClaimSpec,
    PodTemplateSpec,
    VolumeResourceRequirements,
)
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.models.policy_v1 import PodDisruptionBudgetSpec
from lightkube.resources.apps_v1 import StatefulSet
from lightkube.resources.policy_v1 import PodDisruptionBudget

from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.api_nodes import Memory, Nodes
from embedkeep_operator.api_pods import PodTemplate
from embedkeep_operator.resources import ports
from embedkeep_operator.resources.amounts import node_resources, valkey_resources, written
from embedkeep_operator.resources.configs import (
    NODE_FILE,
    VALKEY_DATA,
    VALKEY_START,
    node_files,
    valkey_files,
)
from embedkeep_operator.resources.context import Context
from embedkeep_operator.resources.names import (
    Component,
    meta,
    of,
    pod_host_of,
    pods_of,
    selecting,
    selector,
    shard_of,
)
from embedkeep_operator.resources.pods import (
    CONFIG,
    LIVE,
    SCRATCH,
    SECRETS,
    TUNED,
    apart_from_shard,
    config_volume,
    environment,
    from_field,
    leaving,
    live,
    mounted,
    pod,
    probe,
    ready,
    restricted,
    scratch_volume,
    secrets_volume,
    template,
)
from embedkeep_operator.resources.security import keys_of_node, keys_of_valkey

NODE: Final = "node"
VALKEY: Final = "valkey"
"""Names of the containers."""
_DATA: Final = "valkey-data"
_MEMBER: Final = "POD_NAME"


def build_shard(resource: EmbeddingCache, context: Context, shard: int) -> StatefulSet:
    """One shard. Its pods are replaced by the operator, which knows who is the primary."""
    nodes = resource.spec.nodes or Nodes()
    return StatefulSet(
        metadata=meta(resource, context, shard_of(resource, shard), Component.NODE, shard=shard),
        spec=StatefulSetSpec(
            replicas=len(pods_of(resource, shard)),
            serviceName=of(resource, "nodes"),
            podManagementPolicy="Parallel",
            updateStrategy=StatefulSetUpdateStrategy(type="OnDelete"),
            revisionHistoryLimit=2,
            persistentVolumeClaimRetentionPolicy=StatefulSetPersistentVolumeClaimRetentionPolicy(
                whenDeleted="Delete", whenScaled="Delete"
            ),
            selector=selecting(resource, Component.NODE, shard=shard),
            volumeClaimTemplates=_claims(resource, nodes, shard) or None,
            template=shard_template(resource, context, shard),
        ),
    )


def build_budget(resource: EmbeddingCache, context: Context, shard: int) -> PodDisruptionBudget:
    """One pod of a shard at a time may be taken away; one that is not ready stands in nobody's way.

    A shard of one pod may lose it: its entries are computed again.
    """
    return PodDisruptionBudget(
        metadata=meta(resource, context, shard_of(resource, shard), Component.NODE, shard=shard),
        spec=PodDisruptionBudgetSpec(
            maxUnavailable=1,
            unhealthyPodEvictionPolicy="AlwaysAllow",
            selector=selecting(resource, Component.NODE, shard=shard),
        ),
    )


def shard_template(resource: EmbeddingCache, context: Context, shard: int) -> PodTemplateSpec:
    """Pods of one shard."""
    nodes = resource.spec.nodes or Nodes()
    spec = pod(
        resource,
        context,
        nodes,
        containers=[
            _node(resource, context, nodes),
            _valkey(resource, context, nodes),
        ],
        volumes=[
            config_volume("config", of(resource, "node")),
            config_volume("tuned", of(resource, "tuned")),
            secrets_volume("secrets", keys_of_node(resource)),
            scratch_volume("tmp"),
            config_volume("valkey-config", of(resource, "valkey")),
            secrets_volume("valkey-secrets", keys_of_valkey(resource)),
            *([] if _is_stored(nodes) else [scratch_volume(_DATA)]),
        ],
        affinity=apart_from_shard(resource, shard) if nodes.replicas_per_shard else None,
        spread=Component.NODE,
    )
    return template(
        resource,
        spec,
        Component.NODE,
        nodes.pod_template or PodTemplate(),
        read_once={**node_files(resource, context), **valkey_files(resource)},
        shard=shard,
    )


def _node(resource: EmbeddingCache, context: Context, nodes: Nodes) -> Container:
    at = ports.node_ports(resource)
    return Container(
        name=NODE,
        image=nodes.image or context.images.node,
        args=["node", "--config", str(CONFIG / NODE_FILE), "--member", f"$({_MEMBER})"],
        env=environment(
            nodes.pod_template or PodTemplate(), [from_field(_MEMBER, "metadata.name")]
        ),
        ports=[
            ContainerPort(name="grpc", containerPort=at.grpc, protocol="TCP"),
            ContainerPort(name="http", containerPort=at.http, protocol="TCP"),
            ContainerPort(name="metrics", containerPort=at.metrics, protocol="TCP"),
        ],
        resources=node_resources(nodes.memory or Memory(), nodes.resources),
        startupProbe=probe(LIVE, at.metrics, period_s=1, failures=60),
        readinessProbe=ready(at.metrics),
        livenessProbe=live(at.metrics),
        lifecycle=leaving(),
        securityContext=restricted(),
        terminationMessagePolicy="FallbackToLogsOnError",
        volumeMounts=[
            mounted("config", CONFIG),
            mounted("tuned", TUNED),
            mounted("secrets", SECRETS),
            mounted("tmp", SCRATCH, writable=True),
        ],
    )


def _valkey(resource: EmbeddingCache, context: Context, nodes: Nodes) -> Container:
    # No probes: a node leaves a Valkey alone that does not answer, and what that holds is not to be
    # thrown away for it. One that ends is started again.
    name = from_field(_MEMBER, "metadata.name")
    host = pod_host_of(resource, context, f"$({_MEMBER})")
    return Container(
        name=VALKEY,
        image=nodes.valkey_image or context.images.valkey,
        command=["sh", str(CONFIG / VALKEY_START)],
        env=environment(
            nodes.pod_template or PodTemplate(),
            [
                name,
                from_field("POD_IP", "status.podIP"),
                EnvVar(name="POD_HOSTNAME", value=host),
            ],
        ),
        ports=[
            ContainerPort(name="valkey", containerPort=ports.VALKEY, protocol="TCP"),
            ContainerPort(name="valkey-bus", containerPort=ports.VALKEY_BUS, protocol="TCP"),
        ],
        resources=valkey_resources(nodes.memory or Memory(), nodes.valkey_resources),
        securityContext=restricted(),
        terminationMessagePolicy="FallbackToLogsOnError",
        volumeMounts=[
            mounted("valkey-config", CONFIG),
            mounted("valkey-secrets", SECRETS),
            mounted(_DATA, VALKEY_DATA, writable=True),
        ],
    )


def _is_stored(nodes: Nodes) -> bool:
    return nodes.storage is not None and nodes.storage.size is not None


def _claims(resource: EmbeddingCache, nodes: Nodes, shard: int) -> list[PersistentVolumeClaim]:
    """They cannot be changed, so they carry nothing that might."""
    storage = nodes.storage
    if storage is None or storage.size is None:
        return []
    return [
        PersistentVolumeClaim(
            apiVersion="v1",
            kind="PersistentVolumeClaim",
            metadata=ObjectMeta(name=_DATA, labels=selector(resource, Component.NODE, shard=shard)),
            spec=PersistentVolumeClaimSpec(
                accessModes=["ReadWriteOnce"],
                storageClassName=storage.storage_class_name,
                resources=VolumeResourceRequirements(requests={"storage": written(storage.size)}),
            ),
        )
    ]
