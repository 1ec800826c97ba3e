"""The chart, installed by helm into a real API server: what becomes of it, and who may do what."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedkeep_operator import crd
from embedkeep_operator.resources import OWNED
from support import helm
from support.apiserver import ApiServer, NoAssets, Refused, api_server

DEFINITION = "customresourcedefinition/embeddingcaches.embedkeep.dev"
KUSTOMIZE = Path(__file__).parents[2] / "deploy" / "kustomize"
EVERYTHING: dict[str, Any] = {
    "replicas": 3,
    "imagePullSecrets": ["mirror"],
    "images": {"pullSecrets": ["mirror"]},
    "prometheus": {"main": "http://prometheus.monitoring:9090"},
    "serviceAccount": {"annotations": {"example.org/identity": "operator"}},
    "networkPolicy": {
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        "extraEgress": [{"ports": [{"port": 3128}]}],
    },
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "podLabels": {"team": "search"},
    "podAnnotations": {"example.org/note": "a"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "dedicated", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "system-cluster-critical",
}
Question = tuple[str, str, str, str]
"""Verb, group, resource with its subresource, namespace."""
WRITING = ("create", "delete", "get", "list", "patch", "watch")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One of these tests' own: what a release makes is the cluster's, once."""
    folder = tmp_path_factory.mktemp("kubernetes")
    try:
        starting = api_server(folder)
        with starting as started:
            yield started
    except NoAssets as error:
        pytest.skip(str(error))


def release(server: ApiServer, *arguments: str, **values: object) -> str:
    """Run helm against *server*."""
    environment = {"KUBECONFIG": str(server.kubeconfig)}
    return helm.run(*arguments, *helm.as_flags(values), environment=environment)


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything that can be set"])
def test_the_api_server_takes_what_the_chart_makes_and_knows_every_field(
    server: ApiServer, values: dict[str, Any]
) -> None:
    made = helm.template("--skip-tests", namespace="default", **values)
    tests = [each for each in helm.template(namespace="default", **values) if each["kind"] == "Pod"]
    several = {"apiVersion": "v1", "kind": "List", "items": [*made, *tests]}

    said = server.kubectl(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "--filename=-",
        stdin=json.dumps(several),
    )  # fmt: skip

    assert said.count("serverside-applied (server dry run)") == len(several["items"])


def test_a_typing_error_would_be_seen(server: ApiServer) -> None:
    """As the test above relies on."""
    (service,) = [each for each in helm.template(namespace="default") if each["kind"] == "Service"]
    service["spec"]["selectr"] = {}

    with pytest.raises(Refused, match="selectr"):
        server.kubectl(
            "apply", "--server-side", "--dry-run=server", "--validate=strict", "--filename=-",
            stdin=json.dumps(service),
        )  # fmt: skip


def test_the_api_server_takes_what_kustomize_makes(server: ApiServer) -> None:
    server.kubectl("create", "namespace", helm.NAMESPACE)

    said = server.kubectl(
        "apply", "--server-side", "--dry-run=server", "--validate=strict",
        f"--kustomize={KUSTOMIZE}",
    )  # fmt: skip

    made = [*yaml.safe_load_all(server.kubectl("kustomize", str(KUSTOMIZE)))]
    assert said.count("serverside-applied (server dry run)") == len(made)
    server.kubectl("delete", "namespace", helm.NAMESPACE, "--wait=false")


def test_a_release_is_installed_upgraded_and_removed_and_the_caches_stay(server: ApiServer) -> None:
    """Uninstalling the operator must never delete what it looks after."""
    chart, place = str(helm.CHART), "--namespace=system"
    release(server, "install", "embedkeep", chart, place, "--create-namespace", "--dry-run=server")
    release(server, "install", "embedkeep", chart, place, "--create-namespace")
    said = release(server, "upgrade", "embedkeep", chart, place, replicas=2)
    assert "kubectl explain embeddingcache.spec" in said  # the notes
    cache = server.apply(a_cache("default"))

    # Another release, for one namespace, beside it.
    server.kubectl("create", "namespace", "team")
    release(server, "install", "embedkeep", chart, "--namespace=team",
            crds={"install": False}, scope={"namespaces": ["team"]})  # fmt: skip
    release(server, "uninstall", "embedkeep", "--namespace=team")
    release(server, "uninstall", "embedkeep", place)

    assert server.kubectl("get", DEFINITION, "--output=name").strip()
    left = server.kubectl("get", "embeddingcache", "docs", "--output=jsonpath={.metadata.uid}")
    assert left == cache[0]["metadata"]["uid"]  # type: ignore[index]  # an object's
    rest = server.kubectl(
        "get", "deployments,services,roles,rolebindings,clusterroles,clusterrolebindings,"
        "networkpolicies,poddisruptionbudgets", "--all-namespaces", "--output=name",
        "--selector=app.kubernetes.io/name=embedkeep-operator",
    )  # fmt: skip
    assert not rest

    # The definition that stayed is taken up again.
    release(server, "install", "embedkeep", chart, place)
    release(server, "uninstall", "embedkeep", place)
    server.kubectl("delete", DEFINITION)


def test_a_new_cache_is_seen_as_not_ready_before_any_operator_is_there(server: ApiServer) -> None:
    server.define()
    made = server.apply(a_cache("default"))

    assert made[0]["status"] == crd.UNSEEN
    server.kubectl("delete", "embeddingcache", "docs")


def test_the_operator_may_do_what_it_must_everywhere_and_nothing_else(server: ApiServer) -> None:
    server.apply(*bound(namespace="system"))

    assert allowed(server, "system", needed("anywhere", lease="system")) == set()
    assert allowed(server, "system", forbidden("anywhere", lease="system"), wanted=False) == set()


def test_an_operator_for_some_namespaces_may_do_nothing_in_others(server: ApiServer) -> None:
    server.apply(*bound(namespace="rag", crds={"install": False}, scope={"namespaces": ["rag"]}))

    assert allowed(server, "rag", needed("rag", lease="rag")) == set()
    assert allowed(server, "rag", needed("others"), wanted=False) == set()
    assert allowed(server, "rag", forbidden("rag", lease="rag"), wanted=False) == set()


def test_no_right_is_given_that_the_operator_does_not_need() -> None:
    (role,) = [
        each
        for each in helm.template()
        if (each["kind"], each["metadata"]["name"]) == ("ClusterRole", "embedkeep:embedkeep-system")
    ]

    given = {
        (verb, group, resource, "")
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert given == needed("")


def bound(*, namespace: str, **values: Any) -> list[helm.Json]:
    """The rights that a release in *namespace* gives, and the namespaces that they are for."""
    kinds = {"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ServiceAccount"}
    made = [each for each in helm.template(namespace=namespace, **values) if each["kind"] in kinds]
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        *made,
    ]  # fmt: skip


def needed(namespace: str, *, lease: str | None = None) -> set[Question]:
    """What the operator does in *namespace*, and where its Lease is."""
    of_owned = {
        (verb, kind._api_info.resource.group, kind._api_info.plural, namespace)
        for kind in OWNED
        for verb in WRITING
    }
    optional = {
        (verb, group, plural, namespace)
        for group, plural in [
            ("cert-manager.io", "certificates"),
            ("monitoring.coreos.com", "servicemonitors"),
            ("monitoring.coreos.com", "prometheusrules"),
        ]
        for verb in ("create", "delete", "get", "list", "patch", "watch")
    }
    read = {
        (verb, group, plural, namespace)
        for group, plural in [("embedkeep.dev", "embeddingcaches"), ("", "pods")]
        for verb in ("get", "list", "watch")
    }
    own = set() if lease is None else {
        (verb, "coordination.k8s.io", f"leases:{'' if verb == 'create' else 'embedkeep'}", lease)
        for verb in ("create", "get", "update")
    }  # fmt: skip
    return {
        *of_owned,
        *optional,
        *read,
        *own,
        ("patch", "embedkeep.dev", "embeddingcaches/status", namespace),
        ("delete", "", "pods", namespace),
        ("create", "", "secrets", namespace),
        ("get", "", "secrets", namespace),
        ("list", "", "events", namespace),
        ("create", "events.k8s.io", "events", namespace),
    }


def forbidden(namespace: str, *, lease: str) -> set[Question]:
    """What would hurt most: to read all secrets, run what it likes, or give itself more rights."""
    return {
        ("list", "", "secrets", namespace),
        ("watch", "", "secrets", namespace),
        ("delete", "", "secrets", namespace),
        ("create", "", "pods", namespace),
        ("create", "", "pods/exec", namespace),
        ("create", "", "serviceaccounts/token", namespace),
        ("get", "", "pods/log", namespace),
        ("patch", "embedkeep.dev", "embeddingcaches", namespace),
        ("update", "embedkeep.dev", "embeddingcaches", namespace),
        ("delete", "embedkeep.dev", "embeddingcaches", namespace),
        ("create", "rbac.authorization.k8s.io", "roles", namespace),
        ("create", "rbac.authorization.k8s.io", "rolebindings", namespace),
        ("list", "", "nodes", ""),
        ("list", "", "namespaces", ""),
        ("list", "apiextensions.k8s.io", "customresourcedefinitions", ""),
        ("update", "coordination.k8s.io", "leases:another", lease),
        ("get", "coordination.k8s.io", "leases:another", lease),
    }


def allowed(
    server: ApiServer, namespace: str, questions: set[Question], *, wanted: bool = True
) -> set[Question]:
    """Those of *questions* that the API server answers otherwise than *wanted*."""
    asked = sorted(questions)
    reviews = [_review(f"system:serviceaccount:{namespace}:embedkeep", each) for each in asked]
    said = server.kubectl(
        "create", "--filename=-", "--output=jsonpath={.status.allowed}{'\\n'}",
        stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": reviews}),
    )  # fmt: skip
    return {
        question
        for question, answer in zip(asked, said.split(), strict=True)
        if (answer == "true") is not wanted
    }


def _review(user: str, question: Question) -> dict[str, Any]:
    verb, group, resource, namespace = question
    plural, _, name = resource.partition(":")
    plural, _, subresource = plural.partition("/")
    about = {"verb": verb, "group": group, "resource": plural, "subresource": subresource,
             "namespace": namespace, "name": name}  # fmt: skip
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": about},
    }


def a_cache(namespace: str) -> dict[str, Any]:
    """The smallest one."""
    return {
        "apiVersion": "embedkeep.dev/v1alpha1",
        "kind": "EmbeddingCache",
        "metadata": {"name": "docs", "namespace": namespace},
        "spec": {"model": {"name": "m"}, "embedder": {"managed": {"backend": "onnx"}}},
    }
