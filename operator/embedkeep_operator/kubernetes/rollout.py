"""Which pod is replaced next, when its StatefulSet wants it otherwise than it is. Pure.

One pod at a time, and only while all others are well: replicas before primaries, whose Valkey hands
over to a replica when it is told to end. A pod that does not work anyway is replaced at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A pod of a shard."""

    name: str
    shard: int
    current: bool
    """It is what its StatefulSet wants."""
    ready: bool
    primary: bool
    """Its Valkey has slots."""
    leaving: bool = False
    """It is being deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Next:
    """What to do."""

    replace: str | None = None
    """Name of a pod to delete now."""
    doing: str | None = None
    """What goes on, for people. None: all pods are as wanted."""


def next_step(members: Sequence[Member], *, wanted: int, settled: bool) -> Next:
    """Decide.

    Args:
        members: All pods that there are.
        wanted: How many there should be.
        settled: The Valkeys are one whole cluster.
    """
    old = [each for each in members if not each.current]
    if not old:
        return Next()
    said = f"{len(members) - len(old)} of {wanted} pods are new"
    if any(each.leaving for each in members) or len(members) < wanted:
        return Next(doing=f"{said}; waiting for a pod to come back")
    broken = [each for each in old if not each.ready]
    if broken:
        # Those with data last: what does not answer may still hold entries.
        first = min(broken, key=lambda each: (each.primary, each.shard, each.name))
        return Next(replace=first.name, doing=f"{said}; replacing {first.name}, which is not ready")
    if waited := [each.name for each in members if not each.ready]:
        return Next(doing=f"{said}; waiting for {waited[0]} to be ready")
    if not settled:
        return Next(doing=f"{said}; waiting for the Valkeys to be one cluster")
    first = min(old, key=lambda each: (each.primary, each.shard, each.name))
    return Next(replace=first.name, doing=f"{said}; replacing {first.name}")
