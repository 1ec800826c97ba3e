"""EmbeddingCache v1alpha1: what an admin asks for. The CRD in crds/ is generated from it.

Only leaves have defaults, so that a part that is absent stays absent in the cluster and its
defaults can still change. Every leaf says its unit, what null means and why its default. The
parts live in `api_model`, `api_nodes`, `api_embedder`, `api_policies`, `api_pods` and
`api_status`.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field

from embedkeep.runs import NAME
from embedkeep_operator.api_embedder import Embedder
from embedkeep_operator.api_model import Model
from embedkeep_operator.api_nodes import Nodes
from embedkeep_operator.api_policies import Monitoring, Security, Similarity, Tuning, Warmup
from embedkeep_operator.api_status import Status
from embedkeep_operator.fields import Label, Part, Rule, unchanging

GROUP: Final = "embedkeep.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "EmbeddingCache"
MAX_NAME: Final = 40
"""Longest name, characters: what is appended to it for owned objects must stay a DNS label."""


class UpgradePolicy(StrEnum):
    """What becomes of images that the resource leaves out."""

    MANUAL = "Manual"
    AUTOMATIC = "Automatic"


class Spec(Part):
    """What is wanted."""

    paused: bool = False
    """The operator leaves everything as it is."""
    model: Model
    """The model that the cache stands in front of."""
    nodes: Nodes | None = None
    """The cache nodes. Absent: one, with the defaults."""
    embedder: Embedder
    """What computes what is not cached."""
    similarity: Similarity | None = None
    """Answers for near misses. Absent: none."""
    warmup: Warmup | None = None
    """Embedding ahead of time. Absent: none."""
    tuning: Tuning | None = None
    """Absent: off."""
    security: Security | None = None
    """Absent: plain text, and everybody may call."""
    upgrade_policy: UpgradePolicy = UpgradePolicy.MANUAL
    """Manual: an image left out resolves once and stays. Automatic: follows the operator."""
    monitoring: Monitoring | None = None
    """Absent: none."""

    rules = (
        unchanging("nodes.storage", "nodes.storage cannot be changed: make a new resource"),
        Rule(
            cel="(has(self.nodes) ? self.nodes.shards : 1)"
            " == (has(oldSelf.nodes) ? oldSelf.nodes.shards : 1)",
            message="nodes.shards cannot be changed yet: make a new resource",
        ),
    )


class Metadata(Part):
    """As in every Kubernetes object; what the API server adds is ignored."""

    name: Annotated[str, Field(pattern=NAME, min_length=1, max_length=MAX_NAME)]
    """A DNS label of at most 40 characters; an alias of the model for callers."""
    namespace: Label | None = None
    """Null: the one that the command is run for."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Of the resource itself."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Of the resource itself."""


class EmbeddingCache(Part):
    """An embedding cache in front of one model."""

    api_version: Literal["embedkeep.dev/v1alpha1"]
    """embedkeep.dev/v1alpha1."""
    kind: Literal["EmbeddingCache"]
    """EmbeddingCache."""
    metadata: Metadata
    """Name and the like."""
    spec: Spec
    """What is wanted."""
    status: Status | None = None
    """What the operator saw."""
