"""What the processes of one cache have counted, read from their /metrics."""

import asyncio
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_S: Final = 2.0
MAX_BYTES: Final = 4 << 20
CACHED: Final = ("l1", "valkey", "coalesced")
"""Results that cost no forward pass of their own."""

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Totals since the processes started; a process that does not answer leaves its part empty."""

    node_answers: bool = False
    embedder_answers: bool = False

    lookups: Mapping[str, float] = field(default_factory=dict)
    """Inputs by result: l1, valkey, embedder, coalesced, not_cached, error."""
    entries: Mapping[str, float] = field(default_factory=dict)
    """By tier."""
    bytes: Mapping[str, float] = field(default_factory=dict)
    """By tier."""
    evictions: Mapping[str, float] = field(default_factory=dict)
    """By tier."""
    open_breakers: tuple[str, ...] = ()
    """Tiers that are left alone for now."""
    corrupt: float = 0
    saved_device_s: float = 0
    spent_device_s: Mapping[str, float] = field(default_factory=dict)
    """By purpose."""
    waiting_inputs: float = 0
    """At the node."""
    queued_inputs: float = 0
    """At the embedder."""

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


def counts(node: str, embedder: str) -> Counts:
    """Totals from what both processes say in the Prometheus text format; "" says nothing."""
    samples = _samples(node)
    embedders = _samples(embedder)
    return Counts(
        node_answers=bool(node),
        embedder_answers=bool(embedder),
        lookups=_by(samples, "embedkeep_lookups_total", "result"),
        entries=_by(samples, "embedkeep_entries", "tier"),
        bytes=_by(samples, "embedkeep_bytes", "tier"),
        evictions=_by(samples, "embedkeep_evictions_total", "tier"),
        open_breakers=tuple(
            tier for tier, is_open in _by(samples, "embedkeep_breaker_open", "tier").items()
            if is_open
        ),
        corrupt=_sum(samples, "embedkeep_corrupt_records_total"),
        saved_device_s=_sum(samples, "embedkeep_saved_device_seconds_total"),
        spent_device_s=_by(embedders, "embedkeep_embed_device_seconds_total", "purpose"),
        waiting_inputs=_sum(samples, "embedkeep_pending_inputs"),
        queued_inputs=_sum(embedders, "embedkeep_embed_queue_inputs"),
    )  # fmt: skip


def rates(before: Counts, now: Counts, *, over_s: float) -> dict[str, float]:
    """Inputs a second by result.

    Args:
        before: As *now*, of a `Sums`: its counters never fall.
    """
    return {
        name: (total - before.lookups.get(name, 0)) / over_s for name, total in now.lookups.items()
    }


class Sums:
    """Adds up what processes counted, over their restarts.

    A counter that fell belongs to a new process, which counted from 0. What a process counted
    after the last look before its end is lost.
    """

    def __init__(self) -> None:
        self._sums = Counts()
        self._last = Counts()

    def add(self, now: Counts) -> Counts:
        """The sums with another look in them; what is no counter is as it is now."""
        sums, last = self._sums, self._last
        now = _with_silence_filled(now, last)
        self._last = now
        self._sums = replace(
            now,
            lookups=_summed(sums.lookups, last.lookups, now.lookups),
            evictions=_summed(sums.evictions, last.evictions, now.evictions),
            corrupt=sums.corrupt + _grown(last.corrupt, now.corrupt),
            saved_device_s=sums.saved_device_s + _grown(last.saved_device_s, now.saved_device_s),
            spent_device_s=_summed(sums.spent_device_s, last.spent_device_s, now.spent_device_s),
        )
        return self._sums


def _with_silence_filled(now: Counts, last: Counts) -> Counts:
    """A process that does not answer has counted what it had when it last did."""
    if not now.node_answers:
        now = replace(
            now,
            lookups=last.lookups,
            evictions=last.evictions,
            corrupt=last.corrupt,
            saved_device_s=last.saved_device_s,
        )
    return now if now.embedder_answers else replace(now, spent_device_s=last.spent_device_s)


def _summed(
    sums: Mapping[str, float], last: Mapping[str, float], now: Mapping[str, float]
) -> dict[str, float]:
    return {
        name: sums.get(name, 0) + _grown(last.get(name, 0), now.get(name, 0))
        for name in {**sums, **now}
    }


def _grown(last: float, now: float) -> float:
    return now - last if now >= last else now


async def read(node_url: str, embedder_url: str) -> Counts:
    """Totals now. A process that does not answer in time counts nothing."""
    node, embedder = await asyncio.gather(
        asyncio.to_thread(_fetch, node_url), asyncio.to_thread(_fetch, embedder_url)
    )
    return counts(node, embedder)


def _fetch(url: str) -> str:
    try:
        with _DIRECT.open(url, timeout=TIMEOUT_S) as answer:
            body: bytes = answer.read(MAX_BYTES)
            return body.decode()
    except (OSError, ValueError):
        return ""


Samples = Mapping[str, list[tuple[Mapping[str, str], float]]]


def _samples(text: str) -> Samples:
    found: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    families: Iterable[Metric] = text_string_to_metric_families(text)
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def _by(samples: Samples, name: str, label: str) -> dict[str, float]:
    totals: dict[str, float] = {}
    for labels, value in samples.get(name, []):
        key = labels.get(label, "")
        totals[key] = totals.get(key, 0) + value
    return totals


def _sum(samples: Samples, name: str) -> float:
    return sum(value for _, value in samples.get(name, []))
