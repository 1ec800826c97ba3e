"""The status of an EmbeddingCache: what the operator reports. Nobody else writes it."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from embedkeep_operator.fields import Part


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(Part):
    """One thing that is so, or not, or not known; of the shape that kstatus reads."""

    type: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]*$", max_length=316)]
    """Ready, Reconciling, Degraded, Stalled, TuningFrozen, ModelDrift, UpdateAvailable."""
    status: ConditionStatus
    """True, False or Unknown."""
    reason: Annotated[
        str, Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=1024)
    ]
    """One word for programs."""
    message: Annotated[str, Field(max_length=32768)]
    """For people: what is wrong and what would help."""
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When the status changed last."""
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the spec that this was seen with."""


class Ready(Part):
    """How many of something are there."""

    wanted: Annotated[int, Field(ge=0)]
    """How many the spec asks for."""
    ready: Annotated[int, Field(ge=0)]
    """How many can answer."""


class Tuned(Part):
    """The last decision of the tuning. Written only with a decision."""

    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """Cosine from which a near hit is served."""
    warmup_budget: Annotated[float, Field(ge=0)] | None = None
    """Device-seconds an hour for warming up."""
    reason: Annotated[str, Field(max_length=1024)] | None = None
    """Why, in one word for programs."""
    evidence: Annotated[
        dict[str, Annotated[str, Field(max_length=256)]], Field(max_length=32)
    ] = Field(default_factory=dict)  # fmt: skip
    """The observations behind it, by name."""
    decided_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    """When."""


class Status(Part):
    """What the operator saw last."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the spec that this status answers."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=32,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
        ),
    ] = ()
    """What is so, by type."""
    endpoint: Annotated[str, Field(max_length=512)] | None = None
    """gRPC target for clients."""
    shards: Ready | None = None
    """Shards whose slots are all served."""
    nodes: Ready | None = None
    """Cache nodes that can answer."""
    model_fingerprint: Annotated[str, Field(max_length=256)] | None = None
    """Of the model that entries are answered for."""
    tuning: Tuned | None = None
    """The last decision of the tuning."""
