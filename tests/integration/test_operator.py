"""The operator against a real API server, and nobody who would run what it makes.

What pods would add is in tests/e2e.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from embedkeep_operator.resources import OWNED
from embedkeep_operator.resources.names import SHARD
from support.apiserver import ApiServer
from support.node import scrape
from support.valkey import free_port

PATIENCE_S = 60.0
MADE = ",".join(kind.__name__.lower() for kind in OWNED)
Json = dict[str, Any]


@pytest.fixture(scope="module")
def server(kubernetes: ApiServer) -> ApiServer:
    """One that knows EmbeddingCaches."""
    kubernetes.define()
    return kubernetes


@dataclass
class World:
    """A namespace, an operator that looks after it alone, and a look at both."""

    server: ApiServer
    namespace: str
    folder: Path
    operators: list[subprocess.Popen[bytes]] = field(default_factory=list)
    metrics_port: int = 0

    def start(self, name: str = "a") -> subprocess.Popen[bytes]:
        self.metrics_port = free_port()
        with (self.folder / f"operator-{len(self.operators)}.log").open("wb") as log:
            process = subprocess.Popen(
            [sys.executable, "-m", "embedkeep", "operator", "--namespace", self.namespace,
             "--lease-namespace", self.namespace, "--metrics-port", str(self.metrics_port),
             "--health-port", str(free_port())],
            env={**os.environ, "KUBECONFIG": str(self.server.kubeconfig), "POD_NAME": name},
            stderr=log,
        )  # fmt: skip
        self.operators.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM) -> int:
        process.send_signal(how)
        return process.wait(20)

    def cache(self, name: str = "docs", **spec: Any) -> Json:
        return {
            "apiVersion": "embedkeep.dev/v1alpha1",
            "kind": "EmbeddingCache",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "model": {"name": "a/model", "source": {"path": "/model"}},
                "embedder": {"managed": {}},
                **spec,
            },
        }

    def get(self, what: str, *more: str) -> Json:
        found = self.server.kubectl("get", what, "-n", self.namespace, "-o", "json", *more)
        return dict(json.loads(found))

    def objects(self) -> dict[str, Json]:
        """What was made, by kind and name."""
        found = self.get(MADE, "-l", "app.kubernetes.io/managed-by=embedkeep-operator")["items"]
        return {f"{each['kind']}/{each['metadata']['name']}": each for each in found}

    def versions(self) -> dict[str, str]:
        """What grows with each write."""
        caches = {f"cache/{each['metadata']['name']}": each for each in self.get("ek")["items"]}
        found = self.objects() | caches
        return {name: each["metadata"]["resourceVersion"] for name, each in found.items()}

    def wait(self, condition: str, name: str = "docs") -> None:
        """Until the status says so: ``Ready=False``, with what generation is current."""
        self.server.kubectl(
            "wait", "-n", self.namespace, f"--for=condition={condition}",
            f"--timeout={PATIENCE_S:g}s", f"ek/{name}",
        )  # fmt: skip

    def looked(self) -> float:
        """How often the operator that runs has looked at anything."""
        try:
            text = scrape(self.metrics_port)
        except OSError:
            return 0.0
        (line,) = [
            each for each in text.splitlines()
            if each.startswith("embedkeep_operator_reconcile_seconds_count")
        ]  # fmt: skip
        return float(line.split()[1])

    def asked(self) -> set[str]:
        """Verbs that the API server was asked, beside the watches."""
        name = "embedkeep_operator_api_requests_total{"
        found = [each for each in scrape(self.metrics_port).splitlines() if each.startswith(name)]
        return {each.partition('verb="')[2].partition('"')[0] for each in found}

    def await_looks(self, more: float = 3) -> None:
        """Until it has looked again; kubectl has no way to wait for that."""
        before, until = self.looked(), time.monotonic() + PATIENCE_S
        while self.looked() < before + more:
            assert time.monotonic() < until, self.log()
            time.sleep(0.1)

    def until(self, there: Any) -> Any:
        """Until *there* returns something."""
        until = time.monotonic() + PATIENCE_S
        while not (found := there()):
            assert time.monotonic() < until, self.log()
            time.sleep(0.1)
        return found

    def log(self) -> str:
        return "\n".join(each.read_text()[-3000:] for each in self.folder.glob("operator-*.log"))


@contextmanager
def world_of(server: ApiServer, folder: Path, name: str) -> Iterator[World]:
    server.kubectl("create", "namespace", name)
    world = World(server=server, namespace=name, folder=folder)
    try:
        yield world
    finally:
        for process in world.operators:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture
def world(server: ApiServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    name = f"test-{abs(hash(request.node.nodeid)) % 10**9}"
    with world_of(server, tmp_path, name) as found:
        yield found


def test_a_resource_becomes_objects_that_belong_to_it(world: World) -> None:
    world.server.apply(world.cache(nodes={"shards": 3, "replicasPerShard": 1}))
    world.start()
    world.wait("Ready=False")
    made = world.until(
        lambda: (found := world.objects()) and "Deployment/docs-embedder" in found and found
    )

    shards = [each for name, each in made.items() if name.startswith("StatefulSet/")]
    assert [each["metadata"]["labels"][SHARD] for each in shards] == ["0", "1", "2"]
    assert {each["spec"]["replicas"] for each in shards} == {2}
    (cache,) = world.get("ek")["items"]
    for each in made.values():
        (owner,) = each["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == (cache["metadata"]["uid"], True)
    assert cache["status"]["nodes"] == {"wanted": 6, "ready": 0}
    assert cache["status"]["observedGeneration"] == 1
    events = {each["reason"] for each in world.get("events.events.k8s.io")["items"]}
    assert "NodesNotReady" in events


def test_a_steady_state_writes_nothing_and_a_restart_neither(world: World) -> None:
    world.server.apply(world.cache())
    first = world.start()
    world.wait("Ready=False")
    world.await_looks()
    before = world.versions()
    world.await_looks()
    assert world.versions() == before

    assert world.stop(first) == 0
    world.start("b")
    world.await_looks()
    assert world.versions() == before
    assert world.asked() == {"list", "get", "update"}  # it updates its Lease


def test_what_is_edited_or_deleted_by_hand_comes_back(world: World) -> None:
    world.server.apply(world.cache())
    world.start()
    world.wait("Ready=False")
    world.await_looks()
    kubectl = world.server.kubectl
    kubectl("-n", world.namespace, "delete", "service", "docs")
    kubectl("-n", world.namespace, "scale", "statefulset", "docs-shard-0", "--replicas=7")
    kubectl("-n", world.namespace, "label", "configmap", "docs-node", "mine=stays")

    def mended() -> bool:
        found = world.objects()
        return (
            "Service/docs" in found and found["StatefulSet/docs-shard-0"]["spec"]["replicas"] == 1
        )

    assert world.until(mended)
    assert world.objects()["ConfigMap/docs-node"]["metadata"]["labels"]["mine"] == "stays"


def test_a_paused_resource_is_left_as_it_is(world: World) -> None:
    world.server.apply(world.cache(paused=True))
    world.start()
    world.wait("Ready=False")

    assert not world.objects()
    reasons = {
        each["type"]: each["reason"] for each in world.get("ek")["items"][0]["status"]["conditions"]
    }
    assert reasons["Ready"] == "Paused"


def test_a_spec_that_changes_is_followed(world: World) -> None:
    world.server.apply(world.cache())
    world.start()
    world.wait("Ready=False")
    world.await_looks()
    before = world.objects()["StatefulSet/docs-shard-0"]["spec"]["template"]
    world.server.apply(world.cache(nodes={"memory": {"valkey": "2Gi"}}))

    world.until(lambda: world.objects()["StatefulSet/docs-shard-0"]["spec"]["template"] != before)
    assert world.until(lambda: world.get("ek")["items"][0]["status"]["observedGeneration"] == 2)


def test_two_resources_of_one_name_have_nothing_in_common(
    world: World, server: ApiServer, tmp_path: Path
) -> None:
    with world_of(server, tmp_path, f"{world.namespace}-b") as other:
        for each in (world, other):
            server.apply(each.cache())
            each.start()
            each.wait("Ready=False")
            each.until(lambda each=each: "Deployment/docs-embedder" in each.objects())
        uids = [each.get("ek")["items"][0]["metadata"]["uid"] for each in (world, other)]
        secrets = [each.get("secret", "docs-auth")["data"] for each in (world, other)]

        assert uids[0] != uids[1]
        assert secrets[0] != secrets[1]
        server.kubectl("-n", world.namespace, "delete", "ek", "docs")
        other.await_looks()
        assert "Deployment/docs-embedder" in other.objects()


def test_a_second_operator_waits_and_follows_at_once_when_the_first_ends(world: World) -> None:
    world.server.apply(world.cache())
    first = world.start("first")
    world.wait("Ready=False")
    world.start("second")

    def holder() -> str:
        found = world.get("lease", "embedkeep-operator")
        return str(found["spec"]["holderIdentity"])

    assert holder() == "first"
    assert world.stop(first) == 0
    assert world.until(lambda: holder() == "second")
    world.server.apply(world.cache(nodes={"shards": 1, "memory": {"l1": "1Gi"}}))
    assert world.until(lambda: world.get("ek")["items"][0]["status"]["observedGeneration"] == 2)


def test_what_is_not_built_is_refused_by_name_and_nothing_is_made(world: World) -> None:
    storage = {"storage": {"size": "1Gi"}}
    world.server.apply(world.cache(nodes=storage, similarity={"mode": "Serve"}))
    world.start()
    world.wait("Stalled=True")

    (cache,) = world.get("ek")["items"]
    (said,) = [each for each in cache["status"]["conditions"] if each["type"] == "Stalled"]
    assert said["reason"] == "NotBuilt"
    assert "spec.nodes.storage.size: keeping entries on a claim is not built yet" in said["message"]
    assert "spec.similarity.mode: Serve is not built yet" in said["message"]
    assert not world.objects()


def test_a_secret_that_is_missing_is_named_and_its_coming_mends_it(world: World) -> None:
    world.server.apply(world.cache(security={"tls": {"secretName": "nowhere"}}))
    world.start()
    world.wait("Stalled=True")

    (cache,) = world.get("ek")["items"]
    said = {each["type"]: each for each in cache["status"]["conditions"]}
    assert said["Ready"]["reason"] == "Missing"
    assert f"no Secret nowhere in {world.namespace}" in said["Stalled"]["message"]
    authority = Path(str(world.server.ca_file)).read_text()
    world.server.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "nowhere", "namespace": world.namespace},
            "stringData": {"ca.crt": authority, "tls.crt": "", "tls.key": ""},
        }
    )
    world.wait("Stalled=False")


def test_what_a_monitoring_stack_is_told_comes_and_goes_with_the_wish(world: World) -> None:
    define_monitors(world.server)
    world.server.apply(world.cache(monitoring={"serviceMonitor": True}))
    world.start()

    def monitors() -> list[Json]:
        return list(world.get("servicemonitors")["items"])

    world.until(monitors)
    world.server.apply(world.cache(monitoring={"serviceMonitor": False}))
    world.until(lambda: not monitors())


def define_monitors(server: ApiServer) -> None:
    """As a monitoring stack does."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    names = {"kind": "ServiceMonitor", "plural": "servicemonitors", "singular": "servicemonitor"}
    version = {
        "name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}
    }  # fmt: skip
    server.apply(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": "servicemonitors.monitoring.coreos.com"},
            "spec": {
                "group": "monitoring.coreos.com",
                "scope": "Namespaced",
                "names": names,
                "versions": [version],
            },
        }
    )
    server.kubectl(
        "wait", "--for=condition=established", "--timeout=60s",
        "crd/servicemonitors.monitoring.coreos.com",
    )  # fmt: skip


def test_secrets_are_made_once_and_never_shown(world: World) -> None:
    world.server.apply(world.cache())
    first = world.start()
    world.wait("Ready=False")
    before = world.get("secret", "docs-auth")["data"]
    world.stop(first)
    world.start()
    world.await_looks()

    assert world.get("secret", "docs-auth")["data"] == before
    whole = json.dumps([*world.objects().values(), world.get("ek"), world.get("events")])
    assert not any(value in whole for value in before.values())
