"""What all pods have in common: who they run as, what they mount, where they may go.

All of them keep to the restricted Pod Security Standard, write only where a volume is mounted, and
hold no token of the API server. Secrets are mounted by the kubelet, only the keys that are read,
as /secrets/<Secret>/<key>; what changes in them is read again, so it is no part of the template's
hash. What a process reads once, its config, is.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec
from lightkube.models.core_v1 import (
    Affinity,
    Capabilities,
    ConfigMapKeySelector,
    ConfigMapVolumeSource,
    Container,
    EmptyDirVolumeSource,
    EnvVar,
    EnvVarSource,
    HTTPGetAction,
    KeyToPath,
    Lifecycle,
    LifecycleHandler,
    LocalObjectReference,
    ObjectFieldSelector,
    PodAffinityTerm,
    PodAntiAffinity,
    PodSecurityContext,
    PodSpec,
    PodTemplateSpec,
    Probe,
    ProjectedVolumeSource,
    SeccompProfile,
    SecretKeySelector,
    SecretProjection,
    SecurityContext,
    SleepAction,
    Toleration,
    TopologySpreadConstraint,
    Volume,
    VolumeMount,
    VolumeProjection,
    WeightedPodAffinityTerm,
)
from lightkube.models.meta_v1 import ObjectMeta

from embedkeep.errors import InvalidConfig
from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.api_pods import EnvSource, PodSettings, PodTemplate
from embedkeep_operator.api_pods import Toleration as Tolerated
from embedkeep_operator.resources.context import Context
from embedkeep_operator.resources.names import (
    TEMPLATE_HASH,
    Component,
    labels,
    of,
    selecting,
)

SECRETS: Final = Path("/secrets")
CONFIG: Final = Path("/etc/embedkeep")
TUNED: Final = Path("/etc/embedkeep-tuned")
"""Apart, since what lies in it is no part of the template's hash."""
SCRATCH: Final = Path("/tmp")  # noqa: S108  # a volume of the container's own
USER: Final = 65532
"""Of no name, as in the images."""
GRACE_S: Final = 60
"""From the order to stop until the kubelet ends it: calls drain for 20 s, and a primary hands
over."""
LEAVE_S: Final = 5
"""Before a server is told to stop: until then those who send calls have heard that it goes."""
LIVE: Final = "/livez"
READY: Final = "/readyz"
_READABLE: Final = 0o440
"""By the pod's group."""
_HOST: Final = "kubernetes.io/hostname"
_ZONE: Final = "topology.kubernetes.io/zone"

Keys = Mapping[str, Iterable[str]]
"""Keys that are mounted, by the name of their Secret."""


def template(  # noqa: PLR0913  # what differs between the components
    resource: EmbeddingCache,
    spec: PodSpec,
    component: Component,
    settings: PodTemplate,
    *,
    read_once: Mapping[str, str],
    shard: int | None = None,
) -> PodTemplateSpec:
    """Pods of one component.

    Args:
        read_once: Files that the containers read as they start, by name: a change rolls the pods.
    """
    made = PodTemplateSpec(
        metadata=ObjectMeta(
            labels={**settings.labels, **labels(resource, component, shard=shard)},
            annotations=dict(settings.annotations),
        ),
        spec=spec,
    )
    said = json.dumps([msgspec.to_builtins(made), dict(read_once)], sort_keys=True)
    digest = hashlib.sha256(said.encode()).hexdigest()[:16]
    assert made.metadata is not None  # noqa: S101  # as made above
    made.metadata.annotations = {**settings.annotations, TEMPLATE_HASH: digest}
    return made


def pod(  # noqa: PLR0913  # what differs between the components
    resource: EmbeddingCache,
    context: Context,
    settings: PodSettings,
    *,
    containers: list[Container],
    volumes: list[Volume],
    affinity: Affinity | None = None,
    spread: Component | None = None,
    tolerations: Iterable[Toleration] = (),
    restart: str = "Always",
) -> PodSpec:
    """What runs in a pod, and where it may.

    Args:
        affinity: Ours, where the user gives none.
        spread: The pods of this component, over hosts and zones; softly.
        tolerations: Beside the user's.

    Raises:
        InvalidConfig: The affinity is none.
    """
    chosen = settings.pod_template or PodTemplate()
    secrets = [*context.pull_secrets, *(secret.name for secret in settings.image_pull_secrets)]
    return PodSpec(
        containers=containers,
        volumes=volumes,
        serviceAccountName=of(resource),
        automountServiceAccountToken=False,
        enableServiceLinks=False,
        restartPolicy=restart,
        terminationGracePeriodSeconds=GRACE_S,
        imagePullSecrets=[LocalObjectReference(name=name) for name in dict.fromkeys(secrets)]
        or None,
        priorityClassName=settings.priority_class_name,
        runtimeClassName=chosen.runtime_class_name,
        nodeSelector=dict(chosen.node_selector) or None,
        tolerations=[*map(_toleration, chosen.tolerations), *tolerations] or None,
        affinity=_affinity(chosen) or affinity,
        topologySpreadConstraints=_spread(resource, spread) if spread is not None else None,
        securityContext=PodSecurityContext(
            runAsNonRoot=True,
            runAsUser=USER,
            runAsGroup=USER,
            fsGroup=USER,
            fsGroupChangePolicy="OnRootMismatch",
            seccompProfile=SeccompProfile(type="RuntimeDefault"),
        ),
    )


def restricted() -> SecurityContext:
    """Of every container."""
    return SecurityContext(
        allowPrivilegeEscalation=False,
        capabilities=Capabilities(drop=["ALL"]),
        readOnlyRootFilesystem=True,
    )


def apart_from_shard(resource: EmbeddingCache, shard: int) -> Affinity:
    """Softly: no two pods of a shard on one host, so that not both copies are lost with it."""
    term = PodAffinityTerm(
        topologyKey=_HOST, labelSelector=selecting(resource, Component.NODE, shard=shard)
    )
    return Affinity(
        podAntiAffinity=PodAntiAffinity(
            preferredDuringSchedulingIgnoredDuringExecution=[
                WeightedPodAffinityTerm(weight=100, podAffinityTerm=term)
            ]
        )
    )


def _affinity(given: PodTemplate) -> Affinity | None:
    if not given.affinity:
        return None
    try:
        return msgspec.convert(given.affinity, Affinity)
    except msgspec.ValidationError as error:
        raise InvalidConfig(
            f"is no affinity of a Pod: {error}", field="podTemplate.affinity"
        ) from error


def _spread(resource: EmbeddingCache, component: Component) -> list[TopologySpreadConstraint]:
    return [
        TopologySpreadConstraint(
            maxSkew=1,
            topologyKey=key,
            whenUnsatisfiable="ScheduleAnyway",
            labelSelector=selecting(resource, component),
        )
        for key in (_HOST, _ZONE)
    ]


def _toleration(given: Tolerated) -> Toleration:
    return Toleration(
        key=given.key,
        operator=given.operator.value,
        value=given.value,
        effect=given.effect.value if given.effect is not None else None,
        tolerationSeconds=given.toleration_seconds,
    )


def environment(settings: PodTemplate, own: Iterable[EnvVar] = ()) -> list[EnvVar] | None:
    """The user's variables and, over them, ours."""
    ours = list(own)
    taken = {variable.name for variable in ours}
    found = [
        EnvVar(name=each.name, value=each.value, valueFrom=_env_source(each.value_from))
        for each in settings.env
        if each.name not in taken
    ]
    # Ours first: what a user's variable says may refer to them.
    return [*ours, *found] or None


def _env_source(given: EnvSource | None) -> EnvVarSource | None:
    if given is None:
        return None
    if (secret := given.secret_key_ref) is not None:
        return EnvVarSource(secretKeyRef=SecretKeySelector(name=secret.name, key=secret.key))
    if (config := given.config_map_key_ref) is not None:
        return EnvVarSource(configMapKeyRef=ConfigMapKeySelector(name=config.name, key=config.key))
    return None


def from_field(name: str, path: str) -> EnvVar:
    """A variable with what the kubelet knows of the pod."""
    return EnvVar(
        name=name,
        valueFrom=EnvVarSource(fieldRef=ObjectFieldSelector(fieldPath=path, apiVersion="v1")),
    )


def secrets_volume(name: str, keys: Keys) -> Volume:
    """These keys of these Secrets, each at <Secret>/<key>."""
    return Volume(
        name=name,
        projected=ProjectedVolumeSource(
            defaultMode=_READABLE,
            sources=[
                VolumeProjection(
                    secret=SecretProjection(
                        name=secret,
                        items=[KeyToPath(key=key, path=f"{secret}/{key}") for key in sorted(found)],
                    )
                )
                for secret, found in sorted(keys.items())
            ],
        ),
    )


def config_volume(name: str, config_map: str) -> Volume:
    """All of a ConfigMap."""
    return Volume(
        name=name, configMap=ConfigMapVolumeSource(name=config_map, defaultMode=_READABLE)
    )


def scratch_volume(name: str) -> Volume:
    """Somewhere to write, gone with the pod."""
    return Volume(name=name, emptyDir=EmptyDirVolumeSource())


def mounted(name: str, path: Path, *, writable: bool = False) -> VolumeMount:
    """A volume in a container."""
    return VolumeMount(name=name, mountPath=str(path), readOnly=None if writable else True)


def probe(path: str, port: int, *, period_s: int, failures: int, timeout_s: int = 5) -> Probe:
    """Asked on the port for metrics, which knows neither certificates nor keys."""
    return Probe(
        httpGet=HTTPGetAction(path=path, port=port, scheme="HTTP"),
        periodSeconds=period_s,
        failureThreshold=failures,
        timeoutSeconds=timeout_s,
    )


def live(port: int) -> Probe:
    """It gets on with its work. Nothing but a restart helps one that has not for a minute."""
    return probe(LIVE, port, period_s=10, failures=6)


def ready(port: int) -> Probe:
    """It can answer."""
    return probe(READY, port, period_s=5, failures=2)


def leaving() -> Lifecycle:
    """Go on answering until nobody sends any more."""
    return Lifecycle(preStop=LifecycleHandler(sleep=SleepAction(seconds=LEAVE_S)))
