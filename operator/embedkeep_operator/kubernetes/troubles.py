"""Why pods do not become ready, and what would help. Pure: from what the cluster shows.

What a container or the scheduler says stands in the pod's status. What the kubelet or a controller
could not even begin (a Secret to mount, a pod that a quota forbids) stands only in events, which
are therefore read too, but only while something is not ready.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from lightkube.models.core_v1 import ContainerStatus, PodCondition
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Event, Pod

from embedkeep_operator.resources.names import COMPONENT

MAX_SAID: Final = 512
"""Characters of what others say that are passed on."""


class Reason(StrEnum):
    """What is wrong, in one word for programs; the worst first."""

    QUOTA = "QuotaExceeded"
    DENIED = "PodDenied"
    IMAGE = "ImageUnavailable"
    CONFIG = "ContainerConfigInvalid"
    SECRET = "SecretMissing"  # noqa: S105  # a reason
    VOLUME = "VolumeNotMounted"
    CLAIM = "ClaimPending"
    UNSCHEDULABLE = "Unschedulable"
    CRASHING = "ContainerCrashing"


HELP: Final = {
    Reason.QUOTA: "raise the namespace's quota, or ask for less in the resource",
    Reason.DENIED: "change the policy that denies the pod, or the resource",
    Reason.IMAGE: "correct the image, or give imagePullSecrets",
    Reason.CONFIG: "create what it names, or correct the name in the resource",
    Reason.SECRET: "create the Secret, or correct its name in the resource",
    Reason.VOLUME: "see that what it names exists and can be mounted on that machine",
    Reason.CLAIM: "name a storage class that exists in spec.nodes.storage, or provide a volume",
    Reason.UNSCHEDULABLE: "add such machines, or ask for less in the resource",
    Reason.CRASHING: "see the container's log for more",
}

_PULL: Final = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"}
    | {"ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed"}
)
_CONFIG: Final = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
)
_EVENTS: Final = (
    ("FailedCreate", re.compile(r"exceeded quota"), Reason.QUOTA),
    ("FailedCreate", re.compile(r"forbidden|denied"), Reason.DENIED),
    ("FailedMount", re.compile(r"secret \S+ not found|references non-existent secret key"),
     Reason.SECRET),
    ("FailedMount", re.compile(""), Reason.VOLUME),
    ("FailedAttachVolume", re.compile(""), Reason.VOLUME),
    ("ProvisioningFailed", re.compile(""), Reason.CLAIM),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Something that keeps a pod from being ready and does not pass by itself."""

    reason: Reason
    component: str
    """node, embedder or predictor; empty: not known."""
    where: str
    """The object, for people: pod docs-shard-0-0, container node."""
    said: str
    """By who noticed it."""

    def __str__(self) -> str:
        said = self.said if len(self.said) <= MAX_SAID else self.said[: MAX_SAID - 1] + "…"
        return f"{self.where}: {said.strip().rstrip('.')}; {HELP[self.reason]}"


def troubles(pods: Iterable[Pod], events: Iterable[Event] = ()) -> tuple[Trouble, ...]:
    """All there are, the worst first; of equal ones the first pod's by name."""
    found = [trouble for pod in pods for trouble in _of_pod(pod)]
    known = {trouble.where.split(",")[0] for trouble in found}
    found += [
        trouble
        for event in events
        if (trouble := _of_event(event)) is not None and trouble.where not in known
    ]
    order = list(Reason)
    return tuple(sorted(found, key=lambda each: (order.index(each.reason), each.where)))


def _of_pod(pod: Pod) -> Iterator[Trouble]:
    metadata, status = pod.metadata or ObjectMeta(), pod.status
    if status is None or metadata.deletionTimestamp is not None:
        return
    component = (metadata.labels or {}).get(COMPONENT, "")
    for condition in status.conditions or ():
        if _is_unschedulable(condition):
            yield Trouble(
                reason=Reason.UNSCHEDULABLE,
                component=component,
                where=f"pod {metadata.name}",
                said=condition.message or "no machine takes it",
            )
    for container in (*(status.initContainerStatuses or ()), *(status.containerStatuses or ())):
        if (found := _of_container(container)) is not None:
            reason, said = found
            yield Trouble(
                reason=reason,
                component=component,
                where=f"pod {metadata.name}, container {container.name}",
                said=said,
            )


def _is_unschedulable(condition: PodCondition) -> bool:
    return (condition.type, condition.status, condition.reason) == (
        "PodScheduled", "False", "Unschedulable",
    )  # fmt: skip


def _of_container(container: ContainerStatus) -> tuple[Reason, str] | None:
    waiting = container.state.waiting if container.state is not None else None
    if waiting is None:
        return None
    said = waiting.message or waiting.reason or ""
    if waiting.reason in _PULL:
        return Reason.IMAGE, f"image {container.image}: {said}"
    if waiting.reason in _CONFIG:
        return Reason.CONFIG, said
    if waiting.reason != "CrashLoopBackOff":
        return None
    last = container.lastState.terminated if container.lastState is not None else None
    if last is None:
        return Reason.CRASHING, said
    words = (last.message or "").strip()
    return Reason.CRASHING, words or f"ended with {last.exitCode} ({last.reason or 'no reason'})"


def _of_event(event: Event) -> Trouble | None:
    about, said = event.involvedObject, event.message or ""
    for reason, pattern, trouble in _EVENTS:
        if event.reason == reason and pattern.search(said):
            return Trouble(
                reason=trouble,
                component="",
                where=f"{(about.kind or '').lower()} {about.name}",
                said=said,
            )
    return None
