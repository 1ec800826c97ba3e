"""What an upstream costs, beside what every embedder counts."""

from typing import Final

from prometheus_client import Counter, Gauge

from embedkeep.embedder.metrics import PURPOSES, EmbedderMetrics
from embedkeep.embedder.upstream.failures import Kind

CANARIES: Final = "canaries"
"""What looking at the model itself is booked under."""

ANSWERED: Final = "answered"


class UpstreamMetrics(EmbedderMetrics):
    """The metrics of a process that asks an upstream.

    Args:
        price_per_million_tokens: None: no money is counted.
    """

    def __init__(self, *, price_per_million_tokens: float | None) -> None:
        super().__init__()
        self._price = (price_per_million_tokens or 0.0) / 1e6
        purposes = sorted({*PURPOSES.values(), CANARIES})
        registry = self.registry
        self._tokens = Counter(
            "embedkeep_upstream_tokens", "Tokens that the upstream counted.", ["purpose"],
            registry=registry,
        )  # fmt: skip
        self._cost = Counter(
            "embedkeep_upstream_cost",
            "Money for these tokens, in the currency of the price that was given.",
            ["purpose"],
            registry=registry,
        )
        self.requests = Counter(
            "embedkeep_upstream_requests",
            "Requests made, by what came of them.",
            ["outcome"],
            registry=registry,
        )
        self.retries = Counter(
            "embedkeep_upstream_retries",
            "Requests that were made again, or were made to find a bad input.",
            registry=registry,
        )
        self.pause = Gauge(
            "embedkeep_upstream_pause_seconds",
            "What is left of a pause that the upstream asked for or needs; 0: there is none.",
            registry=registry,
        )
        self.in_flight = Gauge(
            "embedkeep_upstream_in_flight", "Requests that wait for an answer.", registry=registry
        )
        for purpose in purposes:
            self._tokens.labels(purpose)
            self._cost.labels(purpose)
        for outcome in (ANSWERED, *Kind):
            self.requests.labels(outcome)
        if price_per_million_tokens is not None:
            Gauge(
                "embedkeep_upstream_price_per_million_tokens",
                "As the resource gives it; absent: it gives none.",
                registry=registry,
            ).set(price_per_million_tokens)

    def paid(self, purpose: str, tokens: int) -> None:
        """Book tokens that the upstream has counted."""
        self._tokens.labels(purpose).inc(tokens)
        self._cost.labels(purpose).inc(tokens * self._price)
