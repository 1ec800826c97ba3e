"""`kubectl embedkeep` against a real API server, as kubectl finds it on PATH."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from embedkeep_operator.kubectl.report import Read, as_data, report
from support.apiserver import ApiServer
from support.kubernetes import a_cache as a_read_cache
from support.kubernetes import an_object
from support.node import scrape, tapped
from support.tap import Tap

NAMESPACE = "plugin"
PLANTED = "hunter2-CORRECT-horse"


@pytest.fixture(scope="module")
def server(kubernetes: ApiServer) -> ApiServer:
    """One with a cache of one shard in it, whose pod cannot pull its image."""
    kubernetes.define()
    kubernetes.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    cache: dict[str, Any] = {
        "apiVersion": "embedkeep.dev/v1alpha1",
        "kind": "EmbeddingCache",
        "metadata": {"name": "docs", "namespace": NAMESPACE},
        "spec": {
            "model": {"name": "all-MiniLM-L6-v2", "prompts": {"query": PLANTED}},
            "embedder": {"managed": {"backend": "onnx"}},
        },
    }
    (made,) = kubernetes.apply(cache)
    stalled = {"type": "Stalled", "status": "True", "reason": "ImagePull", "message": "no image",
               "lastTransitionTime": "2026-11-24T10:00:00Z"}  # fmt: skip
    has_status(kubernetes, {**cache, "status": {
        "observedGeneration": 1, "conditions": [stalled],
        "shards": {"wanted": 1, "ready": 0}, "nodes": {"wanted": 1, "ready": 0}}})  # fmt: skip
    shard, pod = a_shard(), a_pod()
    (placed,) = kubernetes.apply(owned(shard, "embedkeep.dev/v1alpha1", made))
    pod = owned(pod, "apps/v1", placed)
    kubernetes.apply(pod)
    has_status(
        kubernetes,
        {
            **pod,
            "status": {
                "phase": "Pending",
                "containerStatuses": [
                    {
                        "name": "node",
                        "ready": False,
                        "restartCount": 0,
                        "image": "nowhere",
                        "imageID": "",
                        "state": {
                            "waiting": {"reason": "ImagePullBackOff", "message": "no such image"}
                        },
                    }
                ],
            },
        },
    )
    planted = {"valkey-password": PLANTED}
    secret: dict[str, Any] = {"apiVersion": "v1", "kind": "Secret", "stringData": planted,
              "metadata": {"name": "docs-auth", "namespace": NAMESPACE,
                           "labels": shard["metadata"]["labels"]}}  # fmt: skip
    kubernetes.apply(secret)
    return kubernetes


def has_status(kubernetes: ApiServer, wanted: dict[str, Any]) -> None:
    """Give an object that is there a status, as whoever runs it would."""
    kubernetes.kubectl("apply", "--server-side", "--subresource=status", "--filename=-",
                       stdin=json.dumps(wanted))  # fmt: skip


def owned(given: dict[str, Any], version: str, owner: Any) -> dict[str, Any]:
    """*given*, controlled by *owner*."""
    reference = {"apiVersion": version, "kind": owner["kind"], "controller": True,
                 "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}  # fmt: skip
    metadata = {**given["metadata"], "ownerReferences": [reference]}
    return {**given, "metadata": metadata}


def a_shard() -> dict[str, Any]:
    labels = an_object("StatefulSet", "docs-shard-0")["metadata"]["labels"]
    metadata = {"name": "docs-shard-0", "namespace": NAMESPACE, "labels": labels}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata,
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": a_pod()["spec"]["containers"]},
            },
        },
    }


def a_pod() -> dict[str, Any]:
    labels = an_object("Pod", "docs-shard-0-0")["metadata"]["labels"]
    proxy = {"name": "HTTPS_PROXY", "value": f"http://me:{PLANTED}@proxy:3128"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "docs-shard-0-0", "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "nodeName": "machine-1",
            "containers": [{"name": "node", "image": "nowhere", "env": [proxy]}],
        },
    }


def kubectl(
    server: ApiServer, *arguments: str, kubeconfig: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`kubectl embedkeep ...`, found by kubectl as any plugin is."""
    binaries = [str(Path(sys.executable).parent), str(server.kubectl_binary.parent)]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([*binaries, os.environ["PATH"]]),
        "KUBECONFIG": str(kubeconfig or server.kubeconfig),
        "COLUMNS": "160",
    }
    command = [str(server.kubectl_binary), "embedkeep", *arguments]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, timeout=60
    )


def test_status_shows_the_tree_of_what_a_cache_owns_and_what_is_wrong(server: ApiServer) -> None:
    done = kubectl(server, "status", "docs", "-n", NAMESPACE)

    assert (done.returncode, done.stderr) == (0, "")
    said = " ".join(done.stdout.split())
    for wanted in (
        "plugin/docs in trouble",
        "Stalled True ImagePull no image",
        "└── StatefulSet/docs-shard-0 0 of 1 ready └── Pod/docs-shard-0-0 node: ImagePullBackOff",
    ):
        assert wanted in said


def test_status_for_scripts_is_json_of_the_same(server: ApiServer) -> None:
    done = kubectl(server, "status", "--all-namespaces", "--output=json")

    (found,) = [each for each in json.loads(done.stdout) if each["namespace"] == NAMESPACE]
    assert (found["name"], found["state"], found["hit_ratio"]) == ("docs", "bad", None)
    (shard,) = found["owned"]
    assert [each["name"] for each in shard["below"]] == ["docs-shard-0-0"]
    assert found["problems"] == []


def test_a_bundle_has_what_is_needed_and_nothing_that_was_planted(
    server: ApiServer, tmp_path: Path
) -> None:
    file = tmp_path / "bundle.tar.gz"

    done = kubectl(server, "diagnose", "docs", "-n", NAMESPACE, "--file", str(file), "-o", "json")

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["file"] == str(file)
    with tarfile.open(file) as archive:
        read = {
            member.name.partition("/")[2]: archive.extractfile(member).read().decode()  # type: ignore[union-attr]  # all are files
            for member in archive.getmembers()
        }
    assert [*read] == said["files"]
    assert {"embeddingcache.yaml", "objects/Pod-docs-shard-0-0.yaml", "status.txt"} <= {*read}
    assert not [path for path in read if "Secret" in path]
    assert not [path for path, content in read.items() if PLANTED in content]
    # No kubelet: its log cannot be read, and that is said.
    assert any("log docs-shard-0-0-node" in problem for problem in said["problems"])


def test_what_may_not_be_read_is_said_and_does_not_hide_the_rest(
    server: ApiServer, tmp_path: Path
) -> None:
    """Many who look at a cache may not list all kinds in its namespace."""
    rule = {"apiGroups": ["embedkeep.dev"], "resources": ["embeddingcaches"],
            "verbs": ["get", "list"]}  # fmt: skip
    pods = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}
    place = {"name": "looker", "namespace": NAMESPACE}
    server.apply(
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": place,
         "rules": [rule, pods]},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": place,
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "looker"},
         "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io",
                       "name": "looker"}]},
    )  # fmt: skip
    config = json.loads(server.kubeconfig.read_text())
    config["users"][0]["user"]["as"] = "looker"
    kubeconfig = tmp_path / "looker"
    kubeconfig.write_text(json.dumps(config))

    done = kubectl(server, "status", "docs", "-n", NAMESPACE, kubeconfig=kubeconfig)

    assert done.returncode == 0, done.stderr
    assert "in trouble" in done.stdout
    assert 'cannot list resource "statefulsets"' in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("status", "nothing", "-n", NAMESPACE), '"nothing" not found'),
        (("status", "docs", "-A"), "--all-namespaces goes with no NAME"),
        (("status", "--context", "nowhere"), "not found for specified context: nowhere"),
        (
            ("diagnose", "docs", "-n", NAMESPACE, "-f", "/nowhere/at/all"),
            "/nowhere/at/all: No such",
        ),
        (("diagnose",), "Missing argument 'NAME'"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    server: ApiServer, arguments: tuple[str, ...], says: str
) -> None:
    done = kubectl(server, *arguments)

    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_nodes_own_metrics_give_its_hit_ratio(tap: Tap, tmp_path: Path) -> None:
    async with tapped(tap, tmp_path) as node:
        await node.embed("one", "two", "three")
        await node.embed("one")
        told = scrape(node.metrics_port)

    data = as_data(report(Read(cache=a_read_cache(), metrics={"docs-shard-0-0": told})))

    assert data["hit_ratio"] == pytest.approx(1 / 4)
