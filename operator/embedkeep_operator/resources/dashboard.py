"""What Grafana shows of one cache."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from lightkube.resources.core_v1 import ConfigMap

from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.resources.context import Context
from embedkeep_operator.resources.monitoring import chosen
from embedkeep_operator.resources.names import meta, of


def rate(series: str, *, by: str = "") -> str:
    """How fast a counter grows, over all that were scraped; *by* a label."""
    return f"sum{f' by ({by})' if by else ''} (rate({series}[$__rate_interval]))"


def quantile(share: float, histogram: str) -> str:
    """Of a histogram, over all that were scraped."""
    return f"histogram_quantile({share}, {rate(histogram, by='le')})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One graph. `{nodes}` and `{embedder}` choose the cache's own."""

    title: str
    unit: str
    """As Grafana calls it."""
    lines: Mapping[str, str]
    """Expressions, by what their lines are called."""


_REQUESTS: Final = "embedkeep_request_seconds_bucket{{{nodes}}}"
_LOOKUPS: Final = "embedkeep_lookups_total{{{nodes}}}"
_HITS: Final = 'embedkeep_lookups_total{{result=~"l1|valkey|peer|coalesced",{nodes}}}'

PANELS: Final = (
    Panel(
        title="Texts answered without computing",
        unit="percentunit",
        lines={"share": f"{rate(_HITS)} / {rate(_LOOKUPS)}"},
    ),
    Panel(
        title="Texts a second, by how they were answered",
        unit="cps",
        lines={"{{result}}": rate(_LOOKUPS, by="result")},
    ),
    Panel(
        title="Time to answer a request",
        unit="s",
        lines={"p50": quantile(0.5, _REQUESTS), "p99": quantile(0.99, _REQUESTS)},
    ),
    Panel(
        title="Device time: saved, and spent by purpose",
        unit="percentunit",
        lines={
            "saved": rate("embedkeep_saved_device_seconds_total{{{nodes}}}"),
            "{{purpose}}": rate("embedkeep_embed_device_seconds_total{{{embedder}}}", by="purpose"),
        },
    ),
    Panel(
        title="Entries, by tier",
        unit="short",
        lines={"{{tier}}": "sum by (tier) (embedkeep_entries{{{nodes}}})"},
    ),
    Panel(
        title="Memory, by tier",
        unit="bytes",
        lines={"{{tier}}": "sum by (tier) (embedkeep_bytes{{{nodes}}})"},
    ),
    Panel(
        title="Evictions a second, by tier",
        unit="cps",
        lines={"{{tier}}": rate("embedkeep_evictions_total{{{nodes}}}", by="tier")},
    ),
    Panel(
        title="Texts that wait for an embedder, and texts a second that were refused",
        unit="short",
        lines={
            "waiting": "sum(embedkeep_pending_inputs{{{nodes}}})",
            "refused": rate("embedkeep_refused_total{{{nodes}}}"),
        },
    ),
)


def build_dashboard(resource: EmbeddingCache, context: Context) -> ConfigMap:
    """For Grafana, whose sidecar finds it by its label."""
    name = f"{context.namespace}-{of(resource)}"
    return ConfigMap(
        metadata=meta(
            resource,
            context,
            of(resource, "dashboard"),
            more={**resource.metadata.labels, "grafana_dashboard": "1"},
        ),
        data={f"embedkeep-{name}.json": json.dumps(_dashboard(resource, context), indent=1)},
    )


def _dashboard(resource: EmbeddingCache, context: Context) -> dict[str, object]:
    own = chosen(resource, context)
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "title": f"embedkeep {context.namespace}/{of(resource)}",
        "uid": f"embedkeep-{context.uid}"[:40],
        "tags": ["embedkeep"],
        "schemaVersion": 39,
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "templating": {
            "list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]
        },
        "panels": [
            {
                "id": 1 + place,
                "type": "timeseries",
                "title": panel.title,
                "datasource": source,
                "gridPos": {"h": 8, "w": 12, "x": 12 * (place % 2), "y": 8 * (place // 2)},
                "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
                "targets": [
                    {
                        "refId": chr(ord("A") + at),
                        "datasource": source,
                        "expr": expression.format(**own),
                        "legendFormat": legend,
                    }
                    for at, (legend, expression) in enumerate(panel.lines.items())
                ],
            }
            for place, panel in enumerate(PANELS)
        ],
    }
