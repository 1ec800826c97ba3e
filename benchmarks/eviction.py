"""Hit ratio and cost of eviction policies on real key sequences, beside the offline optimum.

    EMBEDKEEP_DATA=<folder> python benchmarks/eviction.py

Writes benchmarks/results/eviction.json and the table in docs/benchmarks.md.
"""

import hashlib
import heapq
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import traces
from embedkeep.keys import KEY_BYTES, Key
from embedkeep.node.eviction import Notes, Policy, S3Fifo
from embedkeep.node.keytable import MISSING, KeyTable
from policies import Lru, Sieve
from report import keep

PARTS = (0.01, 0.05, 0.10, 0.25)
"""Capacities, as parts of the distinct keys of a trace."""
POLICIES: dict[str, Callable[[KeyTable], Policy]] = {
    "LRU": lambda _: Lru(),
    "SIEVE": lambda _: Sieve(),
    "S3-FIFO": lambda slots: S3Fifo(Notes(slots)),
}

NEVER = sys.maxsize


def hit_ratio(keys: Sequence[Key], *, capacity: int, policy: Callable[[KeyTable], Policy]) -> float:
    """Share of *keys* found in a cache of *capacity* entries that starts empty."""
    slots = KeyTable(capacity)
    ranks = policy(slots)
    hits = 0
    for key in keys:
        if (slot := slots.get(key)) != MISSING:
            hits += 1
            ranks.hit(slot)
            continue
        if len(slots) == capacity:
            slots.remove(slots.key(ranks.victim()))
        ranks.insert(slots.add(key))
    return hits / len(keys)


def optimum(keys: Sequence[int], *, capacity: int) -> float:
    """The most any policy could hit: evict what is needed last, keep nothing that is not needed.

    Source: Belady, "A study of replacement algorithms for a virtual-storage computer", 1966.
    """
    next_use = [NEVER] * len(keys)
    seen: dict[int, int] = {}
    for at in range(len(keys) - 1, -1, -1):
        next_use[at] = seen.get(keys[at], NEVER)
        seen[keys[at]] = at
    held: dict[int, int] = {}
    latest: list[tuple[int, int]] = []  # (-next use, key); outdated pairs stay until they are met
    hits = 0
    for key, use in zip(keys, next_use, strict=True):
        hits += key in held
        if use == NEVER:
            held.pop(key, None)
            continue
        held[key] = use
        heapq.heappush(latest, (-use, key))
        while len(held) > capacity:
            use_negated, candidate = heapq.heappop(latest)
            if held.get(candidate) == -use_negated:
                del held[candidate]
    return hits / len(keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """All policies on one trace at one capacity."""

    capacity_part: float
    """Of the distinct keys."""
    capacity: int
    """Entries."""
    hit_ratio: dict[str, float]
    optimum: float
    ns_per_request: dict[str, int]
    """CPU time of the whole replay, finding slots included."""


def digest(key: int) -> Key:
    """A key as the node has it, for one of a trace."""
    return Key(
        hashlib.blake2b(key.to_bytes(16, "little", signed=True), digest_size=KEY_BYTES).digest()
    )


def measured(keys: Sequence[int], *, part: float) -> Line:
    """Replay *keys* with every policy, one after the other."""
    capacity = int(len(set(keys)) * part)
    digested = [digest(key) for key in keys]
    ratios, costs = {}, {}
    for name, policy in POLICIES.items():
        start = time.process_time()
        ratios[name] = round(hit_ratio(digested, capacity=capacity, policy=policy), 4)
        costs[name] = round((time.process_time() - start) / len(keys) * 1e9)
    return Line(
        capacity_part=part,
        capacity=capacity,
        hit_ratio=ratios,
        optimum=round(optimum(keys, capacity=capacity), 4),
        ns_per_request=costs,
    )


def main() -> None:
    """Measure all, keep the result, print it."""
    result: dict[str, object] = {}
    rows: list[list[str]] = []
    for name, file in traces.SEQUENCES.items():
        keys = traces.keys(traces.folder() / file)
        lines = [measured(keys, part=part) for part in PARTS]
        result[name] = {
            "requests": len(keys),
            "distinct": len(set(keys)),
            "measured": [asdict(line) for line in lines],
        }
        for line in lines:
            best = max(line.hit_ratio.values())
            cells = [
                f"**{ratio:.3f}**" if ratio == best else f"{ratio:.3f}"
                for ratio in line.hit_ratio.values()
            ]
            rows.append([name, f"{line.capacity_part:.0%}", *cells, f"{line.optimum:.3f}"])
    print(keep("eviction", result, head=["trace", "capacity", *POLICIES, "optimum"], rows=rows))


if __name__ == "__main__":
    main()
