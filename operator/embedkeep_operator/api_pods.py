"""The parts of a resource that shape its pods. Nothing here matters outside Kubernetes."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from embedkeep_operator.fields import (
    Key,
    ObjectName,
    Part,
    Rule,
    Text,
    each_name_once,
    exactly_one,
    there,
)

LabelValue = Annotated[
    str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")
]
Labels = Annotated[dict[str, LabelValue], Field(max_length=64)]
Amount = Annotated[
    str,
    BeforeValidator(lambda given: str(given) if type(given) is int else given),
    Field(
        max_length=32,
        pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$",
        json_schema_extra={"x-kubernetes-int-or-string": True},
    ),
]


class KeyRef(Part):
    """One key of an object in the same namespace."""

    name: ObjectName
    """Name of the object."""
    key: Key
    """Key in it."""


class ImagePullSecret(Part):
    """A Secret with registry credentials."""

    name: ObjectName
    """Name of the Secret."""


class Resources(Part):
    """Compute resources of one container."""

    requests: Annotated[dict[str, Amount], Field(max_length=16)] = Field(default_factory=dict)
    """What the scheduler sets aside, by resource. Empty: what the operator works out."""
    limits: Annotated[dict[str, Amount], Field(max_length=16)] = Field(default_factory=dict)
    """What the container may not exceed, by resource. Empty: what the operator works out."""


class TolerationOperator(StrEnum):
    """How a toleration compares."""

    EQUAL = "Equal"
    EXISTS = "Exists"


class TaintEffect(StrEnum):
    """What a taint does to pods that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(Part):
    """Lets pods run on nodes with a taint."""

    key: Annotated[str, Field(max_length=316)] | None = None
    """Key of the taint. Null: every key, with operator Exists."""
    operator: TolerationOperator = TolerationOperator.EQUAL
    """Equal compares the value, Exists does not."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """Value of the taint, for Equal."""
    effect: TaintEffect | None = None
    """Effect that is tolerated. Null: all."""
    toleration_seconds: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """How long NoExecute is tolerated, seconds. Null: for ever."""


class EnvSource(Part):
    """Where a variable's value is read from."""

    secret_key_ref: KeyRef | None = None
    """A key of a Secret."""
    config_map_key_ref: KeyRef | None = None
    """A key of a ConfigMap."""

    rules = (exactly_one("secret_key_ref", "config_map_key_ref"),)


class EnvVar(Part):
    """An environment variable, for example of a proxy or a certificate authority."""

    name: Annotated[str, Field(pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$", max_length=253)]
    """Name of the variable."""
    value: Annotated[str, Field(max_length=4096)] | None = None
    """Its value. Null: empty, or what valueFrom says."""
    value_from: EnvSource | None = None
    """Where to read it. Absent: value counts."""

    rules = (
        Rule(
            cel=f"!({there('value')} && {there('valueFrom')})",
            message="give at most one of value and valueFrom",
            check=lambda part: part.value is None or part.value_from is None,
        ),
    )


class PodTemplate(Part):
    """What the pods get beside what the operator sets."""

    labels: Labels = Field(default_factory=dict)
    """Added to the pods' labels; the operator's own win."""
    annotations: Annotated[
        dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=64)
    ] = Field(default_factory=dict)
    """Added to the pods' annotations."""
    node_selector: Labels = Field(default_factory=dict)
    """Labels that a Kubernetes node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Taints that the pods tolerate."""
    affinity: Annotated[
        dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
    ] = Field(default_factory=dict)
    """A Kubernetes affinity, as in a Pod. Empty: a shard's pods keep apart, softly. Whatever it
    says, pods are spread over hosts and zones, softly."""
    runtime_class_name: ObjectName | None = None
    """Null: the cluster's default."""
    env: Annotated[
        tuple[EnvVar, ...],
        Field(
            max_length=64,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = ()
    """Variables for all containers. The operator's own win."""

    rules = (each_name_once("env"),)


class PodSettings(Part):
    """What a workload says about its pods."""

    image: Text | None = None
    """Image of embedkeep. Null: the operator's own release, resolved once; see upgradePolicy."""
    image_pull_secrets: Annotated[tuple[ImagePullSecret, ...], Field(max_length=16)] = ()
    """Secrets for private registries."""
    priority_class_name: ObjectName | None = None
    """Null: the cluster's default."""
    resources: Resources | None = None
    """Of the main container. Absent: worked out from the other fields."""
    pod_template: PodTemplate | None = None
    """Labels, scheduling and variables. Absent: none beside the operator's."""
