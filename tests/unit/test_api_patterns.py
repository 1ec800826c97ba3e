"""Patterns are never shown to people."""

from collections.abc import Iterator

import pytest

from embedkeep.errors import InvalidConfig
from embedkeep_operator.api import Metadata, Spec
from embedkeep_operator.crd import structural
from embedkeep_operator.manifest import parse
from embedkeep_operator.patterns import IN_WORDS


def patterns_in(schema: object) -> Iterator[str]:
    """Of all texts; what is parsed (sizes, durations) says in words what it takes."""
    if isinstance(schema, dict):
        if schema.get("type") == "string" and isinstance(pattern := schema.get("pattern"), str):
            yield pattern
        for child in schema.values():
            yield from patterns_in(child)


def test_every_pattern_that_a_user_may_miss_has_words() -> None:
    there = {*patterns_in(structural(Spec)), *patterns_in(structural(Metadata))}

    assert [each for each in there if each not in IN_WORDS and "smhd" not in each] == []


def test_a_wrong_name_is_answered_in_words() -> None:
    text = """\
apiVersion: embedkeep.dev/v1alpha1
kind: EmbeddingCache
metadata: {name: Docs}
spec: {model: {name: m}, embedder: {managed: {}}}
"""

    with pytest.raises(InvalidConfig) as refused:
        parse(text, source="cache.yaml")

    assert str(refused.value) == (
        "cache.yaml:3: metadata.name: must be lower-case letters, digits and -, beginning with a"
        ' letter, not ending with -, got "Docs"'
    )
