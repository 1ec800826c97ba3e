"""What processes of a cache have counted, as they tell it to Prometheus. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

CACHED: Final = ("l1", "valkey", "peer", "coalesced")
"""Results that cost no forward pass of their own."""

_PRICE: Final = "embedkeep_upstream_price_per_million_tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a process has counted since it started, or several together.

    A node leaves the embedder's part empty, and the embedder the node's.
    """

    answers: bool = False
    """False: it does not answer now, or one of them does not."""

    lookups: Mapping[str, float] = field(default_factory=dict)
    """Inputs by result: l1, valkey, peer, coalesced, embedder, not_cached, error."""
    entries: Mapping[str, float] = field(default_factory=dict)
    """By tier."""
    bytes: Mapping[str, float] = field(default_factory=dict)
    """By tier."""
    evictions: Mapping[str, float] = field(default_factory=dict)
    """By tier."""
    is_replica: bool = False
    """The Valkey beside this node is one now."""
    open_breakers: tuple[str, ...] = ()
    """Tiers that are left alone for now."""
    corrupt: float = 0
    saved_device_s: float = 0
    spent_device_s: Mapping[str, float] = field(default_factory=dict)
    """By purpose."""
    saved_tokens: float = 0
    upstream_tokens: Mapping[str, float] = field(default_factory=dict)
    """By purpose; empty where the model runs here."""
    price_per_million_tokens: float | None = None
    """None: none is given."""
    plan_texts: float | None = None
    """In the plans that nodes carry out, on the node that holds most. None: nothing is warmed."""
    plan_made_at: float = 0
    """Of the newest plan, seconds since the epoch; 0: there is none."""
    warmed: float = 0
    """Texts that were computed ahead of time and stored."""
    warmed_hits: float = 0
    """Of them, that were then asked for."""
    warm_device_s: float = 0
    """What warming has taken."""
    warmed_saved_s: float = 0
    """What computing those that were asked for would have taken."""
    waiting_inputs: float = 0
    """At the node."""
    queued_inputs: float = 0
    """At the embedder."""

    @property
    def money(self) -> tuple[float, float] | None:
        """Saved and spent, in the currency of the price; None: there is no price."""
        if self.price_per_million_tokens is None:
            return None
        spent = sum(self.upstream_tokens.values())
        price = self.price_per_million_tokens / 1e6
        return self.saved_tokens * price, spent * price

    @property
    def answered(self) -> float:
        """Inputs that got a vector."""
        return sum(self.lookups.get(name, 0) for name in (*CACHED, "embedder"))

    @property
    def hit_ratio(self) -> float | None:
        """0..1: share of the answered inputs that cost no forward pass; None: none yet."""
        if not self.answered:
            return None
        return sum(self.lookups.get(name, 0) for name in CACHED) / self.answered


def counts(text: str) -> Counts:
    """What a process says in the Prometheus text format; "" says nothing."""
    samples = _samples(text)
    return Counts(
        answers=bool(text),
        lookups=_by(samples, "embedkeep_lookups_total", "result"),
        entries=_by(samples, "embedkeep_entries", "tier"),
        bytes=_by(samples, "embedkeep_bytes", "tier"),
        evictions=_by(samples, "embedkeep_evictions_total", "tier"),
        is_replica=_sum(samples, "embedkeep_valkey_replica") > 0,
        open_breakers=tuple(
            tier for tier, is_open in _by(samples, "embedkeep_breaker_open", "tier").items()
            if is_open
        ),
        corrupt=_sum(samples, "embedkeep_corrupt_records_total"),
        saved_device_s=_sum(samples, "embedkeep_saved_device_seconds_total"),
        spent_device_s=_by(samples, "embedkeep_embed_device_seconds_total", "purpose"),
        saved_tokens=_sum(samples, "embedkeep_saved_tokens_total"),
        upstream_tokens=_by(samples, "embedkeep_upstream_tokens_total", "purpose"),
        price_per_million_tokens=next((price for _, price in samples.get(_PRICE, [])), None),
        plan_texts=_planned(samples),
        plan_made_at=_sum(samples, "embedkeep_plan_made_timestamp_seconds"),
        warmed=_by(samples, "embedkeep_warmed_total", "result").get("stored", 0),
        warmed_hits=_sum(samples, "embedkeep_warmed_first_hits_total"),
        warm_device_s=_sum(samples, "embedkeep_warm_device_seconds_total"),
        warmed_saved_s=_sum(samples, "embedkeep_warmed_saved_device_seconds_total"),
        waiting_inputs=_sum(samples, "embedkeep_pending_inputs"),
        queued_inputs=_sum(samples, "embedkeep_embed_queue_inputs"),
    )  # fmt: skip


def total(looks: Mapping[str, Counts]) -> Counts:
    """All processes of a cache as one, by their names."""
    all_of = [*looks.values()]
    several = len(looks) > len(("node", "embedder"))
    return Counts(
        answers=all(each.answers for each in all_of),
        lookups=_added(each.lookups for each in all_of),
        entries=_added(each.entries for each in all_of),
        bytes=_added(each.bytes for each in all_of),
        evictions=_added(each.evictions for each in all_of),
        open_breakers=tuple(
            f"{tier} of {name}" if several else tier
            for name, each in looks.items()
            for tier in each.open_breakers
        ),
        corrupt=sum(each.corrupt for each in all_of),
        saved_device_s=sum(each.saved_device_s for each in all_of),
        spent_device_s=_added(each.spent_device_s for each in all_of),
        saved_tokens=sum(each.saved_tokens for each in all_of),
        upstream_tokens=_added(each.upstream_tokens for each in all_of),
        price_per_million_tokens=max(
            filter(None, (each.price_per_million_tokens for each in all_of)), default=None
        ),
        plan_texts=max((n for each in all_of if (n := each.plan_texts) is not None), default=None),
        plan_made_at=max((each.plan_made_at for each in all_of), default=0),
        warmed=sum(each.warmed for each in all_of),
        warmed_hits=sum(each.warmed_hits for each in all_of),
        warm_device_s=sum(each.warm_device_s for each in all_of),
        warmed_saved_s=sum(each.warmed_saved_s for each in all_of),
        waiting_inputs=sum(each.waiting_inputs for each in all_of),
        queued_inputs=sum(each.queued_inputs for each in all_of),
    )


Samples = Mapping[str, list[tuple[Mapping[str, str], float]]]


def _samples(text: str) -> Samples:
    found: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    families: Iterable[Metric] = text_string_to_metric_families(text)
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def _planned(samples: Samples) -> float | None:
    """Texts in plans; None: it is no node that carries plans out."""
    if not _sum(samples, "embedkeep_warmup_budget_device_seconds"):
        return None
    return _sum(samples, "embedkeep_plan_texts")


def _by(samples: Samples, name: str, label: str) -> dict[str, float]:
    totals: dict[str, float] = {}
    for labels, value in samples.get(name, []):
        key = labels.get(label, "")
        totals[key] = totals.get(key, 0) + value
    return totals


def _sum(samples: Samples, name: str) -> float:
    return sum(value for _, value in samples.get(name, []))


def _added(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for part in parts:
        for key, value in part.items():
            totals[key] = totals.get(key, 0) + value
    return totals
