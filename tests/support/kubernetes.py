"""Objects as the API server shows them, with what tests do not care about filled in."""

from typing import Any

Json = dict[str, Any]

LABELS = {
    "app.kubernetes.io/name": "embedkeep",
    "app.kubernetes.io/instance": "docs",
    "app.kubernetes.io/managed-by": "embedkeep-operator",
}


def an_object(
    kind: str,
    name: str,
    *,
    owner: str | None = "cache",
    component: str = "node",
    spec: Json | None = None,
    status: Json | None = None,
    **more: object,
) -> Json:
    """One object, whose UID is its name.

    Args:
        owner: UID of its controller. None: nobody's.
        more: Other fields of the object.
    """
    owners = [] if owner is None else [{"uid": owner, "controller": True, "name": owner}]
    return {
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": "rag",
            "uid": name,
            "labels": {**LABELS, "app.kubernetes.io/component": component},
            "ownerReferences": owners,
        },
        "spec": spec or {},
        "status": status or {},
        **more,
    }


def a_cache(*, paused: bool = False, observed: int = 3, **status: object) -> Json:
    """An EmbeddingCache of generation 3, whose UID is "cache"; ready unless *status* says else."""
    ready = {"type": "Ready", "status": "True", "reason": "Ready", "message": "all answer",
             "lastTransitionTime": "2026-11-24T10:00:00Z"}  # fmt: skip
    return {
        "apiVersion": "embedkeep.dev/v1alpha1",
        "kind": "EmbeddingCache",
        "metadata": {"name": "docs", "namespace": "rag", "uid": "cache", "generation": 3},
        "spec": {"model": {"name": "all-MiniLM-L6-v2"}, "paused": paused},
        "status": {"observedGeneration": observed, "conditions": [ready], **status},
    }


def a_pod(
    name: str,
    *,
    owner: str,
    ready: bool = True,
    phase: str = "Running",
    waiting: Json | None = None,
    restarts: int = 0,
    **status: object,
) -> Json:
    """A pod on machine-1 with one container, `node`."""
    container = {
        "name": "node",
        "restartCount": restarts,
        "state": {"waiting": waiting} if waiting is not None else {"running": {}},
    }
    return an_object(
        "Pod",
        name,
        owner=owner,
        spec={"nodeName": "machine-1"},
        status={
            "phase": phase,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [container],
            **status,
        },
    )
