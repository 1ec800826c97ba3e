"""What computes vectors that are not cached: embedders of our own, or somebody else's."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from embedkeep.config import Backend, Dtype, Protocol, Quantization
from embedkeep_operator.api_model import TokenRef
from embedkeep_operator.api_pods import PodSettings
from embedkeep_operator.fields import Key, ObjectName, Part, Rule, Seconds, exactly_one, there


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
    """What a batch with a waiting person in it should take at most, ms: hardly felt, and long
    enough to fill a batch. Half of it where more would hardly be quicker."""
    background_target_ms: Annotated[int, Field(ge=1, le=10_000)] = 20
    """The same for background work, ms: what a person may have to wait for it to end."""


class ManagedEmbedder(PodSettings):
    """Embedders that `embedkeep up` or the operator runs."""

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


class CaRef(Part):
    """A Secret's key that holds certificates of authorities, in PEM."""

    name: ObjectName
    """Name of the Secret."""
    key: Key = "ca.crt"
    """Key in it."""


class ExternalEmbedder(Part):
    """An embedder that somebody else runs, asked over HTTP."""

    url: Annotated[
        str, Field(pattern=r"^https?://[^\s/@?#]+(/[^\s?#]*)?(\?[^\s#]*)?$", max_length=1024)
    ]
    """Base URL. openai: https://api.openai.com/v1; /v1 is added where there is no path."""
    protocol: Protocol
    """openai: POST URL/embeddings. tei: POST URL/embed, GET URL/info."""
    model: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Name that is sent, for openai; part of the fingerprint. Null: spec.model.name."""
    dimensions: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Asked for in each request, for openai; part of the fingerprint. Null: what the model has."""
    secret_ref: TokenRef | None = None
    """Bearer token, re-read when it changes. Absent: see keyEnv."""
    key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=253)] | None = (
        None
    )
    """Environment variable with the bearer token: OPENAI_API_KEY. Null, and no secretRef: none is
    sent."""
    ca_secret_ref: CaRef | None = None
    """Authorities that are trusted beside the system's. Absent: those alone."""
    timeout: Seconds = 30
    """Longest wait for one answer; then the request is made again while callers wait."""
    max_batch_inputs: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Inputs a request. Null: 2048 for openai; what GET /info says for tei."""
    max_batch_tokens: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Tokens a request, estimated. Null: 300000 for openai; no limit for tei, which has its own."""
    max_concurrent_requests: Annotated[int, Field(ge=1, le=1024)] = 8
    """Requests in flight. Where there are several, bulk and background leave one for people."""
    price_per_million_tokens: Annotated[float, Field(ge=0, le=1_000_000)] | None = None
    """In whatever currency you count. Null: no money is counted."""

    rules = (
        Rule(
            cel=f"!({there('secretRef')} && {there('keyEnv')})",
            message="give at most one of secretRef and keyEnv",
            check=lambda part: part.secret_ref is None or part.key_env is None,
        ),
        Rule(
            cel=f"!({there('dimensions')} || {there('model')}) || self.protocol == 'openai'",
            message="model and dimensions: only protocol openai can ask for them",
            check=lambda part: (
                part.protocol is Protocol.OPENAI or (part.dimensions is None and part.model is None)
            ),
        ),
    )


class Embedder(Part):
    """What computes vectors that are not cached."""

    managed: ManagedEmbedder | None = None
    """Run for this cache."""
    external: ExternalEmbedder | None = None
    """Run by somebody else."""

    rules = (exactly_one("managed", "external"),)
