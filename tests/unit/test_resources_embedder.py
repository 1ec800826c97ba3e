"""The embedders and the predictor: what each field of the resource decides about their pods."""

from dataclasses import replace
from pathlib import Path

import pytest

from embedkeep.config import EmbedderConfig, HubSource, PredictorConfig, load
from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.resources import build
from embedkeep_operator.resources.configs import build_embedder_config, build_predictor_config
from embedkeep_operator.resources.embedder import build_embedder
from embedkeep_operator.resources.predictor import build_predictor
from support.resources import CONTEXT, Json, a_cache, as_json, at

HISTORY = {"history": {"enabled": True}}


def deployment(resource: EmbeddingCache) -> Json:
    return as_json(build_embedder(resource, CONTEXT))


def spec(resource: EmbeddingCache) -> object:
    return at(deployment(resource), "spec", "template", "spec")


def container(resource: EmbeddingCache) -> object:
    return at(spec(resource), "containers", 0)


def volumes(resource: EmbeddingCache) -> dict[object, object]:
    found = at(spec(resource), "volumes")
    assert isinstance(found, list)
    return {each["name"]: each for each in found}


def told(resource: EmbeddingCache, folder: Path) -> EmbedderConfig:
    file = folder / "embedder.json"
    file.write_text((build_embedder_config(resource, CONTEXT).data or {})["embedder.json"])
    return load(EmbedderConfig, file)


def managed(**fields: object) -> EmbeddingCache:
    return a_cache(embedder={"managed": fields})


EXTERNAL = a_cache(
    embedder={
        "external": {
            "url": "https://api.example.com",
            "protocol": "openai",
            "secretRef": {"name": "openai", "key": "k"},
        }
    },
    nodes={"podTemplate": {"env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]}},
)


def test_the_backend_decides_the_image() -> None:
    assert at(container(managed()), "image") == CONTEXT.images.embedder_cpu
    assert at(container(managed(backend="torch")), "image") == CONTEXT.images.embedder
    assert at(container(managed(image="mine:1")), "image") == "mine:1"
    assert at(container(EXTERNAL), "image") == CONTEXT.images.node


def test_how_many_is_left_to_who_else_scales_them() -> None:
    assert "replicas" not in dict(_mapping(at(deployment(managed()), "spec")))
    assert at(deployment(managed(replicas=0)), "spec", "replicas") == 0
    assert at(deployment(managed(replicas=3)), "spec", "replicas") == 3


def _mapping(value: object) -> Json:
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize(("rollout", "surge", "unavailable"), [("Replace", 0, 1), ("Surge", 1, 0)])
def test_replace_frees_a_device_first_and_surge_never_has_less(
    rollout: str, surge: int, unavailable: int
) -> None:
    found = at(deployment(managed(rollout=rollout)), "spec", "strategy", "rollingUpdate")

    assert found == {"maxSurge": surge, "maxUnavailable": unavailable}


def test_one_that_holds_no_device_is_never_missing() -> None:
    found = at(deployment(EXTERNAL), "spec", "strategy", "rollingUpdate")

    assert found == {"maxSurge": 1, "maxUnavailable": 0}


def test_devices_are_asked_for_and_their_hosts_taint_tolerated() -> None:
    user = {"key": "dedicated", "operator": "Exists"}
    resource = managed(
        backend="torch",
        gpu={"resource": "nvidia.com/gpu", "count": 2},
        podTemplate={"tolerations": [user]},
    )

    assert at(container(resource), "resources", "limits", "nvidia.com/gpu") == "2"
    assert at(spec(resource), "tolerations") == [
        {"key": "dedicated", "operator": "Exists"},
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
    ]
    assert at(spec(managed()), "tolerations") is None
    assert "nvidia.com/gpu" not in str(deployment(managed()))


def test_a_model_may_take_half_an_hour_to_be_there() -> None:
    probe = _mapping(at(container(managed()), "startupProbe"))
    allowed_s = int(str(probe["periodSeconds"])) * int(str(probe["failureThreshold"]))

    assert at(probe, "httpGet", "path") == "/readyz"
    assert allowed_s == 1800
    progress_s = at(deployment(managed()), "spec", "progressDeadlineSeconds")
    assert isinstance(progress_s, int)
    assert progress_s > allowed_s


def test_downloads_are_kept_in_the_claim_that_is_named(tmp_path: Path) -> None:
    source = {"hub": {"cacheClaim": "models", "tokenSecretRef": {"name": "hub", "key": "t"}}}
    resource = a_cache(model={"name": "m", "source": source})
    config = told(resource, tmp_path)

    assert at(volumes(resource)["model-cache"], "persistentVolumeClaim") == {"claimName": "models"}
    assert config.model.source == HubSource(
        token_file=Path("/secrets/hub/t"), cache_dir=Path("/model-cache/hub")
    )
    assert config.work_dir == Path("/model-cache/converted")


def test_without_a_claim_each_pod_downloads_for_itself(tmp_path: Path) -> None:
    assert told(managed(), tmp_path).model.source == HubSource()
    assert set(volumes(managed())) == {"config", "tmp"}, "and no Secret is mounted: none is read"


@pytest.mark.parametrize(
    ("volume", "expected"),
    [
        (
            {"persistentVolumeClaim": {"claimName": "models"}},
            {"persistentVolumeClaim": {"claimName": "models", "readOnly": True}},
        ),
        ({"image": {"reference": "r/m:1"}}, {"image": {"reference": "r/m:1"}}),
    ],
)
def test_a_model_in_a_volume_is_mounted_read_only(volume: object, expected: Json) -> None:
    resource = a_cache(model={"name": "m", "source": {"path": "/model/m", "volume": volume}})
    mounts = at(container(resource), "volumeMounts")

    assert isinstance(mounts, list)
    assert {"name": "model", "mountPath": "/model", "readOnly": True} in mounts
    assert volumes(resource)["model"] == {"name": "model", **expected}


def test_one_that_asks_somebody_elses_is_set_up_as_the_nodes_are(tmp_path: Path) -> None:
    """An external embedder has no pod settings of its own; proxies are the nodes' too."""
    config = told(EXTERNAL, tmp_path)
    variables = at(container(EXTERNAL), "env")

    assert config.upstream is not None
    assert config.upstream.key_file == Path("/secrets/openai/k")
    assert isinstance(variables, list)
    assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in variables
    assert set(volumes(EXTERNAL)) == {"config", "tmp", "secrets"}


def test_embedders_show_the_caches_certificate(tmp_path: Path) -> None:
    resource = a_cache(security={"tls": {"secretName": "docs-cert"}})
    config = told(resource, tmp_path)

    assert config.tls is not None
    assert config.tls.cert_file == Path("/secrets/docs-cert/tls.crt")


def test_a_predictor_runs_by_its_schedule_one_at_a_time() -> None:
    job = build_predictor(a_cache(warmup={"schedule": "7  *  * * *", **HISTORY}), CONTEXT)
    assert job is not None
    found = at(as_json(job), "spec")

    assert at(found, "schedule") == "7 * * * *"
    assert at(found, "concurrencyPolicy") == "Forbid"
    pod = at(found, "jobTemplate", "spec", "template", "spec")
    assert at(pod, "restartPolicy") == "Never"
    assert at(pod, "containers", 0, "args") == [
        "predictor", "--config", "/etc/embedkeep/predictor.json"
    ]  # fmt: skip
    assert at(pod, "containers", 0, "image") == CONTEXT.images.node


@pytest.mark.parametrize("warmup", [None, {}, {"history": {"enabled": False}}])
def test_without_a_history_there_is_nothing_to_predict_from(warmup: object) -> None:
    resource = a_cache(warmup=warmup)

    assert not [
        each for each in build(resource, CONTEXT) if "predictor" in str(as_json(each)["metadata"])
    ]


def test_a_predictor_reads_all_valkeys(tmp_path: Path) -> None:
    resource = a_cache(
        warmup=HISTORY, nodes={"shards": 2, "replicasPerShard": 1},
        security={"tls": {"secretName": "docs-cert", "clientAuth": "Required"}},
    )  # fmt: skip
    made = build_predictor_config(resource, CONTEXT)
    assert made is not None
    file = tmp_path / "predictor.json"
    file.write_text((made.data or {})["predictor.json"])
    config = load(PredictorConfig, file)

    assert len(config.valkeys) == 4
    assert config.cluster_secret_file == Path("/secrets/docs-auth/cluster-secret")
    for valkey in config.valkeys:
        assert valkey.password_file == Path("/secrets/docs-auth/valkey-password")
        assert valkey.tls is not None
        assert valkey.tls.server_name == "docs.search.svc"
    job = build_predictor(resource, CONTEXT)
    assert "tls.key" not in str(job), "the bus wants a certificate of both sides, clients need none"


def test_a_change_of_another_cluster_domain_is_one_of_the_pods() -> None:
    moved = replace(CONTEXT, cluster_domain="corp.example")

    assert "corp.example" in str(list(map(as_json, build(a_cache(), moved))))
    assert "cluster.local" not in str(list(map(as_json, build(a_cache(), moved))))
