"""Secrets and certificates: which a cache reads, and which are made for it.

With TLS every way between the cache's own pods is encrypted too. All of them show one certificate,
and those who dial expect one name in it, that of the client Service: so a certificate from
elsewhere needs no name for each pod.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from lightkube.core.resource import NamespacedResource
from lightkube.generic_resource import create_namespaced_resource
from lightkube.resources.core_v1 import Secret

from embedkeep.config import ClientTls
from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.api_policies import ClientAuth, Security
from embedkeep_operator.render import secret_keys, tls_secret
from embedkeep_operator.resources.context import Context
from embedkeep_operator.resources.names import host_of, meta, of

PASSWORD_KEY: Final = "valkey-password"  # noqa: S105  # a key's name
CLUSTER_SECRET_KEY: Final = "cluster-secret"  # noqa: S105  # as above
CERT: Final = "tls.crt"
KEY: Final = "tls.key"
AUTHORITY: Final = "ca.crt"

Certificate = create_namespaced_resource("cert-manager.io", "v1", "Certificate", "certificates")


def auth_of(resource: EmbeddingCache) -> str:
    """The Secret with what the cache's own processes show each other."""
    return of(resource, "auth")


def build_auth(
    resource: EmbeddingCache, context: Context, *, password: str, cluster_secret: str
) -> Secret:
    """The one object that is created once and never applied: nothing else knows what it says.

    Args:
        password: Valkey's.
        cluster_secret: Entries' keys and the peers' token are derived from it: with another one
            the cache is empty.
    """
    return Secret(
        metadata=meta(resource, context, auth_of(resource)),
        type="Opaque",
        stringData={PASSWORD_KEY: password, CLUSTER_SECRET_KEY: cluster_secret},
    )


def build_certificate(resource: EmbeddingCache, context: Context) -> NamespacedResource | None:
    """What cert-manager is asked for. None: no issuer is named."""
    tls = (resource.spec.security or Security()).tls
    if tls is None or tls.issuer_ref is None:
        return None
    issuer = tls.issuer_ref
    return Certificate(
        apiVersion="cert-manager.io/v1",
        kind="Certificate",
        metadata=meta(resource, context, of(resource, "tls")),
        spec={
            "secretName": of(resource, "tls"),
            "issuerRef": {"name": issuer.name, "kind": issuer.kind.value, "group": issuer.group},
            "dnsNames": list(_names(resource, context)),
            # On Valkey's bus, and between nodes where clients must show one, both sides do.
            "usages": ["server auth", "client auth"],
            "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
        },
    )


def _names(resource: EmbeddingCache, context: Context) -> Iterable[str]:
    """By which clients, nodes and Valkeys are dialled."""
    yield expected_name(resource, context)
    for service in (of(resource), of(resource, "grpc"), of(resource, "embedder")):
        yield host_of(context, service)
    for service in (of(resource), of(resource, "grpc")):
        yield f"{service}.{context.namespace}"
    yield of(resource)
    yield f"*.{host_of(context, of(resource, 'nodes'))}"


def expected_name(resource: EmbeddingCache, context: Context) -> str:
    """What the certificate must carry, wherever it comes from."""
    return f"{of(resource)}.{context.namespace}.svc"


def client_tls_in(resource: EmbeddingCache, context: Context, secrets: Path) -> ClientTls | None:
    """How the cache's own processes reach each other. None: plain text."""
    if (name := tls_secret(resource)) is None:
        return None
    tls = (resource.spec.security or Security()).tls
    shown = tls is not None and tls.client_auth is ClientAuth.REQUIRED
    folder = secrets / name
    return ClientTls(
        ca_file=folder / AUTHORITY,
        cert_file=folder / CERT if shown else None,
        key_file=folder / KEY if shown else None,
        server_name=expected_name(resource, context),
    )


def required_secrets(resource: EmbeddingCache) -> tuple[tuple[str, str, str], ...]:
    """What the user must provide before pods can start: (field, Secret, key)."""
    found = list(secret_keys(resource))
    tls = (resource.spec.security or Security()).tls
    if tls is not None and tls.secret_name is not None:
        authority = ("spec.security.tls.secretName", tls.secret_name, AUTHORITY)
        found += [authority] if authority not in found else []
    return tuple(found)


def keys_of_valkey(resource: EmbeddingCache) -> Mapping[str, set[str]]:
    """What Valkey's container reads."""
    return _merged([(auth_of(resource), PASSWORD_KEY), *_certificate_keys(resource)])


def keys_of_node(resource: EmbeddingCache) -> Mapping[str, set[str]]:
    """What a node reads."""
    tenants = (resource.spec.security or Security()).tenants
    return _merged(
        [
            (auth_of(resource), PASSWORD_KEY),
            (auth_of(resource), CLUSTER_SECRET_KEY),
            *_certificate_keys(resource),
            *((each.api_key_secret_ref.name, each.api_key_secret_ref.key) for each in tenants),
        ]
    )


def keys_of_embedder(resource: EmbeddingCache) -> Mapping[str, set[str]]:
    """What an embedder reads."""
    found = [
        (name, key)
        for field, name, key in secret_keys(resource)
        if field.startswith(("spec.model.", "spec.embedder."))
    ]
    return _merged([*found, *_certificate_keys(resource)])


def keys_of_predictor(resource: EmbeddingCache) -> Mapping[str, set[str]]:
    """What a predictor reads."""
    return _merged(
        [
            (auth_of(resource), PASSWORD_KEY),
            (auth_of(resource), CLUSTER_SECRET_KEY),
            *((name, key) for name, key in _certificate_keys(resource) if key == AUTHORITY),
        ]
    )


def _certificate_keys(resource: EmbeddingCache) -> list[tuple[str, str]]:
    name = tls_secret(resource)
    return [(name, key) for key in (CERT, KEY, AUTHORITY)] if name is not None else []


def _merged(pairs: Iterable[tuple[str, str]]) -> Mapping[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, key in pairs:
        found.setdefault(name, set()).add(key)
    return found
