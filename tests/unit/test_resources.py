"""What is built for any valid resource."""

import re
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given, settings
from lightkube.core.resource import NamespacedResource
from lightkube.resources.apps_v1 import Deployment, StatefulSet
from lightkube.resources.batch_v1 import CronJob
from lightkube.resources.core_v1 import Secret

from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.resources import OWNED, auth_of, build, build_auth
from support.resources import CONTEXT, Json, a_cache, as_json, at, caches

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
FEW = settings(max_examples=30)
WORKLOADS = (StatefulSet, Deployment, CronJob)


def templates(resource: EmbeddingCache) -> Iterator[tuple[NamespacedResource, Json]]:
    """Each workload that is built, and its pods' template."""
    for built in build(resource, CONTEXT):
        if isinstance(built, WORKLOADS):
            job = ("spec", "jobTemplate") if isinstance(built, CronJob) else ()
            found = at(as_json(built), *job, "spec", "template")
            assert isinstance(found, dict)
            yield built, found


def containers(resource: EmbeddingCache) -> Iterator[Json]:
    for _, template in templates(resource):
        found = at(template, "spec", "containers")
        assert isinstance(found, list)
        yield from found


@FEW
@given(caches())
def test_every_object_is_owned_by_its_resource_and_labelled(resource: EmbeddingCache) -> None:
    for built in build(resource, CONTEXT):
        meta = at(as_json(built), "metadata")
        assert at(meta, "namespace") == CONTEXT.namespace
        assert at(meta, "ownerReferences") == [
            {
                "apiVersion": "embedkeep.dev/v1alpha1",
                "kind": "EmbeddingCache",
                "name": resource.metadata.name,
                "uid": CONTEXT.uid,
                "controller": True,
            }
        ]
        labels = at(meta, "labels")
        assert at(labels, "app.kubernetes.io/name") == "embedkeep"
        assert at(labels, "app.kubernetes.io/instance") == resource.metadata.name
        assert at(labels, "app.kubernetes.io/managed-by") == "embedkeep-operator"


@FEW
@given(caches())
def test_names_are_told_apart_and_short_enough_to_be_dns_labels(resource: EmbeddingCache) -> None:
    built = build(resource, CONTEXT)
    names = [(at(as_json(each), "kind") or type(each), _name(each)) for each in built]

    assert len(set(names)) == len(names)
    assert all(DNS_LABEL.fullmatch(name) for _, name in names)
    assert all(name.startswith(resource.metadata.name) for _, name in names)


def _name(built: NamespacedResource) -> str:
    return str(at(as_json(built), "metadata", "name"))


@FEW
@given(caches())
def test_a_workload_selects_its_own_pods_and_no_others(resource: EmbeddingCache) -> None:
    found = list(templates(resource))
    for built, _ in found:
        if isinstance(built, CronJob):
            continue
        selector = at(as_json(built), "spec", "selector", "matchLabels")
        assert isinstance(selector, dict)
        selected = [
            other
            for other, template in found
            if selector.items() <= dict(_mapping(at(template, "metadata", "labels"))).items()
        ]
        assert selected == [built]


def _mapping(value: object) -> Mapping[str, object]:
    assert isinstance(value, Mapping)
    return value


@FEW
@given(caches())
def test_every_pod_keeps_to_the_restricted_profile(resource: EmbeddingCache) -> None:
    for _, template in templates(resource):
        spec = at(template, "spec")
        assert at(spec, "automountServiceAccountToken") is False
        assert at(spec, "securityContext", "runAsNonRoot") is True
        assert at(spec, "securityContext", "seccompProfile", "type") == "RuntimeDefault"
        assert not {"hostNetwork", "hostPID", "hostIPC"} & _mapping(spec).keys()
        volumes = at(spec, "volumes")
        assert isinstance(volumes, list)
        assert not [volume for volume in volumes if "hostPath" in volume]
    for container in containers(resource):
        assert at(container, "securityContext") == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }


@FEW
@given(caches())
def test_what_is_mounted_is_a_volume_of_the_pod(resource: EmbeddingCache) -> None:
    for built, template in templates(resource):
        claims = at(as_json(built), "spec", "volumeClaimTemplates") or []
        volumes = at(template, "spec", "volumes")
        assert isinstance(volumes, list)
        assert isinstance(claims, list)
        there = [volume["name"] for volume in volumes]
        there += [at(claim, "metadata", "name") for claim in claims]
        assert len(set(there)) == len(there)
        used = set()
        for container in _list(at(template, "spec", "containers")):
            mounts = _list(at(container, "volumeMounts"))
            used |= {at(mount, "name") for mount in mounts}
            paths = [at(mount, "mountPath") for mount in mounts]
            assert len(set(paths)) == len(paths)
        assert used == set(there)


def _list(value: object) -> list[object]:
    assert isinstance(value, list)
    return value


@FEW
@given(caches())
def test_a_variable_is_set_once_and_ours_win(resource: EmbeddingCache) -> None:
    for container in containers(resource):
        variables = at(container, "env") or []
        names = [at(variable, "name") for variable in _list(variables)]
        assert len(set(names)) == len(names)
        for variable in _list(variables):
            given = at(variable, "name"), at(variable, "value")
            assert given != ("POD_NAME", "of-the-user") or at(container, "name") == "embedder"


@FEW
@given(caches())
def test_the_operators_labels_and_annotations_win(resource: EmbeddingCache) -> None:
    for _, template in templates(resource):
        assert at(template, "metadata", "labels", "app.kubernetes.io/name") == "embedkeep"
        assert at(template, "metadata", "annotations", "embedkeep.dev/template-hash") != "mine"


@FEW
@given(caches())
def test_building_twice_gives_the_same(resource: EmbeddingCache) -> None:
    again = EmbeddingCache.model_validate(resource.model_dump(by_alias=True, mode="json"))

    assert list(map(as_json, build(resource, CONTEXT))) == list(map(as_json, build(again, CONTEXT)))


@FEW
@given(caches())
def test_no_secret_is_among_what_is_applied(resource: EmbeddingCache) -> None:
    assert not [built for built in build(resource, CONTEXT) if isinstance(built, Secret)]


@FEW
@given(caches())
def test_all_that_is_always_there_is_of_a_kind_that_is_pruned(resource: EmbeddingCache) -> None:
    optional = {"cert-manager.io/v1", "monitoring.coreos.com/v1"}
    for built in build(resource, CONTEXT):
        assert type(built) in OWNED or at(as_json(built), "apiVersion") in optional


def test_the_secret_is_made_of_what_was_drawn() -> None:
    resource = a_cache()
    secret = build_auth(resource, CONTEXT, password="p", cluster_secret="s")

    assert _name(secret) == auth_of(resource) == "docs-auth"
    assert secret.stringData == {"valkey-password": "p", "cluster-secret": "s"}
    assert at(as_json(secret), "metadata", "ownerReferences", 0, "uid") == CONTEXT.uid


@pytest.mark.parametrize("name", ["a", "a" * 40])
def test_names_of_any_length_fit(name: str) -> None:
    longest = max(
        len(_name(built)) for built in build(a_cache(name, nodes={"shards": 64}), CONTEXT)
    )

    assert longest <= 63 - len("-0123456789"), "a StatefulSet's pods carry a revision's hash"
