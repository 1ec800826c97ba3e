"""What GitOps tools make of an EmbeddingCache, from its first moment to its last."""

from pathlib import Path
from typing import Any

import pytest

from embedkeep_operator.crd import UNSEEN
from support import gitops
from support.gitops import Verdict

Json = dict[str, Any]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gitops.build(tmp_path_factory.mktemp("gitops"))


def a_cache(
    *conditions: tuple[str, str, str], observed: int | None = 2, paused: bool = False,
    deleted: bool = False,
) -> Json:  # fmt: skip
    """A cache of generation 2.

    Args:
        conditions: Type, status and message of each.
        observed: Generation that the status answers; None: the operator wrote no status yet, so it
            is what the definition says.
    """
    cache: Json = {
        "apiVersion": "embedkeep.dev/v1alpha1",
        "kind": "EmbeddingCache",
        "metadata": {"name": "docs", "namespace": "default", "generation": 2},
        "spec": {"model": {"name": "m"}, "paused": paused},
    }
    if deleted:
        cache["metadata"]["deletionTimestamp"] = "2026-11-24T00:00:00Z"
    if observed is None:
        cache["status"] = UNSEEN
    else:
        cache["status"] = {
            "observedGeneration": observed,
            "conditions": [
                {"type": kind, "status": status, "reason": "Because", "message": message,
                 "observedGeneration": observed, "lastTransitionTime": "2026-11-24T00:00:00Z"}
                for kind, status, message in conditions
            ],
        }  # fmt: skip
    return cache


READY = ("Ready", "True", "3 of 3 nodes answer")
NOT_READY = ("Ready", "False", "1 of 3 nodes answers")

CASES = {
    "just applied": (
        a_cache(observed=None),
        Verdict(
            kstatus="InProgress",
            argocd="Progressing",
            message="waiting for the operator to see this spec",
        ),
    ),
    "seen, and being made": (
        a_cache(("Reconciling", "True", "waiting for 2 nodes"), NOT_READY),
        Verdict(kstatus="InProgress", argocd="Progressing", message="waiting for 2 nodes"),
    ),
    "ready": (
        a_cache(READY),
        Verdict(kstatus="Current", argocd="Healthy", message="3 of 3 nodes answer"),
    ),
    "ready, and the conditions that speak of trouble are false": (
        a_cache(
            READY, ("Reconciling", "False", ""), ("Degraded", "False", ""), ("Stalled", "False", "")
        ),
        Verdict(kstatus="Current", argocd="Healthy", message="3 of 3 nodes answer"),
    ),
    "ready for an older spec": (
        a_cache(READY, observed=1),
        Verdict(
            kstatus="InProgress",
            argocd="Progressing",
            message="waiting for the operator to see this spec",
        ),
    ),
    "answering, with a part of it gone": (
        a_cache(READY, ("Degraded", "True", "no embedder: only hits are answered")),
        Verdict(
            kstatus="Current",
            argocd="Degraded",
            message="no embedder: only hits are answered",
        ),
    ),
    "answering, while its pods are replaced": (
        a_cache(
            READY, ("Degraded", "True", "2 of 3 nodes"), ("Reconciling", "True", "replacing pods")
        ),
        Verdict(kstatus="InProgress", argocd="Progressing", message="replacing pods"),
    ),
    "in need of somebody": (
        a_cache(
            NOT_READY, ("Stalled", "True", "the image cannot be pulled: mend spec.nodes.image")
        ),
        Verdict(
            kstatus="Failed",
            argocd="Degraded",
            message="the image cannot be pulled: mend spec.nodes.image",
        ),
    ),
    "not ready, and nothing said of why": (
        a_cache(NOT_READY),
        Verdict(kstatus="InProgress", argocd="Progressing", message="1 of 3 nodes answers"),
    ),
    "of unknown readiness": (
        a_cache(("Ready", "Unknown", "no node was asked yet")),
        Verdict(kstatus="InProgress", argocd="Progressing", message="no node was asked yet"),
    ),
    "paused": (
        a_cache(READY, paused=True),
        Verdict(
            kstatus="Current",
            argocd="Suspended",
            message="spec.paused: the operator leaves everything as it is",
        ),
    ),
    "being deleted": (
        a_cache(READY, deleted=True),
        Verdict(kstatus="Terminating", argocd="Progressing", message="Pending deletion"),
    ),
}


@pytest.mark.timeout(600)  # Go builds the program first
@pytest.mark.parametrize("case", CASES)
def test_gitops_tools_see_a_cache_that_is(case: str, program: Path) -> None:
    given, expected = CASES[case]

    assert gitops.judge(program, [given]) == [expected]
