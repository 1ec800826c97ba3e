"""What is valid and not built yet is refused by name; what means nothing here is noted."""

from pathlib import Path

import pytest

from embedkeep.errors import NotBuilt
from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.manifest import load
from embedkeep_operator.unbuilt import (
    kubernetes_only,
    refuse_unbuilt,
    unbuilt,
    unbuilt_on_kubernetes,
)

EXAMPLES = Path(__file__).parents[2] / "examples"

WISHES = {
    "spec.model.source.hub.cacheClaim": {
        "model": {"name": "m", "source": {"hub": {"cacheClaim": "c"}}}
    },
    "spec.model.source.volume": {
        "model": {"name": "m", "source": {"path": "/m", "volume": {"image": {"reference": "i"}}}}
    },
    "spec.embedder.managed.replicas": {"embedder": {"managed": {"replicas": 2}}},
    "spec.similarity.mode": {"similarity": {"mode": "Serve"}},
    "spec.warmup.predictor": {"warmup": {"predictor": "Markov"}},
    "spec.tuning.mode": {"tuning": {"mode": "Auto"}},
    "spec.monitoring.serviceMonitor": {"monitoring": {"serviceMonitor": True}},
    "spec.monitoring.rules": {"monitoring": {"rules": True}},
    "spec.security.tls.issuerRef": {"security": {"tls": {"issuerRef": {"name": "ca"}}}},
}  # fmt: skip


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


@pytest.mark.parametrize(("field", "spec"), WISHES.items(), ids=WISHES)
def test_a_wish_that_is_not_built_is_refused_by_name(field: str, spec: dict[str, object]) -> None:
    with pytest.raises(NotBuilt) as caught:
        refuse_unbuilt(a_cache(**spec))

    assert str(caught.value).startswith(f"{field}: ")
    assert "is not built yet; " in str(caught.value)


def test_all_wishes_are_refused_at_once() -> None:
    fields = [wish.field for wish in unbuilt(load(EXAMPLES / "full.yaml"))]

    assert fields == [
        "spec.model.source.hub.cacheClaim",
        "spec.embedder.managed.replicas",
        "spec.similarity.mode",
        "spec.tuning.mode",
        "spec.monitoring.dashboard",
        "spec.monitoring.rules",
        "spec.monitoring.serviceMonitor",
        "spec.security.tls.issuerRef",
    ]


@pytest.mark.parametrize(
    "spec",
    [
        {"similarity": {"mode": "Off"}, "tuning": {"mode": "Off"}},
        {"monitoring": {"rules": False}},
        {"embedder": {"managed": {"replicas": 1, "quantization": "Int8"}}},
        {"nodes": {"shards": 3, "replicasPerShard": 1}},
    ],
    ids=["off", "not wanted", "one of each", "several shards"],
)
def test_what_is_off_is_no_wish(spec: dict[str, object]) -> None:
    assert unbuilt(a_cache(**spec)) == ()


@pytest.mark.parametrize("name", ["openai", "quickstart", "shards", "tei", "tenants"])
def test_these_examples_run_here(name: str) -> None:
    resource = load(EXAMPLES / f"{name}.yaml")

    assert (unbuilt(resource), kubernetes_only(resource)) == ((), ())


def test_what_only_pods_need_is_noted() -> None:
    given = a_cache(
        paused=True,
        nodes={"image": "i", "storage": {"size": "1Gi"}, "imagePullSecrets": [], "shards": 1},
        embedder={"managed": {"gpu": {}, "image": None}},
        upgradePolicy="Automatic",
    )

    assert kubernetes_only(given) == (
        "spec.paused",
        "spec.nodes.image",
        "spec.nodes.storage",
        "spec.embedder.managed.gpu",
        "spec.upgradePolicy",
    )


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("spec.nodes.storage.size", {"nodes": {"storage": {"size": "1Gi"}}}),
        ("spec.similarity.mode", {"similarity": {"mode": "Shadow"}}),
        ("spec.warmup.predictor", {"warmup": {"predictor": "Neighbours"}}),
        ("spec.tuning.mode", {"tuning": {"mode": "Recommend"}}),
    ],
)
def test_what_no_place_can_do_yet_is_refused_on_kubernetes_too(
    field: str, spec: dict[str, object]
) -> None:
    assert [wish.field for wish in unbuilt_on_kubernetes(a_cache(**spec))] == [field]


def test_what_only_pods_have_is_built_on_kubernetes() -> None:
    tls = {"tls": {"issuerRef": {"name": "ca"}}}

    assert not unbuilt_on_kubernetes(a_cache(monitoring={"serviceMonitor": True}, security=tls))
