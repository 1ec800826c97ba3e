"""Who may talk to whom, as a network that enforces the policies would see it.

The policies of three caches are evaluated together over all pairs of pods and all ports, and what
they let through is compared with a table for people.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import pytest
from lightkube.models.meta_v1 import LabelSelector
from lightkube.models.networking_v1 import NetworkPolicyPeer, NetworkPolicyPort
from lightkube.resources.networking_v1 import NetworkPolicy

from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.resources import Context, Pods, build
from embedkeep_operator.resources.names import Component, labels
from support.resources import CONTEXT, a_cache

GRPC, HTTP, METRICS, VALKEY, BUS, EMBED = 50051, 8080, 9090, 6379, 16379, 50052
PORTS = (GRPC, HTTP, METRICS, VALKEY, BUS, EMBED)


@dataclass(frozen=True, kw_only=True)
class Pod:
    """Somebody who talks, or is talked to."""

    name: str
    namespace: str = CONTEXT.namespace
    labels: Mapping[str, str] = field(default_factory=dict)


def pod_of(name: str, resource: EmbeddingCache, component: Component) -> Pod:
    return Pod(name=name, labels=labels(resource, component))


DOCS = a_cache(warmup={"history": {"enabled": True}})
OTHER = a_cache("other", warmup={"history": {"enabled": True}})
ELSEWHERE = replace(CONTEXT, namespace="elsewhere", uid="2")

NODE = pod_of("node", DOCS, Component.NODE)
EMBEDDER = pod_of("embedder", DOCS, Component.EMBEDDER)
PREDICTOR = pod_of("predictor", DOCS, Component.PREDICTOR)
PODS = (
    NODE,
    EMBEDDER,
    PREDICTOR,
    pod_of("other's node", OTHER, Component.NODE),
    pod_of("other's embedder", OTHER, Component.EMBEDDER),
    pod_of("other's predictor", OTHER, Component.PREDICTOR),
    replace(pod_of("namesake's node", DOCS, Component.NODE), namespace="elsewhere"),
    replace(pod_of("namesake's predictor", DOCS, Component.PREDICTOR), namespace="elsewhere"),
    Pod(name="client"),
    Pod(name="client elsewhere", namespace="apps"),
    Pod(
        name="operator",
        namespace="embedkeep-system",
        labels={"app.kubernetes.io/name": "embedkeep-operator", "pod-template-hash": "1"},
    ),
    Pod(name="operator's neighbour", namespace="embedkeep-system"),
    Pod(
        name="operator's double",
        namespace="apps",
        labels={"app.kubernetes.io/name": "embedkeep-operator"},
    ),
    Pod(name="prometheus", namespace="monitoring", labels={"app": "prometheus"}),
    Pod(name="grafana", namespace="monitoring", labels={"app": "grafana"}),
)
CALLERS = {"client", "client elsewhere", "operator", "operator's neighbour", "operator's double"}
CALLERS |= {"prometheus", "grafana"}
"""Pods that no policy of ours holds back."""
OUTGOING = {"embedder", "other's embedder"}
"""They download models, so they may go anywhere; a cache is no secret place for them."""

TABLE = {
    ("node", GRPC): CALLERS | OUTGOING | {"node"},
    ("node", HTTP): CALLERS | OUTGOING,
    ("node", METRICS): {"operator", "prometheus"},
    ("node", VALKEY): {"node", "predictor", "operator"},
    ("node", BUS): {"node"},
    ("embedder", EMBED): {"node"},
    ("embedder", METRICS): {"operator", "prometheus"},
}
"""Who may open a connection to a pod of the cache. What does not stand here may nobody."""


def policies(context: Context = CONTEXT, docs: EmbeddingCache = DOCS) -> list[NetworkPolicy]:
    """Of all three caches."""
    built = (
        *build(docs, context),
        *build(OTHER, replace(context, uid="3")),
        *build(DOCS, ELSEWHERE),
    )
    return [each for each in built if isinstance(each, NetworkPolicy)]


def chosen(selector: LabelSelector | None, carried: Mapping[str, str]) -> bool:
    """As the API server reads a selector: an empty one chooses all."""
    if selector is None:
        return True
    assert not selector.matchExpressions, "not evaluated here"
    return (selector.matchLabels or {}).items() <= carried.items()


def is_peer(peer: NetworkPolicyPeer, pod: Pod, namespace: str) -> bool:
    """Whether a rule of a policy in *namespace* means *pod*."""
    assert peer.ipBlock is None, "not evaluated here"
    named = {"kubernetes.io/metadata.name": pod.namespace}
    if peer.namespaceSelector is None:
        here = pod.namespace == namespace
    else:
        here = chosen(peer.namespaceSelector, named)
    return here and chosen(peer.podSelector, pod.labels)


def lets(
    peers: list[NetworkPolicyPeer] | None,
    ports: list[NetworkPolicyPort] | None,
    *,
    pod: Pod,
    port: int,
    namespace: str,
) -> bool:
    """Whether a rule lets *pod* through; without peers it means everybody, without ports all."""
    return (not ports or any(each.port == port and each.protocol == "TCP" for each in ports)) and (
        not peers or any(is_peer(peer, pod, namespace) for peer in peers)
    )


def of(pod: Pod, direction: str, found: list[NetworkPolicy]) -> Iterator[NetworkPolicy]:
    """Policies that hold for *pod*."""
    for policy in found:
        assert policy.spec is not None
        assert policy.metadata is not None
        if (
            policy.metadata.namespace == pod.namespace
            and direction in (policy.spec.policyTypes or [])
            and chosen(policy.spec.podSelector, pod.labels)
        ):
            yield policy


def may_connect(source: Pod, target: Pod, port: int, found: list[NetworkPolicy]) -> bool:
    """Both sides agree. A pod without a policy is open."""
    leaving, entering = list(of(source, "Egress", found)), list(of(target, "Ingress", found))
    out = not leaving or any(
        lets(rule.to, rule.ports, pod=target, port=port, namespace=source.namespace)
        for policy in leaving
        if policy.spec is not None
        for rule in policy.spec.egress or []
    )
    into = not entering or any(
        lets(rule.from_, rule.ports, pod=source, port=port, namespace=target.namespace)
        for policy in entering
        if policy.spec is not None
        for rule in policy.spec.ingress or []
    )
    return out and into


def reached(target: Pod, port: int, found: list[NetworkPolicy]) -> set[str]:
    return {source.name for source in PODS if may_connect(source, target, port, found)}


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("target", [NODE, EMBEDDER, PREDICTOR], ids=lambda pod: pod.name)
def test_only_those_in_the_table_may_connect(target: Pod, port: int) -> None:
    assert reached(target, port, policies()) == TABLE.get((target.name, port), set())


def test_an_embedder_with_its_model_at_hand_goes_nowhere() -> None:
    at_hand = DOCS.model_validate(
        DOCS.model_dump(by_alias=True, mode="json")
        | {
            "spec": DOCS.spec.model_dump(by_alias=True, mode="json", exclude_none=True)
            | {"model": {"name": "org/model", "source": {"path": "/models/minilm"}}}
        }
    )
    found = policies(docs=at_hand)

    assert [
        (target.name, port)
        for target in PODS
        for port in PORTS
        if may_connect(EMBEDDER, target, port, found)
    ] == []


def test_a_predictor_talks_to_valkeys_alone() -> None:
    found = policies()

    assert [
        (target.name, port)
        for target in PODS
        for port in PORTS
        if may_connect(PREDICTOR, target, port, found)
    ] == [("node", VALKEY)]


def test_nobody_reads_metrics_where_nobody_is_named() -> None:
    """A rule without peers would let everybody in."""
    found = policies(replace(CONTEXT, operator=None, scrapers=()))

    assert reached(NODE, METRICS, found) == set()
    assert reached(EMBEDDER, METRICS, found) == set()
    assert reached(NODE, VALKEY, found) == {"node", "predictor"}


def test_a_scraper_of_any_namespace_may_be_named() -> None:
    everywhere = Pods(labels={"app": "prometheus"})
    found = policies(replace(CONTEXT, operator=None, scrapers=(everywhere,)))

    assert reached(NODE, METRICS, found) == {"prometheus"}


def test_ports_that_the_resource_chooses_are_the_ones_that_are_open() -> None:
    moved = a_cache(nodes={"ports": {"grpc": 7001, "http": 7002, "metrics": 7003}})
    found = policies(docs=moved)

    assert reached(NODE, 7001, found) >= CALLERS
    assert reached(NODE, 7002, found) >= CALLERS
    assert reached(NODE, 7003, found) == {"operator", "prometheus"}
    assert reached(NODE, GRPC, found) == set()


def test_names_are_looked_up_by_all() -> None:
    for policy in policies():
        assert policy.spec is not None
        rules = policy.spec.egress or []
        assert any(
            rule.ports is None
            or {(each.port, each.protocol) for each in rule.ports} >= {(53, "UDP"), (53, "TCP")}
            for rule in rules
            if rule.to is None
        )
