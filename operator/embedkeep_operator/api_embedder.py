"""What computes vectors that are not cached: embedders of our own, or somebody else's."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from embedkeep.config import Backend, Dtype, Quantization
from embedkeep_operator.api_model import TokenRef
from embedkeep_operator.api_pods import PodSettings
from embedkeep_operator.fields import Part, Rule, exactly_one, there


class Rollout(StrEnum):
    """How embedder pods are replaced."""

    REPLACE = "Replace"
    SURGE = "Surge"


class Gpu(Part):
    """Accelerators of one embedder."""

    resource: Annotated[str, Field(pattern=r"^[a-z0-9.-]+/[A-Za-z0-9_.-]+$", max_length=253)] = (
        "nvidia.com/gpu"
    )
    """Name of the extended resource."""
    count: Annotated[int, Field(ge=1, le=16)] = 1
    """How many."""


class Batch(Part):
    """How inputs are put together; sizes follow from measured time."""

    target_ms: Annotated[int, Field(ge=1, le=10_000)] = 50
    """What a batch with a waiting person in it should take, ms: hardly felt, and long enough to
    fill a batch."""
    background_target_ms: Annotated[int, Field(ge=1, le=10_000)] = 20
    """The same for background work, ms: what a person may have to wait for it to end."""


class ManagedEmbedder(PodSettings):
    """Embedders that the operator runs."""

    replicas: Annotated[int, Field(ge=0, le=64)] | None = None
    """How many. Null: one at first, then left to who else scales them."""
    backend: Backend = Backend.ONNX
    """onnx: CPU, float32, the same bits in every batch. torch: any sentence-transformers model."""
    device: Literal["cuda", "mps", "cpu"] | None = None
    """For torch. Null: the best there is."""
    dtype: Dtype = Dtype.FLOAT32
    """What the model computes in; the halves need torch on a GPU. Answers are float32."""
    quantization: Quantization = Quantization.NONE
    """Int8 multiplies as integers on the CPU: faster, and no longer quite the same model. Needs
    backend onnx, and the same kind of CPU for all embedders of a cache."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads. Null: one a core that the process may use."""
    gpu: Gpu | None = None
    """Accelerators a pod. Absent: none."""
    rollout: Rollout = Rollout.REPLACE
    """Replace frees the GPU first; Surge needs a second one, and never has less than all."""
    batch: Batch | None = None
    """Batch times. Absent: their defaults."""

    rules = (
        Rule(
            cel="self.dtype == 'float32' || self.backend == 'torch'",
            message="dtype: float16 and bfloat16 need backend torch",
            check=lambda part: part.dtype is Dtype.FLOAT32 or part.backend is Backend.TORCH,
        ),
        Rule(
            cel=f"!{there('device')} || self.backend == 'torch'",
            message="device: only backend torch chooses one",
            check=lambda part: part.device is None or part.backend is Backend.TORCH,
        ),
        Rule(
            cel="self.quantization == 'None' ||"
            " (self.backend == 'onnx' && self.dtype == 'float32')",
            message="quantization: Int8 needs backend onnx and dtype float32",
            check=lambda part: (
                part.quantization is Quantization.NONE
                or (part.backend is Backend.ONNX and part.dtype is Dtype.FLOAT32)
            ),
        ),
    )


class Protocol(StrEnum):
    """What an external embedder speaks."""

    OPENAI = "openai"
    TEI = "tei"


class ExternalEmbedder(Part):
    """An embedder that somebody else runs."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s/]+", max_length=1024)]
    """Base URL, with http or https."""
    protocol: Protocol
    """openai: POST /v1/embeddings. tei: POST /embed."""
    secret_ref: TokenRef | None = None
    """Bearer token. Absent: none is sent."""


class Embedder(Part):
    """What computes vectors that are not cached."""

    managed: ManagedEmbedder | None = None
    """Run by the operator."""
    external: ExternalEmbedder | None = None
    """Run by somebody else."""

    rules = (exactly_one("managed", "external"),)
