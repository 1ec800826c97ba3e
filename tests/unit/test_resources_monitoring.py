"""What a monitoring stack is told, against what processes really serve."""

import json
import re
from dataclasses import replace
from pathlib import Path

from embedkeep_operator.resources import build, missing
from embedkeep_operator.resources.context import CERTIFICATES, RULES, SERVICE_MONITORS
from embedkeep_operator.resources.dashboard import build_dashboard
from embedkeep_operator.resources.monitoring import build_rules, build_service_monitor
from embedkeep_operator.resources.services import (
    build_client_service,
    build_embedder_service,
    build_grpc_service,
    build_nodes_service,
)
from support.resources import CONTEXT, a_cache, as_json, at

REFERENCE = (Path(__file__).parents[2] / "docs" / "reference.md").read_text()
METRIC = re.compile(r"embedkeep_[a-z0-9_]+")
ALL = a_cache(
    monitoring={"serviceMonitor": True, "rules": True, "dashboard": True},
    security={"tls": {"issuerRef": {"name": "internal"}}},
)


def expressions() -> list[str]:
    rules = at(as_json(build_rules(ALL, CONTEXT)), "spec", "groups", 0, "rules")
    assert isinstance(rules, list)
    (text,) = (build_dashboard(ALL, CONTEXT).data or {}).values()
    drawn = [target["expr"] for panel in json.loads(text)["panels"] for target in panel["targets"]]
    return [rule["expr"] for rule in rules] + drawn


def test_what_is_asked_of_prometheus_is_what_processes_serve() -> None:
    served = set(METRIC.findall(REFERENCE))
    asked = {
        name.removesuffix("_bucket")
        for expression in expressions()
        for name in METRIC.findall(expression)
    }

    assert asked
    assert asked <= served, "docs/reference.md lists all metrics"


def test_labels_that_are_asked_for_are_those_that_are_served() -> None:
    """An alert on a value that never comes is an alert that never fires."""
    for expression in expressions():
        for name, label, values in re.findall(
            r'(embedkeep_[a-z_]+?)(?:_bucket)?\{(\w+)=~?"([^"]*)"', expression
        ):
            if label in {"namespace", "service"}:
                continue
            (row,) = re.findall(rf"^\| `{name}` \|.*$", REFERENCE, re.MULTILINE)
            known = re.search(rf"`{label}`: ([^|]*)", row)
            assert known, f"{name} has no label {label}"
            assert set(values.split("|")) <= {each.strip() for each in known[1].split(",")}


def test_every_expression_is_of_this_cache_alone() -> None:
    for expression in expressions():
        chosen = len(re.findall(r'namespace="search",service="docs-(nodes|embedder)"', expression))
        assert chosen == expression.count("{") == expression.count("}"), expression


def test_each_pod_is_scraped_once() -> None:
    monitor = as_json(build_service_monitor(ALL, CONTEXT))
    wanted = at(monitor, "spec", "selector", "matchLabels")
    assert isinstance(wanted, dict)
    chosen = [
        at(as_json(service), "metadata", "name")
        for service in (
            build_client_service(ALL, CONTEXT),
            build_grpc_service(ALL, CONTEXT),
            build_nodes_service(ALL, CONTEXT),
            build_embedder_service(ALL, CONTEXT),
        )
        if wanted.items() <= dict(_labels(as_json(service))).items()
    ]

    assert chosen == ["docs-nodes", "docs-embedder"]


def _labels(service: object) -> dict[str, object]:
    found = at(service, "metadata", "labels")
    assert isinstance(found, dict)
    return found


def test_the_resources_own_labels_choose_the_prometheus() -> None:
    labelled = ALL.model_copy(
        update={"metadata": ALL.metadata.model_copy(update={"labels": {"release": "main"}})}
    )

    for built in (build_service_monitor(labelled, CONTEXT), build_rules(labelled, CONTEXT)):
        assert at(as_json(built), "metadata", "labels", "release") == "main"


def kinds(*there: str) -> list[object]:
    context = replace(CONTEXT, kinds=frozenset(there))
    names = {"ServiceMonitor", "PrometheusRule", "Certificate"}
    return [
        at(as_json(built), "kind")
        for built in build(ALL, context)
        if at(as_json(built), "kind") in names
    ]


def test_what_the_cluster_does_not_know_is_left_out_and_said() -> None:
    bare = replace(CONTEXT, kinds=frozenset())

    assert kinds() == []
    assert [(each.field, each.kind) for each in missing(ALL, bare)] == [
        ("spec.security.tls.issuerRef", CERTIFICATES),
        ("spec.monitoring.serviceMonitor", SERVICE_MONITORS),
        ("spec.monitoring.rules", RULES),
    ]
    assert missing(a_cache(), bare) == ()


def test_what_the_cluster_knows_is_built() -> None:
    assert kinds(CERTIFICATES, SERVICE_MONITORS, RULES) == [
        "Certificate", "ServiceMonitor", "PrometheusRule"
    ]  # fmt: skip
    assert missing(ALL, CONTEXT) == ()


def test_nothing_is_watched_unless_it_is_asked_for() -> None:
    built = [at(as_json(each), "metadata", "name") for each in build(a_cache(), CONTEXT)]

    assert "docs-dashboard" not in built
