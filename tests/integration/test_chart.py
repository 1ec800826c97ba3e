"""The chart as helm renders it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from embedkeep_operator import crd
from support import helm

ROOT = Path(__file__).parents[2]
OPERATOR = ("Deployment", "embedkeep")
Json = dict[str, Any]


def test_helm_finds_nothing_to_complain_about() -> None:
    said = helm.run("lint", "--strict", "--kube-version", "1.34", str(helm.CHART))

    assert "0 chart(s) failed" in said


def test_a_release_makes_these_objects_and_no_other() -> None:
    assert _named(helm.template("--skip-tests")) == {
        ("ClusterRole", "embedkeep:embedkeep-system"),
        ("ClusterRole", "embedkeep:embedkeep-system:edit"),
        ("ClusterRole", "embedkeep:embedkeep-system:view"),
        ("ClusterRoleBinding", "embedkeep:embedkeep-system"),
        ("CustomResourceDefinition", "embeddingcaches.embedkeep.dev"),
        OPERATOR,
        ("NetworkPolicy", "embedkeep"),
        ("Role", "embedkeep-lease"),
        ("RoleBinding", "embedkeep-lease"),
        ("Service", "embedkeep-metrics"),
        ("ServiceAccount", "embedkeep"),
    }


def test_a_second_release_for_some_namespaces_makes_nothing_that_is_the_clusters() -> None:
    """Whoever rules two namespaces can install it without any right beyond them."""
    made = helm.template(
        "--skip-tests",
        release="second",
        namespace="ours",
        crds={"install": False},
        scope={"namespaces": ["ours", "theirs"]},
    )

    assert {each["metadata"].get("namespace") for each in made} == {"ours", "theirs"}
    assert {name for name in _named(made) if name[0] in {"Role", "RoleBinding"}} == {
        ("Role", "second-embedkeep:ours"),
        ("RoleBinding", "second-embedkeep:ours"),
        ("Role", "second-embedkeep-lease"),
        ("RoleBinding", "second-embedkeep-lease"),
    }
    assert {
        each["metadata"]["namespace"] for each in made if each["metadata"]["name"].endswith(":ours")
    } == {"ours", "theirs"}


def test_releases_of_one_name_in_two_namespaces_share_no_object() -> None:
    one, other = (
        _placed(helm.template(namespace=each, crds={"install": False})) for each in ("a", "b")
    )

    assert not one & other


def test_the_definition_is_the_one_in_crds() -> None:
    (made,) = [each for each in helm.template() if each["kind"] == "CustomResourceDefinition"]
    assert made["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}

    assert made == yaml.safe_load(crd.text())


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"replica": 2}, "replica"),
        ({"image": {"repo": "x"}}, "repo"),
        ({"replicas": "two"}, "replicas"),
        ({"replicas": -1}, "replicas"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"image": {"digest": "sha256:12"}}, "digest"),
        ({"scope": {"namespaces": ["Not A Label"]}}, "namespaces"),
        ({"prometheus": {"main": "prometheus:9090"}}, "prometheus"),
        ({"prometheus": {"main": "http://user:word@prometheus:9090"}}, "prometheus"),
        ({"images": {"valkey": ""}}, "valkey"),
        ({"networkPolicy": {"apiServerPorts": [0]}}, "apiServerPorts"),
        ({"serviceAccount": {"create": False}}, "serviceAccount.name"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_by_its_name(values: Json, names: str) -> None:
    with pytest.raises(RuntimeError, match=names):
        helm.template(**values)


def test_pods_keep_to_the_restricted_profile_and_cannot_write_their_image() -> None:
    for each in _pods(helm.template(replicas=2)):
        spec = each["spec"]
        assert spec["securityContext"] == {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        assert not {"hostNetwork", "hostPID", "hostIPC"} & {*spec}
        assert all("hostPath" not in volume for volume in spec.get("volumes", []))


def test_the_tests_pod_is_none_of_the_operators() -> None:
    """Else the Service would send readers of metrics to it, and the Deployment would adopt it."""
    made = helm.template()
    selector = _one(made, OPERATOR)["spec"]["selector"]["matchLabels"]
    (test,) = [each for each in made if each["kind"] == "Pod"]

    assert not selector.items() <= test["metadata"]["labels"].items()


def test_the_lease_that_the_operator_is_told_of_is_the_one_it_may_hold() -> None:
    made = helm.template(release="other")
    (named,) = [
        rule["resourceNames"] for rule in _one(made, ("Role", "other-embedkeep-lease"))["rules"]
        if "resourceNames" in rule
    ]  # fmt: skip

    assert [f"--lease-name={name}" for name in named] == [
        each for each in _arguments(made) if each.startswith("--lease-name=")
    ]


def test_secrets_are_neither_listed_nor_watched_nor_deleted() -> None:
    rules = _one(helm.template(), ("ClusterRole", "embedkeep:embedkeep-system"))["rules"]

    assert [rule["verbs"] for rule in rules if "secrets" in rule["resources"]] == [
        ["create", "get"]
    ]


def test_no_right_is_for_everything() -> None:
    for each in helm.template():
        for rule in each.get("rules", []):
            assert "*" not in {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}


def test_rights_on_optional_kinds_can_be_left_out() -> None:
    made = helm.template(rbac={"monitoring": False, "certificates": False})

    groups = {
        group
        for rule in _one(made, ("ClusterRole", "embedkeep:embedkeep-system"))["rules"]
        for group in rule["apiGroups"]
    }
    assert not {"monitoring.coreos.com", "cert-manager.io"} & groups


def test_several_operators_have_a_budget_for_disruptions() -> None:
    assert ("PodDisruptionBudget", "embedkeep") in _named(helm.template(replicas=2))


def test_settings_reach_the_operator_as_flags() -> None:
    made = helm.template(
        scope={"namespaces": ["a", "b"]},
        images={"node": "mirror/node:1", "pullSecrets": ["mirror"]},
        prometheus={"main": "http://prometheus:9090"},
        clusterDomain="example.org",
        extraArgs=["--more"],
    )
    version = yaml.safe_load((helm.CHART / "Chart.yaml").read_text())["appVersion"]

    assert _arguments(made) == [
        "operator",
        "--namespace=a",
        "--namespace=b",
        "--lease-namespace=$(POD_NAMESPACE)",
        "--lease-name=embedkeep",
        "--image-node=mirror/node:1",
        f"--image-embedder=docker.io/embedkeep/embedder:{version}",
        f"--image-embedder-cpu=docker.io/embedkeep/embedder-cpu:{version}",
        "--image-valkey=docker.io/valkey/valkey:9",
        "--image-pull-secret=mirror",
        "--prometheus=main=http://prometheus:9090",
        "--cluster-domain=example.org",
        "--metrics-port=9090",
        "--health-port=8081",
        "--more",
    ]


def test_a_digest_pins_the_operators_image() -> None:
    digest = "sha256:" + "0" * 64
    made = helm.template(image={"repository": "mirror/operator", "tag": "1", "digest": digest})

    (container,) = _one(made, OPERATOR)["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"mirror/operator:1@{digest}"


def test_kustomize_installs_what_the_chart_does() -> None:
    kustomize = _script("kustomize")

    assert kustomize.FILE.read_text() == kustomize.rendered(helm.helm()), "run `make kustomize`"


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"chart_{name}", ROOT / "charts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _named(made: list[helm.Json]) -> set[tuple[str, str]]:
    return {(each["kind"], each["metadata"]["name"]) for each in made}


def _placed(made: list[helm.Json]) -> set[tuple[str, str, str]]:
    """Kind, namespace (empty: the cluster's) and name."""
    return {
        (each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"])
        for each in made
    }


def _one(made: list[helm.Json], wanted: tuple[str, str]) -> helm.Json:
    (found,) = [each for each in made if (each["kind"], each["metadata"]["name"]) == wanted]
    return found


def _arguments(made: list[helm.Json]) -> list[str]:
    (deployment,) = [each for each in made if each["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    arguments: list[str] = container["args"]
    return arguments


def _pods(made: list[helm.Json]) -> list[Json]:
    deployed = [each["spec"]["template"] for each in made if each["kind"] == "Deployment"]
    return [*deployed, *(each for each in made if each["kind"] == "Pod")]
