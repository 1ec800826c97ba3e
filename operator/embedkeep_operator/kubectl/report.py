"""What is known of one cache: its own status, its objects, and what its processes count. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from embedkeep_operator.counts import Counts, counts, total
from embedkeep_operator.kubectl.tree import Json, Owned, State, items, kind, name, part, text, tree

EVENTS = 8
"""How many of the newest events are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One of the resource's conditions."""

    type: str
    status: str
    reason: str
    message: str
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to the resource, or to what it owns."""

    at: str
    warning: bool
    about: str
    """Kind/name."""
    reason: str
    message: str
    times: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What is known of one cache."""

    namespace: str
    name: str
    paused: bool
    behind: bool
    """The status answers an older spec."""
    model: str
    fingerprint: str
    endpoint: str
    shards: Mapping[str, object]
    """wanted, ready; empty: not known."""
    nodes: Mapping[str, object]
    """As *shards*."""
    conditions: tuple[Condition, ...]
    tuning: Mapping[str, object]
    """The last decision, and why; empty: none yet."""
    owned: tuple[Owned, ...]
    events: tuple[Event, ...]
    """The newest, oldest first."""
    counts: Mapping[str, Counts]
    """By pod, of those that told."""
    problems: tuple[str, ...]
    """What could not be read."""

    @property
    def state(self) -> State:
        """How it is doing as a whole."""
        said = {each.type: each.status for each in self.conditions}
        if "True" in {said.get("Stalled"), said.get("Degraded")}:
            return State.BAD
        ready = said.get("Ready") == "True" and not self.behind
        return State.FINE if ready else State.WAITING

    @property
    def all_counts(self) -> Counts | None:
        """All pods as one; None: none told."""
        return total(self.counts) if self.counts else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """All that was read of one cache."""

    cache: Json
    """The EmbeddingCache."""
    objects: tuple[Json, ...] = ()
    """Those labelled as the cache's."""
    events: tuple[Json, ...] = ()
    """All of the namespace."""
    metrics: Mapping[str, str] = field(default_factory=dict)
    """What each pod tells Prometheus, by pod."""
    problems: tuple[str, ...] = ()
    """What could not be read, and why."""


def report(read: Read) -> Report:
    """Put together what was read."""
    cache = read.cache
    metadata, status = part(cache, "metadata"), part(cache, "status")
    about = {(kind(each), name(each)) for each in (cache, *read.objects)}
    return Report(
        namespace=text(cache, "metadata", "namespace"),
        name=name(cache),
        paused=bool(part(cache, "spec").get("paused")),
        behind=status.get("observedGeneration") != metadata.get("generation"),
        model=text(cache, "spec", "model", "name"),
        fingerprint=text(status, "modelFingerprint"),
        endpoint=text(status, "endpoint"),
        shards=part(status, "shards"),
        nodes=part(status, "nodes"),
        conditions=tuple(
            Condition(
                type=text(each, "type"),
                status=text(each, "status"),
                reason=text(each, "reason"),
                message=text(each, "message"),
                since=text(each, "lastTransitionTime"),
            )
            for each in items(status, "conditions")
        ),
        tuning=part(status, "tuning"),
        owned=tree(read.objects, owner=text(cache, "metadata", "uid")),
        events=newest(read.events, about=about),
        counts={pod: counts(told) for pod, told in read.metrics.items()},
        problems=read.problems,
    )


def newest(events: Iterable[Json], *, about: set[tuple[str, str]]) -> tuple[Event, ...]:
    """The newest events about these kinds and names, oldest first."""
    found = [
        Event(
            at=_at(each),
            warning=text(each, "type") == "Warning",
            about=f"{text(each, 'involvedObject', 'kind')}/{text(each, 'involvedObject', 'name')}",
            reason=text(each, "reason"),
            message=text(each, "message"),
            times=_times(each),
        )
        for each in events
        if (text(each, "involvedObject", "kind"), text(each, "involvedObject", "name")) in about
    ]
    return tuple(sorted(found, key=lambda each: each.at)[-EVENTS:])


def _at(event: Json) -> str:
    """When it happened last; the API has three places for that."""
    return (
        text(event, "series", "lastObservedTime")
        or text(event, "lastTimestamp")
        or text(event, "eventTime")
        or text(event, "metadata", "creationTimestamp")
    )


def _times(event: Json) -> int:
    counted = part(event, "series").get("count") or event.get("count")
    return counted if isinstance(counted, int) else 1


def as_data(given: Report) -> dict[str, object]:
    """For programs; docs/operator.md says what stands where."""
    together = given.all_counts
    return {
        **asdict(given),
        "state": given.state.value,
        "counts": {pod: _counts(each) for pod, each in given.counts.items()},
        "hit_ratio": together.hit_ratio if together is not None else None,
        "saved_device_s": together.saved_device_s if together is not None else None,
    }


def _counts(counts: Counts) -> dict[str, object]:
    return {**asdict(counts), "answered": counts.answered, "hit_ratio": counts.hit_ratio}
