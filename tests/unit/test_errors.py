import re
from collections.abc import Iterator

import numpy as np
import pytest

from embedkeep import errors
from embedkeep.errors import (
    CODES,
    HTTP,
    EmbedderUnavailable,
    EmbedKeepError,
    Internal,
    InvalidConfig,
    InvalidInput,
    Overloaded,
    PartialFailure,
    Retryable,
    Unavailable,
    code_of,
    from_wire,
)


def family(root: type[EmbedKeepError] = EmbedKeepError) -> Iterator[type[EmbedKeepError]]:
    """The tree's own classes; tests and processes may derive more."""
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from family(child)


def drawn() -> dict[str, str]:
    """Each class in the module's drawing, and the one it hangs on."""
    parents, path = {}, list[str]()
    for line in (errors.__doc__ or "").splitlines():
        if (found := re.match(r"([│ ]*(?:[├└]── )?)([A-Z]\w+)(?:  |$)", line)) is None:
            continue
        depth = len(found[1]) // 4
        path[depth:] = [found[2]]
        parents[found[2]] = path[depth - 1] if depth else ""
    return parents


def test_the_tree_in_the_docs_is_the_tree_of_the_classes() -> None:
    classes = {cls.__name__: cls.__base__.__name__ for cls in family() if cls.__base__}
    classes["EmbedKeepError"] = ""

    assert drawn() == classes


def test_every_error_has_a_reason_of_its_own() -> None:
    reasons = [cls.reason for cls in family()]

    assert len(set(reasons)) == len(reasons)


def test_every_error_that_can_be_sent_has_a_code() -> None:
    """Else a new class would travel as its parent without anybody having chosen that."""
    assert set(CODES) == set(HTTP) == set(family()) - {PartialFailure}


@pytest.mark.parametrize("cls", CODES)
def test_an_error_arrives_as_what_it_was(cls: type[EmbedKeepError]) -> None:
    sent = cls("what happened")

    arrived = from_wire(code_of(sent), sent.reason, str(sent), retry_after_s=1.5)

    assert type(arrived) is cls
    assert str(arrived) == "what happened"
    if isinstance(arrived, Retryable):
        assert arrived.retry_after_s == 1.5


@pytest.mark.parametrize("cls", CODES)
def test_a_peer_without_reasons_is_understood_by_its_codes(cls: type[EmbedKeepError]) -> None:
    """A proxy may drop trailers; who may retry must not depend on them."""
    code = code_of(cls("x"))

    arrived = from_wire(code, "", "x")

    assert code_of(arrived) == code or type(arrived) is Internal
    assert isinstance(arrived, Retryable) is issubclass(cls, Retryable)


def test_a_newer_peers_reason_and_an_unknown_code_are_internal() -> None:
    assert type(from_wire(2, "FromTheFuture", "x")) is Internal
    assert type(from_wire(99, "", "x")) is Internal


def test_a_newer_peers_reason_with_a_known_code_is_known_by_its_code() -> None:
    assert type(from_wire(code_of(Overloaded("x")), "FromTheFuture", "x")) is Overloaded


def test_a_class_without_a_code_of_its_own_travels_as_its_nearest_parent() -> None:
    class Elsewhere(Unavailable):
        pass

    assert code_of(Elsewhere("x")) == code_of(Unavailable("x"))


def test_a_partial_failure_keeps_the_rows_and_the_errors() -> None:
    vectors = np.array([[1, 2], [np.nan, np.nan]], np.float32)
    failures = {1: InvalidInput("empty", index=1)}

    error = PartialFailure("1 of 2 failed", failures=failures, vectors=vectors)

    assert error.failures is failures
    assert error.vectors is vectors
    assert code_of(error) == code_of(EmbedKeepError("x"))


@pytest.mark.parametrize(
    ("field", "source", "expected"),
    [
        ("", "", "too short"),
        ("name", "", "name: too short"),
        ("", "node.json", "node.json: too short"),
        ("name", "node.json", "node.json: name: too short"),
    ],
)
def test_a_wrong_setting_is_named_with_where_it_stands(
    field: str, source: str, expected: str
) -> None:
    assert str(InvalidConfig("too short", field=field, source=source)) == expected


def test_nobody_is_told_to_retry_at_once_without_an_estimate() -> None:
    assert EmbedderUnavailable("gone").retry_after_s is None
    assert from_wire(14, "EmbedderUnavailable", "gone").args == ("gone",)
