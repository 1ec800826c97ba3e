"""What a status says, and when it says something new."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from embedkeep_operator.kubernetes.conditions import Count, Report, Stop, Type, notices, status
from embedkeep_operator.kubernetes.troubles import Reason, Trouble

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WHOLE = Report(
    generation=3,
    shards=Count(wanted=3, ready=3),
    nodes=Count(wanted=6, ready=6),
    embedders=Count(wanted=1, ready=1),
    endpoint="docs.search.svc:50051",
)
TROUBLE = Trouble(reason=Reason.IMAGE, component="node", where="pod a", said="no such image")

COUNTS = st.builds(Count, wanted=st.integers(0, 4), ready=st.integers(0, 4))
REPORTS = st.builds(
    Report,
    generation=st.integers(1, 9),
    paused=st.booleans(),
    stop=st.none() | st.builds(Stop, reason=st.just("Rejected"), message=st.just("no"),
                               passes=st.booleans()),
    shards=COUNTS,
    nodes=COUNTS,
    embedders=st.none() | COUNTS,
    forming=st.none() | st.just("meeting"),
    rolling=st.none() | st.just("1 of 6 pods are new"),
    troubles=st.just(()) | st.just((TROUBLE,)),
    newer=st.just({}) | st.just({"spec.nodes.image": "n:2"}),
)  # fmt: skip


def said(report: Report, before: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    found = status(report, before or {}, now=NOW)
    return {each["type"]: each for each in cast(list[dict[str, Any]], found["conditions"])}


def on(report: Report) -> set[str]:
    return {name for name, each in said(report).items() if each["status"] == "True"}


def test_a_whole_cache_is_ready_and_nothing_else() -> None:
    assert on(WHOLE) == {Type.READY}


def test_one_that_begins_is_reconciling() -> None:
    report = Report(
        generation=1, shards=Count(wanted=3, ready=0), nodes=Count(wanted=3, ready=0), forming="?"
    )

    assert on(report) == {Type.RECONCILING}
    assert said(report)["Ready"]["reason"] == "NodesNotReady"


def test_a_trouble_stalls_what_has_never_answered_and_says_what_would_help() -> None:
    report = Report(
        generation=1,
        shards=Count(wanted=1, ready=0),
        nodes=Count(wanted=1, ready=0),
        troubles=(TROUBLE,),
    )

    assert on(report) == {Type.STALLED}
    assert said(report)["Ready"]["reason"] == "ImageUnavailable"
    assert "give imagePullSecrets" in said(report)["Stalled"]["message"]


def test_a_node_less_is_degraded_as_long_as_every_shard_answers() -> None:
    report = Report(
        generation=1,
        shards=Count(wanted=3, ready=3),
        nodes=Count(wanted=6, ready=5),
        embedders=Count(wanted=1, ready=1),
    )

    assert on(report) == {Type.READY, Type.DEGRADED, Type.RECONCILING}


def test_an_embedder_that_is_gone_leaves_hits_answered() -> None:
    report = Report(
        generation=1,
        shards=Count(wanted=1, ready=1),
        nodes=Count(wanted=1, ready=1),
        embedders=Count(wanted=1, ready=0),
    )

    assert on(report) == {Type.READY, Type.DEGRADED, Type.RECONCILING}


def test_a_spec_that_cannot_be_reached_leaves_the_old_one_answering() -> None:
    stop = Stop(reason="InvalidSpec", message="spec.model.name: no")
    report = Report(
        generation=4,
        shards=Count(wanted=1, ready=1),
        nodes=Count(wanted=1, ready=1),
        stop=stop,
    )

    assert on(report) == {Type.READY, Type.STALLED}


def test_a_paused_cache_is_at_rest() -> None:
    assert on(Report(generation=1, paused=True)) == set()
    assert said(Report(generation=1, paused=True))["Ready"]["reason"] == "Paused"


@given(REPORTS)
def test_what_gitops_tools_read_is_never_contradictory(report: Report) -> None:
    """kstatus: in progress, or failed, or neither; never both."""
    found = on(report)

    assert not {Type.RECONCILING, Type.STALLED} <= found
    assert status(report, {}, now=NOW)["observedGeneration"] == report.generation
    assert all(
        each["reason"] and each["message"] and each["observedGeneration"] == report.generation
        for each in said(report).values()
    )
    if report.paused and report.stop is None:
        assert Type.RECONCILING not in found


@given(REPORTS)
def test_what_is_still_so_is_not_said_again(report: Report) -> None:
    before = status(report, {}, now=NOW)
    after = status(report, before, now=NOW + timedelta(hours=1))

    assert after == before
    assert not notices(before, after)


@given(REPORTS, REPORTS)
def test_a_condition_keeps_its_time_until_its_status_changes(one: Report, two: Report) -> None:
    before, later = status(one, {}, now=NOW), NOW + timedelta(hours=1)
    old = {each["type"]: each for each in cast(list[dict[str, Any]], before["conditions"])}
    for each in cast(list[dict[str, Any]], status(two, before, now=later)["conditions"]):
        same = old[each["type"]]["status"] == each["status"]
        assert (each["lastTransitionTime"] == "2026-01-01T00:00:00Z") == same


def test_what_has_begun_is_an_event_and_bad_news_is_a_warning() -> None:
    before = status(WHOLE, {}, now=NOW)
    worse = Report(
        generation=3, shards=Count(wanted=3, ready=3), nodes=Count(wanted=6, ready=4),
        embedders=Count(wanted=1, ready=1),
    )  # fmt: skip
    found = notices(before, status(worse, before, now=NOW))

    assert [(each.warning, each.reason) for each in found] == [(True, "NodesNotReady")]


def test_becoming_ready_is_an_event() -> None:
    begun = status(Report(generation=1, shards=Count(wanted=1, ready=0)), {}, now=NOW)
    found = notices(begun, status(WHOLE, begun, now=NOW))

    assert [(each.warning, each.reason) for each in found] == [(False, "Ready")]
