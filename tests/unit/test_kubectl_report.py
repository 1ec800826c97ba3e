from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from embedkeep_operator.kubectl.bundle import plain
from embedkeep_operator.kubectl.report import Event, Read, as_data, report
from embedkeep_operator.kubectl.showing import shown
from embedkeep_operator.kubectl.tree import State
from support.kubernetes import a_cache, a_pod, an_object

METRICS = """\
embedkeep_lookups_total{result="l1"} 60.0
embedkeep_lookups_total{result="embedder"} 40.0
embedkeep_saved_device_seconds_total 12.5
"""


def an_event(name: str, at: str, kind: str = "Pod", **more: object) -> dict[str, Any]:
    return {
        "kind": "Event",
        "type": "Normal",
        "reason": "Pulled",
        "message": "image pulled",
        "lastTimestamp": at,
        "involvedObject": {"kind": kind, "name": name},
        **more,
    }


def test_hit_ratio_and_saved_time_are_of_all_pods_together() -> None:
    read = Read(cache=a_cache(), metrics={"docs-shard-0-0": METRICS, "docs-shard-1-0": ""})

    data = as_data(report(read))

    assert data["hit_ratio"] == 0.6
    assert data["saved_device_s"] == 12.5


def test_without_metrics_there_is_no_ratio_instead_of_a_wrong_one() -> None:
    data = as_data(report(Read(cache=a_cache(), problems=("metrics of docs-0: forbidden",))))

    assert data["hit_ratio"] is None
    assert data["problems"] == ("metrics of docs-0: forbidden",)


@pytest.mark.parametrize(
    ("cache", "state"),
    [
        (a_cache(), State.FINE),
        (a_cache(observed=2), State.WAITING),
        (a_cache(conditions=[]), State.WAITING),
        (a_cache(conditions=[{"type": "Ready", "status": "False"}]), State.WAITING),
        (
            a_cache(conditions=[{"type": "Ready", "status": "True"},
                                {"type": "Degraded", "status": "True"}]),
            State.BAD,
        ),
        (a_cache(conditions=[{"type": "Stalled", "status": "True"}]), State.BAD),
    ],
)  # fmt: skip
def test_the_whole_is_as_its_conditions_say(cache: dict[str, Any], state: State) -> None:
    assert report(Read(cache=cache)).state is state


def test_the_newest_events_of_the_cache_and_its_objects_are_kept() -> None:
    pod = a_pod("docs-shard-0-0", owner="docs-shard-0")
    events = [
        *(an_event("docs-shard-0-0", f"2026-11-24T10:00:{second:02}Z") for second in range(20)),
        an_event("another", "2026-11-24T11:00:00Z"),
        # As events.k8s.io writes them.
        an_event(
            "docs",
            "",
            kind="EmbeddingCache",
            type="Warning",
            eventTime="2026-11-24T10:30:00Z",
            series={"count": 4},
        ),
    ]

    found = report(Read(cache=a_cache(), objects=(pod,), events=tuple(events))).events

    assert [each.at for each in found] == [
        *(f"2026-11-24T10:00:{second:02}Z" for second in range(13, 20)),
        "2026-11-24T10:30:00Z",
    ]
    assert found[-1] == Event(
        at="2026-11-24T10:30:00Z",
        warning=True,
        about="EmbeddingCache/docs",
        reason="Pulled",
        message="image pulled",
        times=4,
    )


def test_what_is_shown_names_all_that_a_person_asks_first() -> None:
    cache = a_cache(
        shards={"wanted": 3, "ready": 2},
        nodes={"wanted": 6, "ready": 5},
        endpoint="docs.rag.svc:50051",
        tuning={
            "threshold": 0.96,
            "reason": "ErrorsAboveBudget",
            "decidedAt": "2026-11-24T09:00:00Z",
            "evidence": {"errors": "0.07"},
        },
    )
    read = Read(
        cache=cache,
        objects=(
            an_object("StatefulSet", "docs-shard-0", spec={"replicas": 1}),
            a_pod("docs-shard-0-0", owner="docs-shard-0", ready=False,
                  waiting={"reason": "ErrImagePull", "message": "[no] such image"}),
        ),
        metrics={"docs-shard-1-0": METRICS},
    )  # fmt: skip

    text = plain(shown(report(read)))

    for wanted in (
        "rag/docs",
        "2 of 3 ready",
        "5 of 6 ready",
        "docs.rag.svc:50051",
        "threshold 0.96 at 2026-11-24T09:00:00Z",
        "ErrorsAboveBudget: errors 0.07",
        "StatefulSet/docs-shard-0  0 of 1 ready",
        "node: ErrImagePull: [no] such image",  # brackets are no markup
        "60.0% of 100",
    ):
        assert wanted in text


def test_a_cache_that_nobody_has_looked_at_can_be_shown() -> None:
    cache = a_cache()
    del cache["status"]
    given = report(Read(cache=cache))

    Console(quiet=True).print(shown(given))
    Console(quiet=True).print(shown(replace(given, paused=True)))
    assert given.behind
