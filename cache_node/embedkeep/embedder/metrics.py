"""What an embedder counts. No text, no tenant and no flow stands in any label."""

import importlib.metadata

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from embedkeep.v1.embedder_pb2 import Purpose

PURPOSES = {
    Purpose.PURPOSE_UNSPECIFIED: "demand",
    Purpose.PURPOSE_DEMAND: "demand",
    Purpose.PURPOSE_BULK: "bulk",
    Purpose.PURPOSE_WARM: "warm",
    Purpose.PURPOSE_SHADOW: "shadow",
    Purpose.PURPOSE_BACKGROUND: "background",
}
"""What each purpose on the wire is called in labels."""

_SIZES = tuple(2.0**power for power in range(11))
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class EmbedderMetrics:
    """The metrics of one process, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str) -> Counter:
            found = Counter(name, text, ["purpose"], registry=self.registry)
            for purpose in set(PURPOSES.values()):
                found.labels(purpose)  # a counter that is absent cannot be told from one at 0
            return found

        self.inputs = counter("embedkeep_embed_inputs", "Inputs computed.")
        self.tokens = counter("embedkeep_embed_tokens", "Tokens of inputs computed.")
        self.device_seconds = counter(
            "embedkeep_embed_device_seconds", "Time the device was busy, apportioned by tokens."
        )
        self.shared = counter(
            "embedkeep_embed_shared_inputs",
            "Inputs answered by the computation of an equal one that waited beside them.",
        )
        self.failed = counter("embedkeep_embed_failed_inputs", "Inputs the model failed on.")
        self.refused = counter(
            "embedkeep_embed_refused_inputs",
            "Inputs refused: the queue is full, or takes longer than their caller waits.",
        )
        self.dropped = counter(
            "embedkeep_embed_dropped_inputs", "Queued inputs whose caller left before their turn."
        )
        self.queued = Gauge(
            "embedkeep_embed_queue_inputs",
            "Inputs waiting, to be read as tokens or to be computed.",
            ["purpose"],
            registry=self.registry,
        )
        for purpose in set(PURPOSES.values()):
            self.queued.labels(purpose)
        self.batch_inputs = Histogram(
            "embedkeep_embed_batch_inputs",
            "Inputs of a batch.",
            buckets=_SIZES,
            registry=self.registry,
        )
        self.batch_seconds = Histogram(
            "embedkeep_embed_batch_seconds",
            "Time a batch kept the device busy.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._build = Gauge(
            "embedkeep_build_info",
            "Always 1; its labels say what runs.",
            ["version", "process", "backend", "device", "dtype"],
            registry=self.registry,
        )

    def running(self, *, backend: str, device: str, dtype: str) -> None:
        """Say what runs."""
        version = importlib.metadata.version("embedkeep")
        self._build.labels(version, "embedder", backend, device, dtype).set(1)
