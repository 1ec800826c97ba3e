"""Whether an apply would change anything, decided without asking."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep_operator.kubernetes.containment import contains, is_applied

ME = "embedkeep-operator"

SCALARS = st.one_of(st.text(max_size=4), st.integers(-3, 3), st.booleans())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(SCALARS, max_size=3),
        st.lists(
            st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3), max_size=3
        ),
        st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


def live(fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An object that we have applied, as the API server shows it."""
    entry = {"manager": ME, "operation": "Apply", "fieldsV1": fields}
    return {"metadata": {"name": "a", "managedFields": [entry]}, **more}


@given(OBJECTS)
def test_an_object_holds_what_it_is_made_of(wanted: dict[str, Any]) -> None:
    assert contains(copy.deepcopy(wanted), wanted)


@given(OBJECTS, OBJECTS)
def test_defaults_beside_what_is_wanted_are_no_matter(
    wanted: dict[str, Any], defaults: dict[str, Any]
) -> None:
    assert contains({**defaults, **wanted, "more": 1}, wanted)


@given(OBJECTS, st.sampled_from("abcd"))
def test_a_value_that_differs_is_seen(wanted: dict[str, Any], name: str) -> None:
    other = {**wanted, name: ["some", "thing", "else", "again"]}

    assert not contains(other, {**wanted, name: "wanted"})


@pytest.mark.parametrize(
    ("there", "wanted", "held"),
    [
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": ["x", "y"]}, {"a": ["y", "x"]}, False),
        ({"a": ["x", "y"]}, {"a": ["x"]}, False),
        ({"a": [{"n": 1}, {"n": 2}]}, {"a": [{"n": 2}]}, True),
        ({"a": [{"n": 1}]}, {"a": [{"n": 1}, {"n": 1}]}, False),
        ({}, {"a": {}}, True),
        ({}, {"a": []}, True),
        ({}, {"a": None}, True),
        ({}, {"a": ""}, False),
        ({"a": None}, {"a": {"b": 1}}, False),
    ],
)
def test_lists_numbers_and_empty_things(there: object, wanted: object, *, held: bool) -> None:
    assert contains(there, wanted) is held


def test_what_we_never_applied_must_be_applied() -> None:
    there = {"metadata": {"name": "a"}, "data": {"x": "1"}}

    assert not is_applied({"data": {"x": "1"}}, there, manager=ME)


def test_what_is_no_longer_wanted_must_be_taken_away() -> None:
    there = live({"f:data": {"f:x": {}, "f:y": {}}}, data={"x": "1", "y": "2"})

    assert not is_applied({"data": {"x": "1"}}, there, manager=ME)
    assert is_applied({"data": {"x": "1", "y": "2"}}, there, manager=ME)


def test_what_others_have_added_stays() -> None:
    there = live({"f:data": {"f:x": {}}}, data={"x": "1", "theirs": "2"})

    assert is_applied({"data": {"x": "1"}}, there, manager=ME)


def test_a_container_that_is_no_longer_wanted_is_seen_among_the_others() -> None:
    fields: dict[str, Any] = {
        "f:list": {'k:{"name":"a"}': {".": {}, "f:name": {}}, 'k:{"name":"b"}': {".": {}}}
    }
    there = live(fields, list=[{"name": "a"}, {"name": "b"}])

    assert not is_applied({"list": [{"name": "a"}]}, there, manager=ME)
    assert is_applied({"list": [{"name": "a"}, {"name": "b"}]}, there, manager=ME)


def test_a_key_that_has_a_default_need_not_be_said() -> None:
    fields: dict[str, Any] = {
        "f:ports": {'k:{"containerPort":80,"protocol":"TCP"}': {"f:containerPort": {}}}
    }
    there = live(fields, ports=[{"containerPort": 80, "protocol": "TCP"}])

    assert is_applied({"ports": [{"containerPort": 80}]}, there, manager=ME)
    assert not is_applied({"ports": [{"containerPort": 81}]}, there, manager=ME)


def test_a_value_in_a_set_is_seen() -> None:
    there = live({"f:set": {'v:"a"': {}, 'v:"b"': {}}}, set=["a", "b"])

    assert is_applied({"set": ["a", "b"]}, there, manager=ME)
    assert not is_applied({"set": ["a"]}, there, manager=ME)


def test_our_status_and_others_applies_are_not_ours() -> None:
    there = live({"f:data": {"f:x": {}}}, data={"x": "1", "y": "2"})
    there["metadata"]["managedFields"] += [
        {"manager": "kubectl", "operation": "Apply", "fieldsV1": {"f:data": {"f:y": {}}}},
        {"manager": ME, "operation": "Apply", "subresource": "status", "fieldsV1": {"f:s": {}}},
    ]

    assert is_applied({"data": {"x": "1"}}, there, manager=ME)
