import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep_operator.kubectl.tree import KINDS, Owned, State, condition, tree
from support.kubernetes import Json, a_pod, an_object


def test_objects_stand_below_their_owners_kinds_and_numbers_in_order() -> None:
    objects = [
        an_object("Service", "docs"),
        a_pod("docs-shard-10-0", owner="docs-shard-10"),
        an_object(
            "StatefulSet", "docs-shard-10", spec={"replicas": 1}, status={"readyReplicas": 1}
        ),
        an_object("StatefulSet", "docs-shard-2", spec={"replicas": 1}),
        an_object("ConfigMap", "another's", owner="another"),
    ]

    assert tree(objects, owner="cache") == (
        Owned(kind="StatefulSet", name="docs-shard-2", state=State.WAITING, says="0 of 1 ready"),
        Owned(
            kind="StatefulSet",
            name="docs-shard-10",
            says="1 of 1 ready",
            below=(Owned(kind="Pod", name="docs-shard-10-0", says="ready on machine-1"),),
        ),
        Owned(kind="Service", name="docs"),
    )


def test_replica_sets_of_older_templates_are_left_out() -> None:
    objects = [
        an_object("Deployment", "docs-embedder", spec={"replicas": 1}),
        an_object("ReplicaSet", "old", owner="docs-embedder"),
        an_object("ReplicaSet", "new", owner="docs-embedder", spec={"replicas": 1}),
        a_pod("new-1", owner="new"),
    ]

    (deployment,) = tree(objects, owner="cache")
    assert [each.name for each in deployment.below] == ["new"]


@pytest.mark.parametrize(
    ("given", "state", "says"),
    [
        (a_pod("p", owner="s"), State.FINE, "ready on machine-1"),
        (
            a_pod("p", owner="s", restarts=2),
            State.FINE,
            "ready on machine-1, started again 2 times",
        ),
        (a_pod("p", owner="s", ready=False), State.WAITING, "not ready on machine-1"),
        (
            a_pod("p", owner="s", ready=False, phase="Pending",
                  waiting={"reason": "ContainerCreating"}),
            State.WAITING,
            "starting on machine-1",
        ),
        (
            a_pod("p", owner="s", ready=False, phase="Pending",
                  waiting={"reason": "ImagePullBackOff", "message": "no such image"}),
            State.BAD,
            "node: ImagePullBackOff: no such image",
        ),
        (
            a_pod("p", owner="s", phase="Pending",
                  conditions=[{"type": "PodScheduled", "status": "False",
                               "message": "0/3 nodes have nvidia.com/gpu"}]),
            State.BAD,
            "not placed: 0/3 nodes have nvidia.com/gpu",
        ),
        (a_pod("p", owner="s", phase="Failed", message="evicted"), State.BAD,
         "failed: evicted on machine-1"),
        (a_pod("p", owner="s", phase="Succeeded"), State.FINE, "done on machine-1"),
        (
            an_object("Job", "j", status={"conditions": [
                {"type": "Failed", "status": "True", "message": "no Valkey"}]}),
            State.BAD,
            "failed: no Valkey",
        ),
        (an_object("Job", "j", status={"active": 1}), State.WAITING, "running"),
        (
            an_object("CronJob", "c", spec={"schedule": "*/30 * * * *"}),
            State.FINE,
            "*/30 * * * *, last done never",
        ),
        (
            an_object("Deployment", "d", spec={"replicas": 2}, status={
                "readyReplicas": 1,
                "conditions": [{"type": "ReplicaFailure", "status": "True",
                                "message": "exceeded quota"}]}),
            State.BAD,
            "1 of 2 ready: exceeded quota",
        ),
        (an_object("PersistentVolumeClaim", "v", status={"phase": "Pending"}), State.WAITING,
         "pending"),
        (an_object("NetworkPolicy", "n"), State.FINE, ""),
    ],
)  # fmt: skip
def test_an_object_says_how_it_is_doing(given: Json, state: State, says: str) -> None:
    assert condition(given) == (state, says)


def test_a_container_that_crashes_says_with_which_status() -> None:
    pod = a_pod("p", owner="s", ready=False, restarts=5,
                waiting={"reason": "CrashLoopBackOff", "message": "back-off 5m"})  # fmt: skip
    pod["status"]["containerStatuses"][0]["lastState"] = {"terminated": {"exitCode": 2}}

    assert condition(pod) == (
        State.BAD,
        "node: CrashLoopBackOff (exit 2), started again 5 times",
    )


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["status", "spec", "conditions", "containerStatuses", "state", "waiting"]
            ),
            below,
        )
    ),
    max_leaves=12,
)


@given(kind=st.sampled_from(KINDS), spec=JUNK, status=JUNK)
def test_whatever_an_object_holds_something_is_said(
    kind: str, spec: object, status: object
) -> None:
    """A newer or broken API must not hide the rest of the cache."""
    state, says = condition({"kind": kind, "metadata": {}, "spec": spec, "status": status})

    assert isinstance(state, State)
    assert isinstance(says, str)


@given(order=st.permutations(range(6)))
def test_the_tree_does_not_depend_on_the_order_of_objects(order: list[int]) -> None:
    objects = [
        an_object(kind, f"{kind.lower()}-{number}")
        for kind, number in itertools.product(["StatefulSet", "Service"], range(3))
    ]

    assert tree([objects[at] for at in order], owner="cache") == tree(objects, owner="cache")
