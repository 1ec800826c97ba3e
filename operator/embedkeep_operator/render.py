"""From a resource to what each process is told.

Pure: `embedkeep up` and the operator differ only in the `Place` they give, never in what a field
means.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from embedkeep.config import (
    Batching,
    ClientTls,
    Cluster,
    EmbedderConfig,
    EmbedderTarget,
    HubSource,
    Listen,
    ModelSpec,
    NodeConfig,
    PackageSource,
    PathSource,
    ServerTls,
    Tenant,
    Upstream,
    ValkeyTarget,
)
from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.api_embedder import Batch, Embedder, ExternalEmbedder, ManagedEmbedder
from embedkeep_operator.api_model import Model, ModelSource
from embedkeep_operator.api_nodes import Memory, Nodes
from embedkeep_operator.api_policies import ClientAuth, Security
from embedkeep_operator.render_warming import history, warmup

TOLD_BY: Mapping[str, str] = MappingProxyType(
    {
        "model.name": "spec.model.name",
        "model.max_tokens": "spec.model.maxTokens",
        "model.source": "spec.model.source",
        "model.source.path": "spec.model.source.path",
        "model.source.package": "spec.model.source.package.name",
        "model.source.token_file": "spec.model.source.hub.tokenSecretRef",
        "backend": "spec.embedder.managed.backend",
        "device": "spec.embedder.managed.device",
        "dtype": "spec.embedder.managed.dtype",
        "quantization": "spec.embedder.managed.quantization",
        "upstream.url": "spec.embedder.external.url",
        "upstream.model": "spec.embedder.external.model",
        "upstream.dimensions": "spec.embedder.external.dimensions",
        "upstream.key_file": "spec.embedder.external.secretRef",
        "upstream.key_env": "spec.embedder.external.keyEnv",
        "upstream.ca_file": "spec.embedder.external.caSecretRef",
    }
)
"""Fields of configs that a process may refuse, and the resource's fields that decide them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one process listens, and where it finds its files."""

    grpc: Listen
    metrics: Listen
    secrets: Path
    """Folder with <secret name>/<key>, as the kubelet mounts Secrets."""
    http: Listen | None = None
    """Of a node. None: gRPC only."""
    announce_file: Path | None = None
    """Written by the process once it listens."""
    tuned_file: Path | None = None
    """Of a node: values that change while it runs. None: none do."""
    hub_cache: Path | None = None
    """Of an embedder: where downloads are kept. None: the hub library's own place."""
    tls: ServerTls | None = None
    """Of an embedder: what it shows to nodes. None: plain text."""
    drain_s: float = 20.0
    """How long calls in flight may finish after SIGTERM, seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """Whom a node talks to."""

    embedder: str
    """gRPC target."""
    valkey_host: str
    valkey_port: int
    valkey_password_file: Path | None
    cluster_secret_file: Path
    cluster: Cluster | None = None
    """Its peers. None: it has none."""
    embedder_tls: ClientTls | None = None
    """How it reaches embedders. None: plain text."""
    valkey_tls: ClientTls | None = None
    """How it reaches Valkeys. None: plain text."""


def node_config(resource: EmbeddingCache, place: Place, beside: Neighbours) -> NodeConfig:
    """What a cache node is told."""
    spec = resource.spec
    nodes = spec.nodes or Nodes()
    memory = nodes.memory or Memory()
    security = spec.security or Security()
    return NodeConfig(
        name=resource.metadata.name,
        model=model_spec(spec.model, place.secrets),
        agreement=agreement(resource),
        grpc=place.grpc,
        http=place.http,
        metrics=place.metrics,
        tls=server_tls(resource, place.secrets),
        embedder=_embedder_target(spec.embedder, beside),
        valkey=ValkeyTarget(
            host=beside.valkey_host,
            port=beside.valkey_port,
            password_file=beside.valkey_password_file,
            tls=beside.valkey_tls,
            ttl_s=nodes.ttl,
        ),
        cluster=beside.cluster,
        l1_bytes=memory.l1,
        cluster_secret_file=beside.cluster_secret_file,
        tenants=tuple(
            Tenant(
                name=tenant.name,
                api_key_file=place.secrets
                / tenant.api_key_secret_ref.name
                / tenant.api_key_secret_ref.key,
            )
            for tenant in security.tenants
        ),
        imports=security.imports,
        history=history(resource),
        warmup=warmup(resource),
        tuned_file=place.tuned_file,
        drain_s=place.drain_s,
        announce_file=place.announce_file,
    )


def _embedder_target(embedder: Embedder, beside: Neighbours) -> EmbedderTarget:
    target = EmbedderTarget(address=beside.embedder, tls=beside.embedder_tls)
    if embedder.external is None:
        return target
    # Long enough for a request that got no answer to be made again.
    timeout_s = max(target.timeout_s, 2.0 * embedder.external.timeout)
    return target.model_copy(update={"timeout_s": timeout_s})


def embedder_config(
    resource: EmbeddingCache, place: Place, *, work_dir: Path | None = None
) -> EmbedderConfig:
    """What an embedder is told: to run the model, or to ask somebody else's.

    Args:
        work_dir: Where converted models are kept. None: the user's cache folder.
    """
    embedder = resource.spec.embedder
    if embedder.external is not None:
        return EmbedderConfig(
            model=model_spec(resource.spec.model, place.secrets),
            upstream=upstream(embedder.external, place.secrets),
            grpc=place.grpc,
            metrics=place.metrics,
            tls=place.tls,
            drain_s=place.drain_s,
            announce_file=place.announce_file,
        )
    managed = embedder.managed or ManagedEmbedder()
    return EmbedderConfig(
        model=model_spec(resource.spec.model, place.secrets, hub_cache=place.hub_cache),
        backend=managed.backend,
        device=managed.device,
        dtype=managed.dtype,
        quantization=managed.quantization,
        threads=managed.threads,
        work_dir=work_dir,
        grpc=place.grpc,
        metrics=place.metrics,
        tls=place.tls,
        batch=batching(managed),
        drain_s=place.drain_s,
        announce_file=place.announce_file,
    )


def upstream(external: ExternalEmbedder, secrets: Path) -> Upstream:
    """Whom to ask, and with what."""
    key, ca = external.secret_ref, external.ca_secret_ref
    return Upstream(
        url=external.url,
        protocol=external.protocol,
        model=external.model,
        dimensions=external.dimensions,
        key_file=secrets / key.name / key.key if key is not None else None,
        key_env=external.key_env,
        ca_file=secrets / ca.name / ca.key if ca is not None else None,
        timeout_s=external.timeout,
        max_batch_inputs=external.max_batch_inputs,
        max_batch_tokens=external.max_batch_tokens,
        max_concurrent_requests=external.max_concurrent_requests,
        price_per_million_tokens=external.price_per_million_tokens,
    )


def agreement(resource: EmbeddingCache) -> str:
    """Names what the nodes of this cache agree on: 32 hexadecimal digits.

    Changes with every field that is meant to change vectors, so that such a change of the resource
    starts a new agreement by itself. Prompts are none of them: they are part of each key.
    """
    model, managed = resource.spec.model, resource.spec.embedder.managed
    source = model.source
    wanted: list[object] = [
        model.name,
        model.revision,
        model.max_tokens,
        source.path if source else None,
        source.package.name if source and source.package else None,
        [managed.backend, managed.dtype, managed.quantization] if managed else None,
    ]
    if (external := resource.spec.embedder.external) is not None:
        # Not the URL: whether another place computes the same, canaries tell.
        wanted.append([external.protocol, external.model, external.dimensions])
    return hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:32]


def model_spec(model: Model, secrets: Path, *, hub_cache: Path | None = None) -> ModelSpec:
    """Which model, for nodes and embedders alike."""
    source = model.source or ModelSource.model_validate({"hub": {}})
    return ModelSpec(
        name=model.name,
        revision=model.revision,
        prompts=dict(model.prompts),
        max_tokens=model.max_tokens,
        source=_source(source, secrets, hub_cache),
    )


def _source(
    source: ModelSource, secrets: Path, hub_cache: Path | None
) -> HubSource | PathSource | PackageSource:
    if source.package is not None:
        return PackageSource(package=source.package.name)
    if source.path is not None:
        return PathSource(path=Path(source.path))
    token = source.hub.token_secret_ref if source.hub is not None else None
    token_file = secrets / token.name / token.key if token is not None else None
    return HubSource(token_file=token_file, cache_dir=hub_cache)


def batching(managed: ManagedEmbedder) -> Batching:
    """Batch times in seconds."""
    batch = managed.batch or Batch()
    return Batching(
        demand_target_s=batch.target_ms / 1000,
        background_target_s=batch.background_target_ms / 1000,
    )


def tls_secret(resource: EmbeddingCache) -> str | None:
    """The Secret with the nodes' certificate; an issuer's is named after the cache. None: none."""
    tls = (resource.spec.security or Security()).tls
    if tls is None:
        return None
    return tls.secret_name if tls.secret_name is not None else f"{resource.metadata.name}-tls"


def server_tls(resource: EmbeddingCache, secrets: Path) -> ServerTls | None:
    """Certificates in a folder laid out as a kubernetes.io/tls Secret. None: plain text."""
    tls = (resource.spec.security or Security()).tls
    name = tls_secret(resource)
    if tls is None or name is None:
        return None
    folder = secrets / name
    return ServerTls(
        cert_file=folder / "tls.crt",
        key_file=folder / "tls.key",
        client_ca_file=folder / "ca.crt" if tls.client_auth is ClientAuth.REQUIRED else None,
    )


def secret_keys(resource: EmbeddingCache) -> tuple[tuple[str, str, str], ...]:
    """Every Secret's key that the processes read: (field, Secret, key)."""
    found: list[tuple[str, str, str]] = []
    source = resource.spec.model.source
    if source and source.hub and (token := source.hub.token_secret_ref):
        found.append(("spec.model.source.hub.tokenSecretRef", token.name, token.key))
    if (external := resource.spec.embedder.external) is not None:
        if (key := external.secret_ref) is not None:
            found.append(("spec.embedder.external.secretRef", key.name, key.key))
        if (ca := external.ca_secret_ref) is not None:
            found.append(("spec.embedder.external.caSecretRef", ca.name, ca.key))
    security = resource.spec.security or Security()
    if security.tls is not None and security.tls.secret_name is not None:
        keys = ["tls.crt", "tls.key"]
        keys += ["ca.crt"] if security.tls.client_auth is ClientAuth.REQUIRED else []
        found += [("spec.security.tls.secretName", security.tls.secret_name, key) for key in keys]
    for index, tenant in enumerate(security.tenants):
        field = f"spec.security.tenants[{index}].apiKeySecretRef"
        found.append((field, tenant.api_key_secret_ref.name, tenant.api_key_secret_ref.key))
    return tuple(found)
