"""Which image each part runs."""

import json

import pytest

from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.kubernetes.releases import (
    EMBEDDER,
    NODE,
    RESOLVED,
    VALKEY,
    kept_images,
    resolve,
)
from embedkeep_operator.resources import Images

OLD = Images(node="n:1", embedder="e:1", embedder_cpu="c:1", valkey="v:1")
NEW = Images(node="n:2", embedder="e:2", embedder_cpu="c:2", valkey="v:2")


def cache(**spec: object) -> EmbeddingCache:
    return EmbeddingCache.model_validate(
        {
            "apiVersion": "embedkeep.dev/v1alpha1",
            "kind": "EmbeddingCache",
            "metadata": {"name": "docs"},
            "spec": {"model": {"name": "m"}, "embedder": {"managed": {}}, **spec},
        }
    )


def test_what_is_left_out_is_the_operators_and_is_kept() -> None:
    found = resolve(cache().spec, OLD, kept={})

    assert (found.node, found.valkey, found.embedder) == ("n:1", "v:1", "c:1")
    assert found.chosen == {NODE: "n:1", VALKEY: "v:1", EMBEDDER: "c:1"}
    assert not found.newer


def test_an_upgraded_operator_changes_nothing_and_says_what_there_is() -> None:
    kept = resolve(cache().spec, OLD, kept={}).chosen
    found = resolve(cache().spec, NEW, kept=kept)

    assert (found.node, found.valkey, found.embedder) == ("n:1", "v:1", "c:1")
    assert found.newer == {NODE: "n:2", VALKEY: "v:2", EMBEDDER: "c:2"}


def test_one_that_follows_gets_what_the_operator_has() -> None:
    kept = resolve(cache().spec, OLD, kept={}).chosen
    found = resolve(cache(upgradePolicy="Automatic").spec, NEW, kept=kept)

    assert (found.node, found.valkey, found.embedder) == ("n:2", "v:2", "c:2")
    assert not found.newer


def test_a_named_image_is_run_and_not_kept_so_that_leaving_it_out_resolves_anew() -> None:
    named = resolve(cache(nodes={"image": "mine:7"}).spec, OLD, kept={NODE: "n:1"})
    after = resolve(cache().spec, NEW, kept=named.chosen)

    assert named.node == "mine:7"
    assert NODE not in named.chosen
    assert after.node == "n:2"


def test_another_backend_needs_another_image() -> None:
    kept = resolve(cache().spec, OLD, kept={}).chosen
    found = resolve(cache(embedder={"managed": {"backend": "torch"}}).spec, OLD, kept=kept)

    assert found.embedder == "e:1"


@pytest.mark.parametrize("text", ["", "no json", "[]", "1", '{"spec.nodes.image": "n:1"}'])
def test_what_somebody_has_edited_is_as_if_nothing_had_been_kept(text: str) -> None:
    found = kept_images([{"metadata": {"annotations": {RESOLVED: text}}}])

    assert found in ({}, {NODE: "n:1"})


def test_what_one_workload_says_counts_for_all() -> None:
    said = json.dumps({NODE: "n:1"})
    workloads: list[dict[str, object]] = [
        {"metadata": {"annotations": {RESOLVED: said}}},
        {"metadata": {}},
    ]

    assert kept_images(workloads) == {NODE: "n:1"}
