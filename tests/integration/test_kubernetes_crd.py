"""The CustomResourceDefinition, as a real API server takes it."""

import pytest

from embedkeep_operator.resources import build
from support.apiserver import ApiServer, Refused
from support.resources import CONTEXT, Json, a_cache, as_json


@pytest.fixture(scope="module")
def server(kubernetes: ApiServer) -> ApiServer:
    """One that knows EmbeddingCaches."""
    kubernetes.define()
    return kubernetes


def test_every_field_is_explained(server: ApiServer) -> None:
    said = " ".join(server.kubectl("explain", "embeddingcache.spec.model").split())

    assert "The model that the cache stands in front of." in said


def test_somebody_who_is_not_known_is_not_let_in(kubernetes: ApiServer) -> None:
    with pytest.raises(Refused, match="Unauthorized"):
        kubernetes.kubectl("--token", "of nobody", "get", "namespaces")


def a_resource(name: str = "docs", **spec: object) -> Json:
    least: Json = {"model": {"name": "org/model"}, "embedder": {"managed": {}}}
    return {
        "apiVersion": "embedkeep.dev/v1alpha1",
        "kind": "EmbeddingCache",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {**least, **spec},
    }


def test_shards_cannot_be_changed_yet(server: ApiServer) -> None:
    server.apply(a_resource("sharded", nodes={"shards": 2}))

    with pytest.raises(Refused, match=r"nodes\.shards cannot be changed yet"):
        server.apply(a_resource("sharded", nodes={"shards": 3}))
    with pytest.raises(Refused, match=r"nodes\.shards cannot be changed yet"):
        server.apply(a_resource("sharded"))
    server.apply(a_resource("sharded", nodes={"shards": 2, "replicasPerShard": 1}))


def test_a_name_that_is_too_long_is_refused_in_words(server: ApiServer) -> None:
    with pytest.raises(Refused, match="at most 40"):
        server.apply(a_resource("a" * 41))


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {
            "nodes": {"shards": 2, "replicasPerShard": 1, "storage": {"size": "8Gi"}},
            "embedder": {"managed": {"backend": "torch", "gpu": {}, "rollout": "Surge"}},
            "security": {"tls": {"secretName": "docs-cert", "clientAuth": "Required"}},
            "warmup": {"history": {"enabled": True}},
            "monitoring": {"dashboard": True},
        },
    ],
    ids=["least", "much"],
)
def test_all_that_is_built_is_taken(server: ApiServer, spec: Json) -> None:
    server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "search"}})
    built = [as_json(each) for each in build(a_cache("docs", **spec), CONTEXT)]

    assert len(server.apply(*built, dry_run=True)) == len(built)
