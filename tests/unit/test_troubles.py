"""Why pods do not become ready, as people can act on it."""

from typing import Any

import msgspec
import pytest
from lightkube.resources.core_v1 import Event, Pod

from embedkeep_operator.kubernetes.troubles import Reason, Trouble, troubles


def pod(name: str = "docs-shard-0-0", **status: Any) -> Pod:
    labels = {"app.kubernetes.io/component": "node"}
    found = {"metadata": {"name": name, "labels": labels}, "status": status}
    return msgspec.convert(found, Pod)


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    return {
        "name": "node",
        "image": "wrong:1",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"waiting": {"reason": reason, "message": message}},
        **more,
    }


def event(reason: str, message: str, *, kind: str = "Pod", name: str = "docs-shard-0-0") -> Event:
    return msgspec.convert(
        {
            "metadata": {"name": "e"},
            "involvedObject": {"kind": kind, "name": name},
            "reason": reason,
            "message": message,
            "type": "Warning",
        },
        Event,
    )


def only(found: tuple[Trouble, ...]) -> Trouble:
    (one,) = found
    return one


def test_nothing_is_wrong_with_a_pod_that_runs() -> None:
    running = {**waiting(""), "state": {"running": {}}}

    assert not troubles([pod(containerStatuses=[running])])


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "ErrImagePull", "InvalidImageName"])
def test_an_image_that_cannot_be_had_is_named(reason: str) -> None:
    found = only(troubles([pod(containerStatuses=[waiting(reason, "not found")])]))

    assert found.reason is Reason.IMAGE
    assert str(found) == (
        "pod docs-shard-0-0, container node: image wrong:1: not found; "
        "correct the image, or give imagePullSecrets"
    )


def test_a_container_that_crashes_says_its_last_words() -> None:
    last = {"terminated": {"exitCode": 2, "message": "spec.model.source.path: no such folder\n"}}
    status = waiting("CrashLoopBackOff", "back-off 5m0s", lastState=last)
    found = only(troubles([pod(containerStatuses=[status])]))

    assert found.reason is Reason.CRASHING
    assert "spec.model.source.path: no such folder" in str(found)


def test_a_container_that_crashes_without_a_word_says_how_it_ended() -> None:
    last = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    status = waiting("CrashLoopBackOff", lastState=last)

    assert "137 (OOMKilled)" in str(only(troubles([pod(containerStatuses=[status])])))


def test_what_no_machine_takes_says_why() -> None:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
    }

    found = only(troubles([pod(conditions=[condition])]))
    assert found.reason is Reason.UNSCHEDULABLE
    assert "nvidia.com/gpu" in str(found)


@pytest.mark.parametrize(
    ("happened", "reason"),
    [
        (event("FailedMount", 'MountVolume.SetUp failed: secret "key" not found'), Reason.SECRET),
        (event("FailedMount", "references non-existent secret key: tls.crt"), Reason.SECRET),
        (event("FailedMount", "timed out"), Reason.VOLUME),
        (event("FailedCreate", "pods is forbidden: exceeded quota: small"), Reason.QUOTA),
        (event("FailedCreate", 'violates PodSecurity "restricted": denied'), Reason.DENIED),
        (event("ProvisioningFailed", 'storageclass "fast" not found'), Reason.CLAIM),
    ],
)
def test_what_stands_only_in_events_is_found(happened: Event, reason: Reason) -> None:
    assert only(troubles([], [happened])).reason is reason


def test_other_events_are_no_trouble() -> None:
    assert not troubles([], [event("Unhealthy", "Readiness probe failed")])


def test_the_worst_comes_first() -> None:
    crashing = pod("a", containerStatuses=[waiting("CrashLoopBackOff")])
    quota = event("FailedCreate", "exceeded quota", kind="StatefulSet", name="docs-shard-1")

    assert [each.reason for each in troubles([crashing], [quota])] == [
        Reason.QUOTA,
        Reason.CRASHING,
    ]


def test_a_pod_that_leaves_is_no_trouble() -> None:
    gone = msgspec.convert(
        {
            "metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"containerStatuses": [waiting("CrashLoopBackOff")]},
        },
        Pod,
    )

    assert not troubles([gone])


def test_long_words_are_cut() -> None:
    found = only(troubles([pod(containerStatuses=[waiting("ErrImagePull", "x" * 5000)])]))

    assert len(str(found)) < 700
