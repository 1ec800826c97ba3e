"""What an EmbeddingCache's status says, in one place: conditions, reasons, and events. Pure.

Ready says whether calls are answered. Reconciling and Stalled are kstatus's: the first while the
operator still works towards the spec, the second while it cannot go on until somebody does
something. Degraded says that calls are answered by less than what was asked for. UpdateAvailable
says that an image which the resource leaves out has a newer release behind it.
Source of the shape: sigs.k8s.io/cli-utils, pkg/kstatus.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from embedkeep_operator.kubernetes.containment import Json
from embedkeep_operator.kubernetes.troubles import Trouble

PAUSED: Final = "spec.paused: everything is left as it is"
MAX_MESSAGE: Final = 2048
"""Characters of a condition's message."""


class Type(StrEnum):
    """A condition's."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    DEGRADED = "Degraded"
    UPDATE_AVAILABLE = "UpdateAvailable"


class Reason(StrEnum):
    """Of conditions, beside those of `troubles.Reason` and `failures`."""

    READY = "Ready"
    PAUSED = "Paused"
    INVALID = "InvalidSpec"
    STARTING = "Starting"
    FORMING = "ClusterForming"
    ROLLING = "RollingOut"
    EMBEDDER = "EmbedderNotReady"
    NODES = "NodesNotReady"
    SETTLED = "Settled"
    WHOLE = "AllReady"
    LATEST = "UpToDate"
    NEWER = "NewerRelease"
    SKIPPED = "OptionalKindMissing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How many there are."""

    wanted: int
    ready: int

    @property
    def is_whole(self) -> bool:
        """All are ready."""
        return self.ready >= self.wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Why the operator cannot go on, and not because of a pod."""

    reason: str
    message: str
    passes: bool = False
    """It may pass by itself; otherwise somebody must act."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that a status is made of."""

    generation: int
    paused: bool = False
    stop: Stop | None = None
    shards: Count = Count(wanted=0, ready=0)
    """Shards that have a ready node and whose slots are served."""
    nodes: Count = Count(wanted=0, ready=0)
    embedders: Count | None = None
    """None: none of ours."""
    forming: str | None = None
    """What the Valkey cluster still needs. None: it is whole."""
    rolling: str | None = None
    """What is being replaced. None: all pods are as wanted."""
    troubles: tuple[Trouble, ...] = ()
    newer: Mapping[str, str] = field(default_factory=dict)
    """Newer images by the field that is left out."""
    skipped: tuple[str, ...] = ()
    """What the resource asks for and this cluster has no kind for."""
    endpoint: str | None = None

    @property
    def is_settled(self) -> bool:
        """Nothing is wrong, and nothing is waited for."""
        return self.stop is None and not self.troubles and _unfinished(self) is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """An event to be written."""

    warning: bool
    reason: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """One condition, before it is known since when."""

    type: Type
    status: bool
    reason: str
    message: str


def status(report: Report, before: Json, *, now: datetime) -> Json:
    """The whole status. A condition whose status is what it was keeps its time.

    Args:
        before: The status as it is, {} where there is none.
        now: Written where a condition's status has changed.
    """
    old = {each["type"]: each for each in _conditions(before)}
    found: dict[str, object] = {
        "observedGeneration": report.generation,
        "conditions": [
            _condition(said, old.get(said.type), report.generation, now) for said in _say(report)
        ],
        "shards": {"wanted": report.shards.wanted, "ready": report.shards.ready},
        "nodes": {"wanted": report.nodes.wanted, "ready": report.nodes.ready},
    }
    if report.endpoint is not None:
        found["endpoint"] = report.endpoint
    return found


def notices(before: Json, after: Json) -> tuple[Notice, ...]:
    """Events for what has changed: whatever Ready says anew, and what else has begun to be so."""
    old = {each["type"]: (each["status"], each["reason"]) for each in _conditions(before)}
    found: dict[str, Notice] = {}
    for each in _conditions(after):
        said = (each["status"], each["reason"])
        begun = each["status"] == "True" or each["type"] == Type.READY
        if begun and old.get(each["type"]) != said:
            warning = each["type"] in {Type.STALLED, Type.DEGRADED}
            notice = Notice(warning=warning, reason=each["reason"], note=each["message"])
            if warning or notice.reason not in found:
                found[notice.reason] = notice
    return tuple(found.values())


def is_true(found: Json, kind: Type) -> bool:
    """A status says that this condition holds."""
    return any(each["type"] == kind and each["status"] == "True" for each in _conditions(found))


def _conditions(found: Json) -> Sequence[Mapping[str, str]]:
    conditions = found.get("conditions")
    return conditions if isinstance(conditions, Sequence) else ()


def _condition(
    said: _Said, before: Mapping[str, str] | None, generation: int, now: datetime
) -> Json:
    value = "True" if said.status else "False"
    same = before is not None and before.get("status") == value
    message = said.message
    return {
        "type": said.type.value,
        "status": value,
        "reason": said.reason,
        "message": message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…",
        "lastTransitionTime": before["lastTransitionTime"]
        if same and before is not None
        else now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "observedGeneration": generation,
    }


def _say(report: Report) -> Iterable[_Said]:
    blocked = _blocked(report)
    answers = report.shards.wanted > 0 and report.shards.is_whole and report.forming is None
    unfinished = _unfinished(report)
    if answers and blocked is None:
        yield _Said(type=Type.READY, status=True, reason=Reason.READY,
                    message=f"{_nodes(report)}; {_of_embedders(report)}")  # fmt: skip
    elif answers and report.shards.is_whole:
        # What is wrong keeps the new spec from being reached, not the old one from answering.
        yield _Said(type=Type.READY, status=True, reason=Reason.READY, message=_nodes(report))
    else:
        reason, message = (
            (blocked.reason, blocked.message) if blocked is not None
            else (Reason.PAUSED, PAUSED) if report.paused
            else unfinished or (Reason.STARTING, _nodes(report))
        )  # fmt: skip
        yield _Said(type=Type.READY, status=False, reason=reason, message=message)
    yield _reconciling(report, unfinished, blocked)
    yield _Said(
        type=Type.STALLED,
        status=blocked is not None and not blocked.passes,
        reason=blocked.reason if blocked is not None and not blocked.passes else Reason.SETTLED,
        message=blocked.message
        if blocked is not None and not blocked.passes
        else "nothing is waited for",
    )
    yield _degraded(report, answers=answers)
    yield _update(report)


def _blocked(report: Report) -> Stop | None:
    if report.stop is not None:
        return report.stop
    if report.paused or not report.troubles:
        return None
    worst = report.troubles[0]
    more = len(report.troubles) - 1
    rest = f" (and {more} more)" if more else ""
    return Stop(reason=worst.reason, message=f"{worst}{rest}")


def _unfinished(report: Report) -> tuple[Reason, str] | None:
    """What is still on its way, the first step first."""
    if report.rolling is not None:
        return Reason.ROLLING, report.rolling
    if not report.nodes.is_whole and report.nodes.ready < report.shards.wanted:
        return Reason.NODES, _nodes(report)
    if report.forming is not None:
        return Reason.FORMING, f"the Valkeys become one cluster: {report.forming}"
    if report.embedders is not None and not report.embedders.is_whole:
        return Reason.EMBEDDER, _of_embedders(report)
    if not report.nodes.is_whole:
        return Reason.NODES, _nodes(report)
    return None


def _reconciling(
    report: Report, unfinished: tuple[Reason, str] | None, blocked: Stop | None
) -> _Said:
    if report.paused:
        return _Said(type=Type.RECONCILING, status=False, reason=Reason.PAUSED,
                     message=PAUSED)  # fmt: skip
    if blocked is not None and not blocked.passes:
        return _Said(type=Type.RECONCILING, status=False, reason=blocked.reason,
                     message=blocked.message)  # fmt: skip
    if blocked is not None or unfinished is not None:
        reason, message = (blocked.reason, blocked.message) if blocked else unfinished or ("", "")
        return _Said(type=Type.RECONCILING, status=True, reason=reason, message=message)
    skipped = f"; skipped, as this cluster lacks the kind: {', '.join(report.skipped)}"
    return _Said(
        type=Type.RECONCILING,
        status=False,
        reason=Reason.SKIPPED if report.skipped else Reason.SETTLED,
        message="all is as the spec wants it" + (skipped if report.skipped else ""),
    )


def _degraded(report: Report, *, answers: bool) -> _Said:
    lacking = [
        text
        for count, text in (
            (report.nodes, _nodes(report)),
            (report.embedders or report.nodes, _of_embedders(report)),
        )
        if not count.is_whole
    ]
    if answers and lacking:
        return _Said(type=Type.DEGRADED, status=True, reason=Reason.NODES
                     if not report.nodes.is_whole else Reason.EMBEDDER,
                     message="; ".join(lacking))  # fmt: skip
    return _Said(type=Type.DEGRADED, status=False, reason=Reason.WHOLE,
                 message="nothing that was ready is missing")  # fmt: skip


def _update(report: Report) -> _Said:
    if report.newer:
        said = ", ".join(f"{name}: {image}" for name, image in sorted(report.newer.items()))
        return _Said(
            type=Type.UPDATE_AVAILABLE,
            status=True,
            reason=Reason.NEWER,
            message=f"{said}; set spec.upgradePolicy to Automatic, or the field to the image",
        )
    return _Said(type=Type.UPDATE_AVAILABLE, status=False, reason=Reason.LATEST,
                 message="images that the resource leaves out are the operator's own")  # fmt: skip


def _nodes(report: Report) -> str:
    return f"{report.nodes.ready} of {report.nodes.wanted} nodes ready"


def _of_embedders(report: Report) -> str:
    if report.embedders is None:
        return "embedder outside"
    return f"{report.embedders.ready} of {report.embedders.wanted} embedders ready"
