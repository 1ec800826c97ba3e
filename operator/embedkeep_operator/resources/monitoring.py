"""What a monitoring stack is told, where the resource asks for it.

What to scrape, and when to call somebody; what to show is in `dashboard`. All three carry the
resource's own labels too, by which a Prometheus chooses what is its own.
"""

from dataclasses import dataclass
from typing import Final

from lightkube.core.resource import NamespacedResource
from lightkube.generic_resource import create_namespaced_resource

from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.resources.context import Context
from embedkeep_operator.resources.names import SCRAPED, meta, of, selector

ServiceMonitor = create_namespaced_resource(
    "monitoring.coreos.com", "v1", "ServiceMonitor", "servicemonitors"
)
PrometheusRule = create_namespaced_resource(
    "monitoring.coreos.com", "v1", "PrometheusRule", "prometheusrules"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """When somebody is to look, and at what. `{nodes}` and `{embedder}` choose the cache's own."""

    name: str
    expression: str
    lasting: str
    """How long it must hold, as Prometheus writes it."""
    severity: str
    summary: str
    what_to_do: str


ALERTS: Final = (
    Alert(
        name="EmbedKeepNodeDown",
        expression="up{{{nodes}}} == 0",
        lasting="5m",
        severity="warning",
        summary="A cache node does not answer Prometheus",
        what_to_do="Its keys are answered by the other nodes, by computing. Look at the pod.",
    ),
    Alert(
        name="EmbedKeepEmbedderDown",
        expression="up{{{embedder}}} == 0 or absent(up{{{embedder}}})",
        lasting="5m",
        severity="critical",
        summary="An embedder is not there, or does not answer Prometheus",
        what_to_do="Repeats are still answered, new texts are not. Look at the pod's events.",
    ),
    Alert(
        name="EmbedKeepErrors",
        expression=(
            'sum(rate(embedkeep_lookups_total{{result="error",{nodes}}}[5m]))'
            " / sum(rate(embedkeep_lookups_total{{{nodes}}}[5m])) > 0.01"
        ),
        lasting="10m",
        severity="critical",
        summary="More than 1 in 100 texts get an error",
        what_to_do="Look at the embedder: what is in the cache is answered without it.",
    ),
    Alert(
        name="EmbedKeepRefusing",
        expression="sum(rate(embedkeep_refused_total{{{nodes}}}[5m])) > 0",
        lasting="10m",
        severity="warning",
        summary="Callers are refused, because too many texts wait for the embedder",
        what_to_do="Add embedders, or let bulk callers send with priority bulk.",
    ),
    Alert(
        name="EmbedKeepValkeyLeftAlone",
        expression='max(embedkeep_breaker_open{{tier="valkey",{nodes}}}) > 0',
        lasting="10m",
        severity="warning",
        summary="A Valkey is left alone, because it failed or is too slow",
        what_to_do="What it holds is computed again. Look at the valkey container beside the node.",
    ),
    Alert(
        name="EmbedKeepModelDrift",
        expression="max(embedkeep_model_drift{{{nodes}}}) > 0",
        lasting="5m",
        severity="critical",
        summary="An embedder is refused: it computes something else than what is in the cache",
        what_to_do="Look whether model, revision, backend and image are those meant.",
    ),
    Alert(
        name="EmbedKeepCorruptRecords",
        expression="sum(increase(embedkeep_corrupt_records_total{{{nodes}}}[1h])) > 0",
        lasting="0m",
        severity="warning",
        summary="Records came back from Valkey damaged; they were treated as misses",
        what_to_do="Look at the memory of that host, and at who else writes into these Valkeys.",
    ),
    Alert(
        name="EmbedKeepModelFails",
        expression="sum(rate(embedkeep_embed_failed_inputs_total{{{embedder}}}[5m])) > 0",
        lasting="10m",
        severity="warning",
        summary="The model fails on some texts",
        what_to_do="Look at the embedder's log; it says why, never the text.",
    ),
)


def build_service_monitor(resource: EmbeddingCache, context: Context) -> NamespacedResource:
    """Every node, ready or not, and every embedder; each once."""
    return ServiceMonitor(
        apiVersion="monitoring.coreos.com/v1",
        kind="ServiceMonitor",
        metadata=meta(resource, context, of(resource), more=resource.metadata.labels),
        spec={
            "selector": {"matchLabels": {**selector(resource, None), SCRAPED: "true"}},
            "endpoints": [{"port": "metrics", "interval": "15s"}],
        },
    )


def build_rules(resource: EmbeddingCache, context: Context) -> NamespacedResource:
    """The alerts, about this cache alone."""
    return PrometheusRule(
        apiVersion="monitoring.coreos.com/v1",
        kind="PrometheusRule",
        metadata=meta(resource, context, of(resource), more=resource.metadata.labels),
        spec={
            "groups": [
                {
                    "name": f"embedkeep.{context.namespace}.{of(resource)}",
                    "rules": [_rule(alert, resource, context) for alert in ALERTS],
                }
            ]
        },
    )


def _rule(alert: Alert, resource: EmbeddingCache, context: Context) -> dict[str, object]:
    cache = f"{context.namespace}/{of(resource)}"
    return {
        "alert": alert.name,
        "expr": alert.expression.format(**chosen(resource, context)),
        "for": alert.lasting,
        "labels": {"severity": alert.severity, "embeddingcache": of(resource)},
        "annotations": {
            "summary": f"{alert.summary} (EmbeddingCache {cache})",
            "description": alert.what_to_do,
        },
    }


def chosen(resource: EmbeddingCache, context: Context) -> dict[str, str]:
    """Labels that the Prometheus operator puts on what it scrapes by a ServiceMonitor."""
    return {
        name: f'namespace="{context.namespace}",service="{of(resource, name)}"'
        for name in ("nodes", "embedder")
    }
