"""What a node counts, on /metrics. No tenant's name and no text is ever a label."""

from enum import StrEnum
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LATENCY_BUCKETS_S = (
    0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
)  # fmt: skip


class Result(StrEnum):
    """How one input was answered."""

    L1 = "l1"
    VALKEY = "valkey"
    PEER = "peer"
    """From another node's memory or its Valkey, through that node."""
    EMBEDDER = "embedder"
    COALESCED = "coalesced"
    NOT_CACHED = "not_cached"
    """only_if_cached, and there was no entry."""
    ERROR = "error"


class Noted(StrEnum):
    """What became of an ask that was to be kept in a history."""

    WRITTEN = "written"
    TOO_LONG = "too_long"
    NO_ROOM = "no_room"
    """Too much waited to be written, of all or of its tenant."""
    LOST = "lost"
    """Valkey did not take it."""
    WITHDRAWN = "withdrawn"
    """Its tenant has withdrawn something before it was written."""


class Warmed(StrEnum):
    """What became of a text that a plan names and that was not cached."""

    STORED = "stored"
    PRESENT = "present"
    """Somebody has asked for it meanwhile."""
    WITHDRAWN = "withdrawn"
    """Its tenant, or the model, has moved on meanwhile."""
    FAILED = "failed"


class Hop(StrEnum):
    """How a call to a peer ended."""

    ANSWERED = "answered"
    REFUSED = "refused"
    """It answers, and does not do this."""
    LATE = "late"
    """It did not say in time that it has taken the work."""
    SILENT = "silent"
    """It had, and then gave no more sign of life."""
    LOST = "lost"
    """The connection ended, or there is none."""
    UNANSWERED = "unanswered"
    """It ended the call in good order, and without an answer."""
    LEFT = "left"
    """Nobody waited for it any more."""


class Metrics:
    """One node's metrics in one registry."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        lookups = Counter(
            "embedkeep_lookups", "Inputs looked up, by how they were answered.", ["result"],
            registry=registry,
        )  # fmt: skip
        latency = Histogram(
            "embedkeep_request_seconds",
            "Time to answer an Embed request, by the slowest tier that it needed.",
            ["result"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        # Children are looked up once: labels() on each input would cost more than the lookup.
        self.lookups = {result: lookups.labels(result) for result in Result}
        self.latency = {result: latency.labels(result) for result in Result}
        self.saved = Counter(
            "embedkeep_saved_device_seconds",
            "Device time that the answers from a cache had cost when they were computed.",
            registry=registry,
        )
        self.saved_tokens = Counter(
            "embedkeep_saved_tokens",
            "Tokens of the answers from a cache: what an upstream would have counted again.",
            registry=registry,
        )
        self.entries = Gauge(
            "embedkeep_entries",
            "Entries held; in Valkey all its keys, with up to three of the nodes' own, and 19 of "
            "each tenant whose history is kept. What a replica holds is its primary's, and is "
            "counted as tier replica.",
            ["tier"],
            registry=registry,
        )
        self.replica = Gauge(
            "embedkeep_valkey_replica",
            "1 while the Valkey beside this node is a replica: it holds its primary's entries.",
            registry=registry,
        )
        self.bytes = Gauge("embedkeep_bytes", "Memory used.", ["tier"], registry=registry)
        self.evictions = Counter(
            "embedkeep_evictions", "Entries dropped for room.", ["tier"], registry=registry
        )
        self.pending = Gauge(
            "embedkeep_pending_inputs", "Inputs waiting for an embedder.", registry=registry
        )
        self.refused = Counter(
            "embedkeep_refused", "Inputs refused because too many were waiting.", registry=registry
        )
        self.breaker_open = Gauge(
            "embedkeep_breaker_open",
            "How many Valkeys, and how many peers, are left alone because they failed.",
            ["tier"],
            registry=registry,
        )
        self.corrupt = Counter(
            "embedkeep_corrupt_records",
            "Records whose bytes did not fit their key, header or checksum.",
            registry=registry,
        )
        self.valkey_seconds = Histogram(
            "embedkeep_valkey_read_seconds",
            "Time for one batch of reads from Valkey.",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.valkey_failures = Counter(
            "embedkeep_valkey_failures",
            "Operations on Valkey that did not succeed.",
            ["kind"],
            registry=registry,
        )
        hops = Counter(
            "embedkeep_hops",
            "Calls to the node that owns missing keys, by how they ended; without an answer this "
            "node computes itself.",
            ["outcome"],
            registry=registry,
        )
        self.hops = {outcome: hops.labels(outcome) for outcome in Hop}
        self.carried = Counter(
            "embedkeep_carried_inputs",
            "Inputs looked up or computed for other nodes, which count them as lookups.",
            registry=registry,
        )
        self.invalidations = Counter(
            "embedkeep_invalidations", "Invalidate calls carried out.", registry=registry
        )
        imported = Counter(
            "embedkeep_imported", "Rows of Import requests, by what became of them.", ["result"],
            registry=registry,
        )  # fmt: skip
        results = ("stored", "present", "withdrawn", "refused")
        self.imported = {result: imported.labels(result) for result in results}
        noted = Counter(
            "embedkeep_history_asks",
            "Asks of people that were to be kept to predict from, by what became of them.",
            ["result"],
            registry=registry,
        )
        self.noted = {result: noted.labels(result) for result in Noted}
        self.history_waiting = Gauge(
            "embedkeep_history_waiting_bytes",
            "Texts that wait to be written into histories.",
            registry=registry,
        )
        warmed = Counter(
            "embedkeep_warmed",
            "Texts that plans name and that were not cached, by what became of them.",
            ["result"],
            registry=registry,
        )
        self.warmed = {result: warmed.labels(result) for result in Warmed}
        self.warm_seconds = Counter(
            "embedkeep_warm_device_seconds",
            "Device time that this node has spent on plans; the embedder books it as purpose warm.",
            registry=registry,
        )
        self.warmed_hits = Counter(
            "embedkeep_warmed_first_hits",
            "Entries that were warmed and then asked for: computations that warming has avoided. "
            "Of each entry the first hit alone, on whichever node.",
            registry=registry,
        )
        self.warmed_saved = Counter(
            "embedkeep_warmed_saved_device_seconds",
            "Device time that those computations would have taken. Part of what hits have saved.",
            registry=registry,
        )
        self.warmup_budget = Gauge(
            "embedkeep_warmup_budget_device_seconds",
            "Device time that this node may spend on plans in any hour.",
            registry=registry,
        )
        self.plan_texts = Gauge(
            "embedkeep_plan_texts", "Texts in the plans that this node holds.", registry=registry
        )
        self.plan_made = Gauge(
            "embedkeep_plan_made_timestamp_seconds",
            "When the newest of those plans was made, Unix time; 0: there is none.",
            registry=registry,
        )
        self.corrupt_plans = Counter(
            "embedkeep_corrupt_plans", "Plans whose bytes did not fit.", registry=registry
        )
        self.drift = Gauge(
            "embedkeep_model_drift",
            "1 while an embedder is refused because it computes something else.",
            registry=registry,
        )
        Gauge(
            "embedkeep_build_info", "1; the version is a label.", ["version"], registry=registry
        ).labels(version("embedkeep")).set(1)
        for tier in ("l1", "valkey"):
            self.entries.labels(tier).set(0)
            self.bytes.labels(tier).set(0)
            self.evictions.labels(tier)
        for part in ("valkey", "peers"):
            self.breaker_open.labels(part).set(0)
        for kind in ("timeout", "lost", "error", "moved", "read_skipped", "write_dropped"):
            self.valkey_failures.labels(kind)
