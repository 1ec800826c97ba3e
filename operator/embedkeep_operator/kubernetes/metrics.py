"""What an operator counts, on /metrics."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class OperatorMetrics:
    """One operator's metrics in one registry."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.reconciled = Histogram(
            "embedkeep_operator_reconcile_seconds",
            "Time to look at one EmbeddingCache and to do what it needs.",
            buckets=SECONDS,
            registry=registry,
        )
        self.failed = Counter(
            "embedkeep_operator_reconcile_errors",
            "Times that it could not be done, by reason.",
            ["reason"],
            registry=registry,
        )
        self.applied = Counter(
            "embedkeep_operator_applies",
            "Objects that were applied, by kind. None in a steady state.",
            ["kind"],
            registry=registry,
        )
        self.requests = Counter(
            "embedkeep_operator_api_requests",
            "Requests to the API server beside the watches, by verb and how they ended.",
            ["verb", "result"],
            registry=registry,
        )
        self._queue = Gauge(
            "embedkeep_operator_queue_age_seconds",
            "How long the resource has waited that has waited longest. 0: none does.",
            registry=registry,
        )
        self._heard = Gauge(
            "embedkeep_operator_last_event_age_seconds",
            "Time since the last event of any watch. Grows where watches are deaf.",
            registry=registry,
        )
        self.leading = Gauge(
            "embedkeep_operator_leading", "1: holds the Lease and works.", registry=registry
        )
        self.resources = Gauge(
            "embedkeep_operator_resources", "EmbeddingCaches, by whether they are Ready.",
            ["ready"], registry=registry,
        )  # fmt: skip

    def ended(self, verb: str, result: str) -> None:
        """A request has ended; see `kube.Requests`."""
        self.requests.labels(verb, result).inc()

    def watch(self, *, queue_age_s: Callable[[], float], event_age_s: Callable[[], float]) -> None:
        """What is asked at each scrape."""
        self._queue.set_function(queue_age_s)
        self._heard.set_function(event_age_s)
