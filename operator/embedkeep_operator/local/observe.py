"""Reads what the processes of one cache count from their /metrics, and adds it up over restarts."""

import asyncio
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from embedkeep_operator.counts import Counts, counts, total

TIMEOUT_S: Final = 2.0
MAX_BYTES: Final = 4 << 20

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


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
        self._sums: dict[str, Counts] = {}
        self._last: dict[str, Counts] = {}

    def add(self, looks: Mapping[str, Counts]) -> Counts:
        """All as one, with another look at each in it; what is no counter is as it is now."""
        for name, now in looks.items():
            last = self._last.get(name, Counts())
            seen = now if now.answers else _silent(last)
            self._sums[name] = _summed(self._sums.get(name, Counts()), last, seen)
            self._last[name] = seen
        return total(self._sums)


def _silent(last: Counts) -> Counts:
    """Of a process that does not answer: it has counted what it had when it last did."""
    return replace(
        last,
        answers=False,
        entries={},
        bytes={},
        open_breakers=(),
        plan_texts=None,
        waiting_inputs=0,
        queued_inputs=0,
    )


def _summed(sums: Counts, last: Counts, now: Counts) -> Counts:
    """The sums of one process, after it was seen at *now*."""
    return replace(
        now,
        lookups=_grown_by(sums.lookups, last.lookups, now.lookups),
        evictions=_grown_by(sums.evictions, last.evictions, now.evictions),
        corrupt=sums.corrupt + _grown(last.corrupt, now.corrupt),
        saved_device_s=sums.saved_device_s + _grown(last.saved_device_s, now.saved_device_s),
        spent_device_s=_grown_by(sums.spent_device_s, last.spent_device_s, now.spent_device_s),
        saved_tokens=sums.saved_tokens + _grown(last.saved_tokens, now.saved_tokens),
        warmed=sums.warmed + _grown(last.warmed, now.warmed),
        warmed_hits=sums.warmed_hits + _grown(last.warmed_hits, now.warmed_hits),
        warm_device_s=sums.warm_device_s + _grown(last.warm_device_s, now.warm_device_s),
        warmed_saved_s=sums.warmed_saved_s + _grown(last.warmed_saved_s, now.warmed_saved_s),
        upstream_tokens=_grown_by(sums.upstream_tokens, last.upstream_tokens, now.upstream_tokens),
    )


def _grown_by(
    sums: Mapping[str, float], last: Mapping[str, float], now: Mapping[str, float]
) -> dict[str, float]:
    return {
        name: sums.get(name, 0) + _grown(last.get(name, 0), now.get(name, 0))
        for name in {**sums, **now}
    }


def _grown(last: float, now: float) -> float:
    return now - last if now >= last else now


async def read(urls: Mapping[str, str]) -> dict[str, Counts]:
    """What each process counts now, by its name. One that does not answer in time counts nothing.

    Args:
        urls: Of their /metrics, by name.
    """
    texts = await asyncio.gather(*(asyncio.to_thread(_fetch, url) for url in urls.values()))
    return {name: counts(text) for name, text in zip(urls, texts, strict=True)}


def _fetch(url: str) -> str:
    try:
        with _DIRECT.open(url, timeout=TIMEOUT_S) as answer:
            body: bytes = answer.read(MAX_BYTES)
            return body.decode()
    except (OSError, ValueError):
        return ""
