"""The embedders: pods that compute vectors, or that ask somebody else's for them."""

from typing import Final

from lightkube.models.apps_v1 import (
    DeploymentSpec,
    DeploymentStrategy,
    RollingUpdateDeployment,
)
from lightkube.models.core_v1 import (
    Container,
    ContainerPort,
    EnvVar,
    ImageVolumeSource,
    PersistentVolumeClaimVolumeSource,
    PodTemplateSpec,
    ResourceRequirements,
    Toleration,
    Volume,
    VolumeMount,
)
from lightkube.resources.apps_v1 import Deployment

from embedkeep.config import Backend
from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.api_embedder import ManagedEmbedder, Rollout
from embedkeep_operator.api_nodes import Nodes
from embedkeep_operator.api_pods import PodSettings, PodTemplate
from embedkeep_operator.resources import ports
from embedkeep_operator.resources.amounts import embedder_resources, upstream_resources
from embedkeep_operator.resources.configs import EMBEDDER_FILE, MODEL_CACHE, embedder_files
from embedkeep_operator.resources.context import Context
from embedkeep_operator.resources.names import Component, meta, of, selecting
from embedkeep_operator.resources.pods import (
    CONFIG,
    READY,
    SCRATCH,
    SECRETS,
    config_volume,
    environment,
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
from embedkeep_operator.resources.security import keys_of_embedder

EMBEDDER: Final = "embedder"
"""Name of the container."""
LOADING_S: Final = 1800
"""How long a model may take to be downloaded, converted and loaded."""
PROGRESS_S: Final = LOADING_S + 300
"""From when on a rollout is called stuck: later than its pods are."""
_MODEL: Final = "/model"


def build_embedder(resource: EmbeddingCache, context: Context) -> Deployment:
    """All embedders of a cache.

    How many is left out where somebody else may scale them: there is one at first.
    """
    managed = resource.spec.embedder.managed
    return Deployment(
        metadata=meta(resource, context, of(resource, "embedder"), Component.EMBEDDER),
        spec=DeploymentSpec(
            replicas=managed.replicas if managed is not None else 1,
            revisionHistoryLimit=2,
            progressDeadlineSeconds=PROGRESS_S,
            strategy=_strategy(managed),
            selector=selecting(resource, Component.EMBEDDER),
            template=embedder_template(resource, context),
        ),
    )


def _strategy(managed: ManagedEmbedder | None) -> DeploymentStrategy:
    """Replace frees a device before the next pod asks for it. What holds none is never missing."""
    replace = managed is not None and managed.rollout is Rollout.REPLACE
    return DeploymentStrategy(
        type="RollingUpdate",
        rollingUpdate=RollingUpdateDeployment(
            maxSurge=0 if replace else 1, maxUnavailable=1 if replace else 0
        ),
    )


def embedder_template(resource: EmbeddingCache, context: Context) -> PodTemplateSpec:
    """Pods of embedders. Those that only ask somebody else's are set up as the nodes' pods are."""
    managed = resource.spec.embedder.managed
    settings: PodSettings = managed or resource.spec.nodes or Nodes()
    chosen = settings.pod_template or PodTemplate()
    volumes, mounts = _model_volumes(resource)
    secrets = keys_of_embedder(resource)
    if secrets:
        volumes.append(secrets_volume("secrets", secrets))
        mounts.append(mounted("secrets", SECRETS))
    container = Container(
        name=EMBEDDER,
        image=settings.image or _image(managed, context),
        args=["embedder", "--config", str(CONFIG / EMBEDDER_FILE)],
        env=environment(chosen, [EnvVar(name="HOME", value=str(SCRATCH))]),
        ports=[
            ContainerPort(name="grpc", containerPort=ports.EMBEDDER, protocol="TCP"),
            ContainerPort(name="metrics", containerPort=ports.METRICS, protocol="TCP"),
        ],
        resources=_resources(managed),
        startupProbe=probe(READY, ports.METRICS, period_s=2, failures=LOADING_S // 2),
        readinessProbe=ready(ports.METRICS),
        livenessProbe=live(ports.METRICS),
        lifecycle=leaving(),
        securityContext=restricted(),
        terminationMessagePolicy="FallbackToLogsOnError",
        volumeMounts=[
            mounted("config", CONFIG),
            mounted("tmp", SCRATCH, writable=True),
            *mounts,
        ],
    )
    spec = pod(
        resource,
        context,
        settings,
        containers=[container],
        volumes=[
            config_volume("config", of(resource, "embedder")),
            scratch_volume("tmp"),
            *volumes,
        ],
        spread=Component.EMBEDDER,
        tolerations=_tolerations(managed),
    )
    return template(
        resource,
        spec,
        Component.EMBEDDER,
        chosen,
        read_once=embedder_files(resource),
    )


def _image(managed: ManagedEmbedder | None, context: Context) -> str:
    if managed is None:
        return context.images.node
    if managed.backend is Backend.TORCH:
        return context.images.embedder
    return context.images.embedder_cpu


def _resources(managed: ManagedEmbedder | None) -> ResourceRequirements:
    if managed is None:
        return upstream_resources()
    return embedder_resources(managed.gpu, managed.resources)


def _tolerations(managed: ManagedEmbedder | None) -> list[Toleration]:
    """Hosts with accelerators are mostly tainted with the resource's name."""
    if managed is None or managed.gpu is None:
        return []
    return [Toleration(key=managed.gpu.resource, operator="Exists", effect="NoSchedule")]


def _model_volumes(resource: EmbeddingCache) -> tuple[list[Volume], list[VolumeMount]]:
    """Where the model's files are, beside what is in the image."""
    source = resource.spec.model.source
    if resource.spec.embedder.managed is None or source is None:
        return [], []
    if source.hub is not None and (claim := source.hub.cache_claim) is not None:
        kept = PersistentVolumeClaimVolumeSource(claimName=claim)
        volume = Volume(name="model-cache", persistentVolumeClaim=kept)
        return [volume], [mounted("model-cache", MODEL_CACHE, writable=True)]
    if (given := source.volume) is None:
        return [], []
    mount = VolumeMount(name="model", mountPath=_MODEL, readOnly=True)
    if (held := given.persistent_volume_claim) is not None:
        at = PersistentVolumeClaimVolumeSource(claimName=held.claim_name, readOnly=True)
        return [Volume(name="model", persistentVolumeClaim=at)], [mount]
    assert given.image is not None  # noqa: S101  # exactly one of the two, says the resource's type
    image = ImageVolumeSource(reference=given.image.reference)
    return [Volume(name="model", image=image)], [mount]
