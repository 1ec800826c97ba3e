"""What a node, an embedder and a predictor are told. The operator and `embedkeep up` render these.

One JSON file a process. A field that a process does not know is ignored, so that an older pod
reads a newer operator's file; whoever writes resources by hand is checked more strictly where
they are applied. Every field says its unit, what None means and why its default.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from embedkeep.errors import InvalidConfig

Port = Annotated[int, Field(ge=0, le=65535)]
"""0: the kernel picks a free one, and the process says which (see `NodeConfig.announce_file`)."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class Listen(_Frozen):
    """Where a process listens."""

    host: str = "127.0.0.1"
    """Address to bind. Loopback, unless a pod's network is meant."""
    port: Port = 0
    """0: the kernel picks a free one, and the process says which: see announce_file."""


class ServerTls(_Frozen):
    """Certificates that a server shows, re-read when the files change."""

    cert_file: Path
    """PEM, with the chain."""
    key_file: Path
    """PEM, without a password."""
    client_ca_file: Path | None = None
    """Clients must show a certificate of this authority. None: any client may connect."""


class ClientTls(_Frozen):
    """Whom to trust as a server, and what to show it."""

    ca_file: Path | None = None
    """None: the authorities that gRPC brings."""
    cert_file: Path | None = None
    """Shown to a server that asks; with key_file. None: nothing is shown."""
    key_file: Path | None = None
    """Of cert_file."""
    server_name: str | None = None
    """Name that the server's certificate must carry. None: the host dialled."""


class HubSource(_Frozen):
    """A model on the Hugging Face hub, or already in its local cache."""

    token_file: Path | None = None
    """File with an access token. None: public models."""
    cache_dir: Path | None = None
    """Where downloads are kept. None: the hub library's own place."""


class PathSource(_Frozen):
    """A sentence-transformers folder on disk."""

    path: Path
    """The folder, which holds modules.json."""


class PackageSource(_Frozen):
    """A sentence-transformers folder inside an installed Python distribution."""

    package: str
    """Import name; the folder is the one in it that holds modules.json."""


class ModelSpec(_Frozen):
    """Which model, and how its inputs are prepared."""

    name: str
    """Full name, by which callers may ask for it."""
    revision: str | None = None
    """Hub commit, tag or branch; part of the fingerprint. None: what the source holds."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """Texts put before an input, by the name that callers pick them with."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longer inputs are cut, and marked. None: what the model was made for."""
    source: HubSource | PathSource | PackageSource = Field(default_factory=HubSource)

    @field_validator("source", mode="before")
    @classmethod
    def _source_by_field(cls, source: object) -> object:
        """Tell the three sources apart by the field that only one of them has."""
        if isinstance(source, dict):
            kind = (
                PathSource if "path" in source
                else PackageSource if "package" in source
                else HubSource
            )  # fmt: skip
            return kind.model_validate(source)
        return source


class ValkeyTarget(_Frozen):
    """The Valkey beside a node."""

    host: str = "127.0.0.1"
    """Address or name. Loopback, since it stands beside the node."""
    port: Annotated[int, Field(ge=1, le=65535)]
    """Of TCP."""
    username: str | None = None
    """None: the default user."""
    password_file: Path | None = None
    """One password a line, tried in this order and read again for each connection, so that it can
    be rotated without a gap. None: no AUTH is sent."""
    tls: ClientTls | None = None
    """None: plain TCP."""
    ttl_s: Annotated[int, Field(ge=1)] | None = None
    """Life of an entry, seconds. None: until evicted."""
    read_timeout_s: Annotated[float, Field(gt=0)] = 0.05
    """Longest wait for a batch of reads; then they are misses. Well above what a healthy one on the
    same machine takes (docs/benchmarks.md), and short beside a computation by a busy embedder."""
    write_queue_bytes: Annotated[int, Field(ge=1)] = 32 << 20
    """Writes waiting for Valkey; beyond it new ones are dropped and counted."""
    breaker_open_s: Annotated[float, Field(gt=0)] = 0.5
    """First pause after a failure, seconds; doubles up to 16 times this."""


class Member(_Frozen):
    """One node among several and the Valkey beside it, as the others reach them."""

    name: Annotated[str, Field(min_length=1, max_length=63)]
    """By which a node finds itself among the members, and logs speak of it."""
    address: Annotated[str, Field(min_length=1)]
    """gRPC target of the node, for its peers."""
    valkey_host: Annotated[str, Field(min_length=1)]
    """As the Valkey Cluster announces it, by address or host name: with the port it tells whose a
    slot is."""
    valkey_port: Annotated[int, Field(ge=1, le=65535)]
    """As it announces it."""


class Cluster(_Frozen):
    """The nodes of a cache that has several, each beside one Valkey of a Valkey Cluster."""

    name: str | None = None
    """This node's own, among the members. None: given by who starts it, so that all nodes of a
    cache can read one file; see `as_member`."""
    members: Annotated[tuple[Member, ...], Field(min_length=1, max_length=256)]
    """All of them, this one too. Whether the Valkey beside one is a primary or a replica may change
    at any time. Credentials, timeouts and ttl in `valkey` hold for each Valkey."""
    tls: ClientTls | None = None
    """How nodes reach their peers. None: plain text."""
    first_sign_s: Annotated[float, Field(gt=0)] = 0.02
    """Longest wait for the owner of a missing key to say that it has taken the work, seconds, on
    top of the round trip as it was seen lately; then this node computes itself. Little beside a
    computation. Together at most silence_s, unless this alone is more."""
    silence_s: Annotated[float, Field(gt=0)] = 0.25
    """An owner that has taken work and is silent for so long has died, seconds. It gives a sign of
    life five times as often."""

    @model_validator(mode="after")
    def _members_can_be_told_apart(self) -> Self:
        names = [member.name for member in self.members]
        if len(set(names)) < len(names):
            raise ValueError(f"members: each name once; got {', '.join(names)}")
        if self.name is not None and self.name not in names:
            raise ValueError(f"name: must be one of members: {', '.join(names)}; got {self.name}")
        valkeys = [f"{member.valkey_host}:{member.valkey_port}" for member in self.members]
        if len(set(valkeys)) < len(valkeys):
            raise ValueError(f"members: each with a Valkey of its own; got {', '.join(valkeys)}")
        return self


class EmbedderTarget(_Frozen):
    """Where a node finds embedders."""

    address: str
    """gRPC target; `dns:///name:port` is balanced over all addresses."""
    tls: ClientTls | None = None
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Longest life of one computation, seconds, however long its callers would wait."""


class Tenant(_Frozen):
    """Who may call, and whose entries are kept apart."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    """Part of its entries' keys: renamed, it starts empty."""
    api_key_file: Path
    """One key a line; several are valid at once, so that a key can be rotated without a gap."""


class Limits(_Frozen):
    """What a request may ask, and how much may wait."""

    max_message_bytes: Annotated[int, Field(ge=64 << 10)] = 4 << 20
    """Request and answer; gRPC's own default for what clients accept."""
    max_inputs: Annotated[int, Field(ge=1)] = 2048
    """Inputs a request; the node lowers it until the answer fits a message."""
    max_input_bytes: Annotated[int, Field(ge=1)] = 128 << 10
    """UTF-8 bytes an input: above what an 8,192-token model reads."""
    max_pending_inputs: Annotated[int, Field(ge=1)] = 8192
    """Inputs of all tenants that wait for the embedder; a tenant alone gets half."""
    max_concurrent_calls: Annotated[int, Field(ge=1)] = 1024
    """Calls and streams at once, of all tenants; a tenant alone gets half. Health is not among
    them."""
    max_stream_requests: Annotated[int, Field(ge=1)] = 64
    """Requests in flight on one EmbedStream; then the node reads no further."""
    default_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """For calls that come without a deadline."""
    import_sample_ratio: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Part of each imported batch that is computed to compare: cheap beside computing all, and of a
    batch of 2,048 enough that one with 1 wrong row in 5 passes once in a hundred times; see
    docs/decisions.md."""
    import_sample_min: Annotated[int, Field(ge=1)] = 4
    """Rows of a batch that are computed at least, where it has as many."""


class History(_Frozen):
    """Texts that are asked for, kept in Valkey to predict from: what people typed, so opt-in.

    A tenant's is a ring of 16 buckets, each a sixteenth of retention_s long.
    """

    retention_s: Annotated[int, Field(ge=1)] = 30 * 86_400
    """How long a text is kept after it was asked for, seconds; at most, and a sixteenth less at
    least."""
    max_texts: Annotated[int, Field(ge=1)] = 4096
    """Of a tenant in each bucket; beyond it the least asked for make room."""
    max_bytes: Annotated[int, Field(ge=1)] = 1 << 20
    """The same in bytes, with what Valkey takes for each text beside it."""
    max_text_bytes: Annotated[int, Field(ge=1)] = 4 << 10
    """UTF-8 bytes of a text with its prompt; longer ones are not kept. Above any question: what is
    longer is a document, which is seldom asked for twice."""
    flush_s: Annotated[float, Field(gt=0)] = 5.0
    """How often a node writes down what it was asked for, seconds. What it has not written is lost
    with it."""
    max_waiting_bytes: Annotated[int, Field(ge=1)] = 8 << 20
    """Of texts that wait in a node to be written; beyond it they are dropped and counted. A tenant
    alone gets half."""


class WarmupBudget(_Frozen):
    """Device-seconds in any hour, of all nodes of a cache together."""

    initial: Annotated[float, Field(ge=0)] = 60.0
    """Until a tuned value is there."""
    min: Annotated[float, Field(ge=0)] = 0.0
    """A tuned value below is taken for this."""
    max: Annotated[float, Field(ge=0)] = 600.0
    """A tuned value above is taken for this."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.min <= self.initial <= self.max:
            raise ValueError(
                f"must be min <= initial <= max; got {self.min:g}, {self.initial:g}, {self.max:g}"
            )
        return self


class Warmup(_Frozen):
    """Computes what the predictor's plans name before it is asked for."""

    budget: WarmupBudget = Field(default_factory=WarmupBudget)
    """What it may cost."""
    shares: Annotated[int, Field(ge=1)] = 1
    """Parts that the budget is in, one for the node beside each primary: as many as shards."""
    poll_s: Annotated[float, Field(gt=0)] = 10.0
    """Between two looks for a newer plan, seconds. Plans are made once in many minutes."""
    recheck_s: Annotated[float, Field(gt=0)] = 60.0
    """Between two looks whether all of a plan is still there, seconds: a Valkey may have come back
    empty, or have evicted some. A look takes Valkey about a millisecond for a thousand texts."""


class NodeConfig(_Frozen):
    """One cache node."""

    name: str
    """The resource's name; an alias of the model."""
    model: ModelSpec
    agreement: str | None = None
    """Names the agreement on a fingerprint that is kept in Valkey: derived by whoever renders this
    from all that is meant to change vectors (model, revision, backend, dtype). None: from the
    model alone."""
    grpc: Listen = Field(default_factory=Listen)
    http: Listen | None = None
    """OpenAI's and TEI's HTTP APIs. None: gRPC only."""
    metrics: Listen = Field(default_factory=Listen)
    tls: ServerTls | None = None
    """Of gRPC and HTTP. None: plain text."""
    embedder: EmbedderTarget
    valkey: ValkeyTarget | None = None
    """None: L1 only."""
    cluster: Cluster | None = None
    """None: this node and its Valkey are alone."""
    l1_bytes: Annotated[int, Field(ge=0)] = 256 << 20
    """Arena for vectors; 0: no L1."""
    cluster_secret_file: Path | None = None
    """At least 16 bytes, the same on all nodes; needed with tenants, and among several members."""
    tenants: tuple[Tenant, ...] = ()
    """Empty: everybody may call, and all share one partition."""
    imports: bool = False
    """Callers may bring vectors that the model has returned elsewhere. Off: none are taken, and
    those taken before are not answered."""
    history: History | None = None
    """None: no text is kept, and what was kept before is deleted at the start."""
    warmup: Warmup | None = None
    """None: nothing is computed ahead of time."""
    tuned_file: Path | None = None
    """JSON object with values that change while this process runs, such as warmup_budget; re-read
    when it changes. None, or no such file: all stay as configured."""
    limits: Limits = Field(default_factory=Limits)
    drain_s: Annotated[float, Field(ge=0)] = 20.0
    """How long calls in flight may finish after SIGTERM, seconds."""
    epoch_poll_s: Annotated[float, Field(gt=0)] = 1.0
    """How often other nodes' invalidations are looked for, seconds."""
    announce_file: Path | None = None
    """Written once listening: {"grpc": port, "metrics": port}, and "http" where there is one.
    None: ports are only logged."""

    @property
    def has_peers(self) -> bool:
        """There are other nodes."""
        return self.cluster is not None and len(self.cluster.members) > 1

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        names = [tenant.name for tenant in self.tenants]
        if len(set(names)) < len(names):
            raise ValueError(f"tenants: each name once; got {', '.join(names)}")
        if self.tenants and self.cluster_secret_file is None:
            raise ValueError("cluster_secret_file: needed, because tenants are given")
        for field in ("cluster", "history", "warmup"):
            if getattr(self, field) is not None and self.valkey is None:
                raise ValueError(f"valkey: needed, because {field} is given")
        if self.has_peers and self.cluster_secret_file is None:
            raise ValueError("cluster_secret_file: needed, because cluster has several members")
        return self


class Backend(StrEnum):
    """What runs the model."""

    ONNX = "onnx"
    TORCH = "torch"


class Dtype(StrEnum):
    """What the model computes in. Vectors are float32 on the wire in any case."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class Quantization(StrEnum):
    """Of the model's weights and activations."""

    NONE = "None"
    INT8 = "Int8"


class Batching(_Frozen):
    """How inputs are put together. Sizes follow from measured time, not from counts."""

    demand_target_s: Annotated[float, Field(gt=0)] = 0.05
    """What a batch with a waiting person in it should take at most, seconds; half of it where more
    would hardly be quicker."""
    background_target_s: Annotated[float, Field(gt=0)] = 0.02
    """The same for background work: what a person may have to wait for it to end."""
    max_wait_s: Annotated[float, Field(gt=0)] = 2.0
    """While a lower class has an input that waits longer, every fourth batch is that class's:
    nothing starves, and no backlog stands before people."""
    max_batch_inputs: Annotated[int, Field(ge=1)] = 512
    """Inputs of one batch, however short they are."""
    max_queue_inputs: Annotated[int, Field(ge=1)] = 16384
    """Beyond it work is refused with RESOURCE_EXHAUSTED; bulk beyond three quarters of it,
    background work beyond half."""
    max_queue_characters: Annotated[int, Field(ge=1)] = 128 << 20
    """Texts of requests that are not answered yet, in characters together; shares as above. A
    request that is alone may have more. Half of it holds the largest message."""
    max_request_inputs: Annotated[int, Field(ge=1)] = 2048
    """Inputs of one request of a node: as many as a caller may send to it at once."""


class Protocol(StrEnum):
    """What an upstream speaks."""

    OPENAI = "openai"
    TEI = "tei"


class Upstream(_Frozen):
    """Somebody else's embedder, asked over HTTP instead of running a model."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s/@?#]+(/[^\s?#]*)?(\?[^\s#]*)?$")]
    """Base URL, with http or https and without credentials. openai: with its path, such as /v1,
    which is added where there is none; /embeddings is appended. tei: /embed and /info are."""
    protocol: Protocol
    model: str | None = None
    """Name sent to it, and part of the fingerprint; tei is sent none. None: that of the model."""
    dimensions: Annotated[int, Field(ge=1, le=65536)] | None = None
    """openai only: asked for in each request, and part of the fingerprint. None: not said."""
    key_file: Path | None = None
    """File with the bearer token, read again when it changes. None: see key_env."""
    key_env: str | None = None
    """Environment variable with the bearer token. None, and no key_file: no token is sent."""
    ca_file: Path | None = None
    """Authorities trusted beside the system's, or those of SSL_CERT_FILE. None: those alone."""
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Longest wait for one answer, seconds; then the request is made again while callers wait."""
    max_batch_inputs: Annotated[int, Field(ge=1)] | None = None
    """Inputs a request. None: 2,048 for openai; what /info says for tei."""
    max_batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens a request, estimated before it is made. None: 300,000 for openai; no limit for tei,
    which splits batches by itself."""
    max_concurrent_requests: Annotated[int, Field(ge=1, le=1024)] = 8
    """Requests in flight. Where there are several, bulk and background leave one for people."""
    price_per_million_tokens: Annotated[float, Field(ge=0)] | None = None
    """In whatever currency you count. None: no money is counted."""


class EmbedderConfig(_Frozen):
    """One embedder."""

    model: ModelSpec
    upstream: Upstream | None = None
    """Whom to ask instead; backend, device, dtype, threads and the model's source mean nothing
    then. None: the model runs here."""
    backend: Backend = Backend.ONNX
    device: str | None = None
    """torch only: cuda, mps or cpu. None: the best there is."""
    dtype: Dtype = Dtype.FLOAT32
    """float16 and bfloat16 need torch on a GPU."""
    quantization: Quantization = Quantization.NONE
    """Int8 needs onnx and float32: its matrices are then multiplied as integers. About twice as
    fast, and another model: see docs/operations.md."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads. None: one a core that this process may use."""
    work_dir: Path | None = None
    """Where converted models are kept. None: the user's cache folder."""
    grpc: Listen = Field(default_factory=Listen)
    metrics: Listen = Field(default_factory=Listen)
    tls: ServerTls | None = None
    batch: Batching = Field(default_factory=Batching)
    max_message_bytes: Annotated[int, Field(ge=64 << 10)] = 64 << 20
    """Request and answer; fewer inputs are taken at once where their vectors would not fit."""
    drain_s: Annotated[float, Field(ge=0)] = 20.0
    """As in NodeConfig, seconds."""
    announce_file: Path | None = None
    """As in NodeConfig."""


class PredictorConfig(_Frozen):
    """One run of the predictor, which reads the history and writes each tenant's plan."""

    name: str
    """The resource's name."""
    valkeys: Annotated[tuple[ValkeyTarget, ...], Field(min_length=1, max_length=512)]
    """All of the cache. A tenant's history lies in one of them, and so does its plan."""
    cluster_secret_file: Path | None = None
    """As in NodeConfig; needed with tenants."""
    tenants: tuple[str, ...] = ()
    """Names. Empty: all callers share one partition."""
    history: History = Field(default_factory=History)
    """As the nodes are told."""
    half_life_s: Annotated[float, Field(gt=0)] = 7 * 86_400.0
    """An ask counts half as much after so long, seconds. A week, so that what is asked on Mondays
    is still known on the next."""
    horizon_s: Annotated[float, Field(gt=0)] = 86_400.0
    """How far ahead a plan looks, seconds. A day: what is warmed stays until it is evicted, longer
    than until the next plan."""
    min_worth: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Chance to be asked for within horizon_s below which a text is not in a plan: 1 in 10, so that
    at worst ten computations are spent to avoid one. With the other defaults a single ask is not
    enough, two of this week are."""
    max_texts: Annotated[int, Field(ge=1)] = 10_000
    """Of a tenant's plan."""
    max_bytes: Annotated[int, Field(ge=1)] = 1 << 20
    """Of a tenant's plan; nodes hold all plans in memory."""
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Longest wait for one Valkey in all, seconds."""

    @model_validator(mode="after")
    def _tenants_need_the_secret(self) -> Self:
        if self.tenants and self.cluster_secret_file is None:
            raise ValueError("cluster_secret_file: needed, because tenants are given")
        return self


ConfigT = TypeVar("ConfigT", NodeConfig, EmbedderConfig, PredictorConfig)


def as_member(config: NodeConfig, name: str | None) -> NodeConfig:
    """What the node of this *name* is told, where its file is for all nodes of the cache.

    Args:
        name: None: the file says it, or there is only one node.

    Raises:
        InvalidConfig: Nobody says which node this is, or there is none of that name.
    """
    cluster = config.cluster
    if cluster is None:
        if name is not None:
            raise InvalidConfig("needed, because a member is named", field="cluster")
        return config
    chosen = name if name is not None else cluster.name
    names = [member.name for member in cluster.members]
    if chosen not in names:
        said = "none was given" if chosen is None else f"got {chosen}"
        raise InvalidConfig(
            f"must be one of members: {', '.join(names)}; {said}; give --member",
            field="cluster.name",
        )
    return config.model_copy(update={"cluster": cluster.model_copy(update={"name": chosen})})


def load(kind: type[ConfigT], file: Path) -> ConfigT:
    """Read a config file.

    Raises:
        InvalidConfig: Cannot be read, is no JSON object, or a field is wrong; names the field.
    """
    try:
        data = json.loads(file.read_text())
    except OSError as error:
        raise InvalidConfig(f"cannot be read: {error.strerror}", source=str(file)) from error
    except ValueError as error:
        raise InvalidConfig(f"is no JSON: {error}", source=str(file)) from error
    if not isinstance(data, dict):
        raise InvalidConfig("must hold a JSON object", source=str(file))
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        said = describe(error).replace("\n", f"\n{file}: ")
        raise InvalidConfig(said, source=str(file)) from error


def describe(error: ValidationError) -> str:
    """All that is wrong, one line a field: its path, what is allowed, and the value given."""
    return "\n".join(
        f"{'.'.join(map(str, item['loc'])) or '(file)'}: {_said(item)}"
        + ("" if item["type"] in {"missing", "value_error"} else f", got {item['input']!r}")
        for item in error.errors(include_url=False)
    )


def _said(item: ErrorDetails) -> str:
    """Without the words of Python."""
    if item["type"] in {"model_type", "dict_type"}:
        return "must be a JSON object"
    return item["msg"].replace("Input should be", "must be").removeprefix("Value error, ")
