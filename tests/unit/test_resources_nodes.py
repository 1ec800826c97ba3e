"""The shards: what each field of the resource decides about their pods."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from embedkeep.config import NodeConfig, as_member, load
from embedkeep.errors import InvalidConfig
from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.resources.configs import build_node_config, build_tuned, build_valkey_config
from embedkeep_operator.resources.nodes import build_budget, build_shard, shard_template
from support.resources import CONTEXT, Json, a_cache, as_json, at

TLS = {"secretName": "docs-cert", "clientAuth": "Required"}
TENANTS = [
    {"name": "search", "apiKeySecretRef": {"name": "keys", "key": "search"}},
    {"name": "chat", "apiKeySecretRef": {"name": "keys", "key": "chat"}},
]


def shard(resource: EmbeddingCache, number: int = 0) -> Json:
    return as_json(build_shard(resource, CONTEXT, number))


def spec(resource: EmbeddingCache) -> object:
    return at(shard(resource), "spec", "template", "spec")


def container(resource: EmbeddingCache, name: str) -> object:
    containers = at(spec(resource), "containers")
    assert isinstance(containers, list)
    (found,) = [each for each in containers if each["name"] == name]
    return found


def volume(resource: EmbeddingCache, name: str) -> object:
    volumes = at(spec(resource), "volumes")
    assert isinstance(volumes, list)
    return next((each for each in volumes if each["name"] == name), None)


def files_in(resource: EmbeddingCache, name: str) -> set[str]:
    """Paths below /secrets."""
    sources = at(volume(resource, name), "projected", "sources")
    assert isinstance(sources, list)
    return {item["path"] for source in sources for item in source["secret"]["items"]}


def told(resource: EmbeddingCache, folder: Path) -> NodeConfig:
    """What a node reads from its ConfigMap."""
    file = folder / "node.json"
    file.write_text((build_node_config(resource, CONTEXT).data or {})["node.json"])
    return load(NodeConfig, file)


def digest(resource: EmbeddingCache) -> object:
    template = as_template(resource)
    return at(template, "metadata", "annotations", "embedkeep.dev/template-hash")


def as_template(resource: EmbeddingCache) -> object:
    return at(shard(resource), "spec", "template")


def test_the_operator_replaces_pods_and_claims_go_with_them() -> None:
    found = at(shard(a_cache(nodes={"shards": 3, "replicasPerShard": 1}), 2), "spec")

    assert at(found, "replicas") == 2
    assert at(found, "serviceName") == "docs-nodes"
    assert at(found, "podManagementPolicy") == "Parallel"
    assert at(found, "updateStrategy") == {"type": "OnDelete"}
    assert at(found, "persistentVolumeClaimRetentionPolicy") == {
        "whenDeleted": "Delete",
        "whenScaled": "Delete",
    }
    assert at(found, "template", "spec", "terminationGracePeriodSeconds") == 60


def test_one_pod_of_a_shard_at_a_time_may_be_taken_away() -> None:
    found = at(as_json(build_budget(a_cache(), CONTEXT, 0)), "spec")

    assert at(found, "maxUnavailable") == 1
    assert at(found, "unhealthyPodEvictionPolicy") == "AlwaysAllow"


def test_a_node_is_told_by_the_kubelet_which_member_it_is(tmp_path: Path) -> None:
    resource = a_cache(nodes={"shards": 2, "replicasPerShard": 1})
    node = container(resource, "node")
    config = told(resource, tmp_path)

    assert at(node, "args") == [
        "node", "--config", "/etc/embedkeep/node.json", "--member", "$(POD_NAME)"
    ]  # fmt: skip
    assert at(node, "env", 0, "valueFrom", "fieldRef", "fieldPath") == "metadata.name"
    assert config.cluster is not None
    assert config.cluster.name is None
    named = as_member(config, "docs-shard-1-1").cluster
    assert named is not None
    assert named.name == "docs-shard-1-1"
    assert [member.valkey_host for member in named.members] == [
        f"docs-shard-{shard}-{pod}.docs-nodes.search.svc.cluster.local"
        for shard in (0, 1)
        for pod in (0, 1)
    ]
    with pytest.raises(InvalidConfig, match="--member"):
        as_member(config, None)
    with pytest.raises(InvalidConfig, match="docs-shard-9-0"):
        as_member(config, "docs-shard-9-0")


def test_ready_means_that_the_node_can_answer_and_valkey_has_no_say() -> None:
    node, valkey = container(a_cache(), "node"), container(a_cache(), "valkey")

    assert at(node, "readinessProbe", "httpGet", "path") == "/readyz"
    assert at(node, "livenessProbe", "httpGet", "path") == "/livez"
    assert at(node, "startupProbe", "httpGet", "path") == "/livez"
    assert not [name for name in dict(_mapping(valkey)) if name.endswith("Probe")]


def _mapping(value: object) -> Json:
    assert isinstance(value, dict)
    return value


def test_probes_need_no_certificate() -> None:
    """A kubelet shows none, and could not be let in where clients must."""
    node = container(a_cache(security={"tls": TLS}), "node")

    assert at(node, "readinessProbe", "httpGet", "scheme") == "HTTP"
    assert at(node, "readinessProbe", "httpGet", "port") == 9090


def test_only_the_keys_that_are_read_are_mounted() -> None:
    resource = a_cache(
        security={"tls": TLS, "tenants": TENANTS},
        model={"name": "m", "source": {"hub": {"tokenSecretRef": {"name": "hub-token"}}}},
    )
    certificate = {f"docs-cert/{key}" for key in ("tls.crt", "tls.key", "ca.crt")}

    assert files_in(resource, "secrets") == certificate | {
        "docs-auth/valkey-password", "docs-auth/cluster-secret", "keys/search", "keys/chat"
    }  # fmt: skip
    assert files_in(resource, "valkey-secrets") == certificate | {"docs-auth/valkey-password"}


def test_what_a_node_is_told_to_read_is_mounted(tmp_path: Path) -> None:
    resource = a_cache(security={"tls": TLS, "tenants": TENANTS})
    written = json.dumps(told(resource, tmp_path).model_dump(mode="json"))
    named = {part.split('"')[0] for part in written.split("/secrets/")[1:]}

    assert named == files_in(resource, "secrets")


def test_a_password_stands_in_no_file_argument_or_variable() -> None:
    valkey = container(a_cache(), "valkey")
    config = as_json(build_valkey_config(a_cache(), CONTEXT))

    assert at(valkey, "command") == ["sh", "/etc/embedkeep/start.sh"]
    assert "/secrets/docs-auth/valkey-password" in str(at(config, "data", "start.sh"))
    assert "requirepass" not in str(at(config, "data"))
    names = [at(each, "name") for each in _list(at(valkey, "env"))]
    assert names == ["POD_NAME", "POD_IP", "POD_HOSTNAME"]


def _list(value: object) -> list[object]:
    assert isinstance(value, list)
    return value


def test_with_tls_all_links_between_pods_expect_one_name(tmp_path: Path) -> None:
    config = told(a_cache(security={"tls": TLS}), tmp_path)

    assert config.tls is not None
    assert config.tls.client_ca_file == Path("/secrets/docs-cert/ca.crt")
    assert config.cluster is not None
    assert config.valkey is not None
    for link in (config.cluster.tls, config.valkey.tls, config.embedder.tls):
        assert link is not None
        assert link.ca_file == Path("/secrets/docs-cert/ca.crt")
        assert link.server_name == "docs.search.svc"
        assert link.cert_file == Path("/secrets/docs-cert/tls.crt"), "clients must show one"
    conf = str(at(as_json(build_valkey_config(a_cache(security={"tls": TLS}), CONTEXT)), "data"))
    assert "tls-port 6379" in conf
    assert "tls-cluster yes" in conf


def test_an_issuers_certificate_is_mounted_as_the_caches_own(tmp_path: Path) -> None:
    config = told(a_cache(security={"tls": {"issuerRef": {"name": "internal"}}}), tmp_path)

    assert config.tls is not None
    assert config.tls.cert_file == Path("/secrets/docs-tls/tls.crt")


@pytest.mark.parametrize("storage", [None, {}, {"storageClassName": "fast"}])
def test_without_a_size_valkeys_keep_nothing(storage: object) -> None:
    resource = a_cache(nodes={"storage": storage})

    assert at(shard(resource), "spec", "volumeClaimTemplates") is None
    assert at(volume(resource, "valkey-data"), "emptyDir") == {}


def test_with_a_size_each_valkey_has_a_claim() -> None:
    resource = a_cache(nodes={"storage": {"size": "8Gi", "storageClassName": "fast"}})
    claim = at(shard(resource), "spec", "volumeClaimTemplates", 0)

    assert at(claim, "metadata", "name") == "valkey-data"
    assert at(claim, "spec") == {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "fast",
        "resources": {"requests": {"storage": "8Gi"}},
    }
    assert volume(resource, "valkey-data") is None


def test_copies_of_a_shard_keep_apart_and_all_pods_spread_softly() -> None:
    alone, copied = a_cache(), a_cache(nodes={"replicasPerShard": 1})
    path = ("affinity", "podAntiAffinity", "preferredDuringSchedulingIgnoredDuringExecution")

    assert at(spec(alone), "affinity") is None
    term = at(spec(copied), *path, 0, "podAffinityTerm")
    assert at(term, "labelSelector", "matchLabels", "embedkeep.dev/shard") == "0"
    constraints = _list(at(spec(alone), "topologySpreadConstraints"))
    assert [at(each, "topologyKey") for each in constraints] == [
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    ]
    assert {at(each, "whenUnsatisfiable") for each in constraints} == {"ScheduleAnyway"}


def test_an_affinity_that_is_none_is_named() -> None:
    wrong = a_cache(nodes={"podTemplate": {"affinity": {"nodeAffinity": "here"}}})

    with pytest.raises(InvalidConfig, match=r"podTemplate.affinity"):
        shard(wrong)


@pytest.mark.parametrize(
    "changed",
    [
        {"nodes": {"memory": {"l1": "2Gi"}}},
        {"nodes": {"ttl": "1h"}},
        {"nodes": {"image": "embedkeep/node:2"}},
        {"nodes": {"ports": {"grpc": 7001}}},
        {"nodes": {"memory": {"valkey": "2Gi"}}},
        {"nodes": {"podTemplate": {"env": [{"name": "A", "value": "b"}]}}},
        {"security": {"tls": TLS}},
        {"security": {"tenants": TENANTS}},
        {"security": {"imports": True}},
        {"model": {"name": "org/model", "revision": "other"}},
    ],
    ids=str,
)
def test_what_pods_read_once_rolls_them(changed: dict[str, object]) -> None:
    assert digest(a_cache("docs", **changed)) != digest(a_cache())


@pytest.mark.parametrize(
    "changed",
    [
        {"embedder": {"managed": {"replicas": 3}}},
        {"embedder": {"managed": {"image": "embedkeep/embedder-cpu:2"}}},
        {"embedder": {"managed": {"batch": {"targetMs": 20}}}},
        {"monitoring": {"dashboard": True}},
        {"paused": True},
        {"upgradePolicy": "Automatic"},
    ],
    ids=str,
)
def test_what_is_no_nodes_business_rolls_none(changed: dict[str, object]) -> None:
    assert digest(a_cache("docs", **changed)) == digest(a_cache())


def test_tuned_values_are_read_in_place() -> None:
    tuned = replace(CONTEXT, tuned={"warmup_budget": 12.5})

    assert as_json(build_tuned(a_cache(), tuned)) != as_json(build_tuned(a_cache(), CONTEXT))
    assert shard_template(a_cache(), tuned, 0) == shard_template(a_cache(), CONTEXT, 0)


def test_an_operator_that_moves_or_is_watched_by_others_rolls_nothing() -> None:
    elsewhere = replace(CONTEXT, operator=None, scrapers=(), kinds=frozenset())

    assert shard_template(a_cache(), elsewhere, 0) == shard_template(a_cache(), CONTEXT, 0)


def test_images_of_the_resource_win_and_pull_secrets_add_up() -> None:
    given = {"image": "r/node:9", "valkeyImage": "r/v:9", "imagePullSecrets": [{"name": "mine"}]}
    there = replace(CONTEXT, pull_secrets=("operators", "mine"))
    found = at(as_json(build_shard(a_cache(nodes=given), there, 0)), "spec", "template", "spec")

    assert at(found, "containers", 0, "image") == "r/node:9"
    assert at(found, "containers", 1, "image") == "r/v:9"
    assert at(found, "imagePullSecrets") == [{"name": "operators"}, {"name": "mine"}]
    assert at(container(a_cache(), "node"), "image") == CONTEXT.images.node
    assert at(container(a_cache(), "valkey"), "image") == CONTEXT.images.valkey
