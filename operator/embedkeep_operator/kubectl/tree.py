"""From the objects of a cache to a tree of who owns whom, and how each is doing. Pure."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

Json: TypeAlias = Mapping[str, object]

KINDS: Final = (
    "StatefulSet", "Deployment", "ReplicaSet", "CronJob", "Job", "Pod", "PersistentVolumeClaim",
    "Service", "ConfigMap", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy",
)  # fmt: skip
"""In the order in which they are shown. Secrets are never asked for."""
HARMLESS: Final = frozenset({"ContainerCreating", "PodInitializing"})
"""Why a container waits that is only on its way."""


class State(StrEnum):
    """How one object is doing."""

    FINE = "fine"
    """As it should be, or nothing can be wrong with it."""
    WAITING = "waiting"
    """On its way."""
    BAD = "bad"
    """Somebody should look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """One object, and what it owns."""

    kind: str
    name: str
    state: State = State.FINE
    says: str = ""
    """How it is doing, for people."""
    below: tuple["Owned", ...] = ()


def tree(objects: Iterable[Json], *, owner: str) -> tuple[Owned, ...]:
    """What belongs to *owner*, directly and below.

    Args:
        objects: In any order.
        owner: UID.
    """
    owned: dict[str, list[Json]] = {}
    for each in objects:
        owned.setdefault(_owner(each), []).append(each)
    return tuple(_below(owned, owner))


def _below(owned: Mapping[str, list[Json]], uid: str) -> Iterator[Owned]:
    for each in sorted(owned.get(uid, ()), key=_order):
        state, says = condition(each)
        below = tuple(_below(owned, text(each, "metadata", "uid")))
        if kind(each) == "ReplicaSet" and not below:
            continue  # of an older template: kept to roll back to
        yield Owned(kind=kind(each), name=name(each), state=state, says=says, below=below)


def condition(each: Json) -> tuple[State, str]:
    """How one object is doing."""
    judge = _JUDGES.get(kind(each))
    return (State.FINE, "") if judge is None else judge(each)


def _replicas(each: Json) -> tuple[State, str]:
    wanted, ready = number(each, "spec", "replicas"), number(each, "status", "readyReplicas")
    for found in items(each, "status", "conditions"):
        failed = (found.get("type"), found.get("status")) in {
            ("Progressing", "False"), ("ReplicaFailure", "True")
        }  # fmt: skip
        if failed:
            return State.BAD, f"{ready} of {wanted} ready: {found.get('message', '')}"
    return State.FINE if ready >= wanted else State.WAITING, f"{ready} of {wanted} ready"


def _pod(each: Json) -> tuple[State, str]:
    if "deletionTimestamp" in part(each, "metadata"):
        return State.WAITING, "stopping"
    statuses = [
        *items(each, "status", "initContainerStatuses"),
        *items(each, "status", "containerStatuses"),
    ]
    restarts = sum(number(status, "restartCount") for status in statuses)
    again = f", started again {restarts} times" if restarts else ""
    for status in statuses:
        if (said := _waiting(status)) is not None:
            return State.BAD, f"{status.get('name')}: {said}{again}"
    conditions = {found.get("type"): found for found in items(each, "status", "conditions")}
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return State.BAD, f"not placed: {scheduled.get('message', '')}"
    state, said = _phase(each, ready=conditions.get("Ready", {}).get("status") == "True")
    machine = text(each, "spec", "nodeName")
    return state, said + (f" on {machine}" if machine else "") + again


def _phase(each: Json, *, ready: bool) -> tuple[State, str]:
    phase = text(each, "status", "phase")
    match phase:
        case "Succeeded":
            return State.FINE, "done"
        case "Pending":
            return State.WAITING, "starting"
        case "Running":
            return (State.FINE, "ready") if ready else (State.WAITING, "not ready")
        case _:
            message = text(each, "status", "message")
            return State.BAD, (phase or "Unknown").lower() + (f": {message}" if message else "")


def _waiting(status: Json) -> str | None:
    """Why a container waits in vain; None: it does not."""
    waiting = part(status, "state", "waiting")
    reason = str(waiting.get("reason", ""))
    if not reason or reason in HARMLESS:
        return None
    last = part(status, "lastState", "terminated")
    code = f" (exit {last['exitCode']})" if "exitCode" in last else ""
    message = str(waiting.get("message", ""))
    return f"{reason}{code}" + (f": {message}" if message and not code else "")


def _job(each: Json) -> tuple[State, str]:
    for found in items(each, "status", "conditions"):
        if found.get("status") == "True" and found.get("type") == "Failed":
            return State.BAD, f"failed: {found.get('message', '')}"
        if found.get("status") == "True" and found.get("type") == "Complete":
            return State.FINE, f"done {text(each, 'status', 'completionTime')}"
    return State.WAITING, "running" if number(each, "status", "active") else "not begun"


def _cron_job(each: Json) -> tuple[State, str]:
    schedule = text(each, "spec", "schedule")
    if part(each, "spec").get("suspend"):
        return State.FINE, f"{schedule}, suspended"
    last = text(each, "status", "lastSuccessfulTime")
    return State.FINE, f"{schedule}, last done {last or 'never'}"


def _claim(each: Json) -> tuple[State, str]:
    phase = text(each, "status", "phase")
    return State.FINE if phase == "Bound" else State.WAITING, phase.lower()


def _budget(each: Json) -> tuple[State, str]:
    return State.FINE, f"{number(each, 'status', 'disruptionsAllowed')} more may go"


_JUDGES: Final[Mapping[str, Callable[[Json], tuple[State, str]]]] = {
    "StatefulSet": _replicas,
    "Deployment": _replicas,
    "ReplicaSet": _replicas,
    "Pod": _pod,
    "Job": _job,
    "CronJob": _cron_job,
    "PersistentVolumeClaim": _claim,
    "PodDisruptionBudget": _budget,
}
"""By kind. Nothing can be wrong with one of another kind alone."""


def kind(each: Json) -> str:
    """Its kind."""
    return str(each.get("kind", ""))


def name(each: Json) -> str:
    """Its name."""
    return text(each, "metadata", "name")


def part(each: Json, *path: str) -> Json:
    """The object at *path*; empty where there is none."""
    for step in path:
        below = each.get(step)
        each = below if isinstance(below, dict) else {}
    return each


def items(each: Json, *path: str) -> list[Json]:
    """The objects of the list at *path*."""
    found = part(each, *path[:-1]).get(path[-1])
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def text(each: Json, *path: str) -> str:
    """The text at *path*; empty where there is none."""
    found = part(each, *path[:-1]).get(path[-1])
    return found if isinstance(found, str) else ""


def number(each: Json, *path: str) -> int:
    """The whole number at *path*; 0 where there is none."""
    found = part(each, *path[:-1]).get(path[-1])
    return found if isinstance(found, int) else 0


def _owner(each: Json) -> str:
    """UID of its controller; empty: nobody's."""
    owners = items(each, "metadata", "ownerReferences")
    return next((text(one, "uid") for one in owners if one.get("controller")), "")


def _order(each: Json) -> tuple[int, list[tuple[int, str]]]:
    """Kinds as they are shown, then names with their numbers as numbers."""
    place = KINDS.index(kind(each)) if kind(each) in KINDS else len(KINDS)
    return place, [
        (int(one), "") if one.isdigit() else (-1, one) for one in re.split(r"(\d+)", name(each))
    ]
