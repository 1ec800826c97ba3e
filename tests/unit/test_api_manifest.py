"""Reading a resource from YAML: what is wrong is said all at once, with its line."""

from pathlib import Path

import pytest

from embedkeep.errors import InvalidConfig
from embedkeep_operator.manifest import load, parse

GOOD = """\
apiVersion: embedkeep.dev/v1alpha1
kind: EmbeddingCache
metadata:
  name: docs
spec:
  model:
    name: org/model
  embedder:
    managed: {}
"""


def said(text: str) -> list[str]:
    """The lines of the error that *text* gives."""
    with pytest.raises(InvalidConfig) as caught:
        parse(text, source="cache.yaml")
    return str(caught.value).splitlines()


def test_a_good_file_is_read() -> None:
    assert parse(GOOD, source="cache.yaml").spec.model.name == "org/model"


def test_an_error_names_line_field_value_and_what_is_allowed() -> None:
    assert said(GOOD + "  nodes:\n    shards: 99\n") == [
        "cache.yaml:11: spec.nodes.shards: must be less than or equal to 64, got 99"
    ]


def test_an_unknown_field_is_answered_with_the_nearest_one() -> None:
    assert said(GOOD + "  nodes: {replicas_per_shard: 0}\n") == [
        (
            "cache.yaml:10: spec.nodes.replicas_per_shard: there is no such field;"
            " did you mean replicasPerShard?"
        )
    ]


def test_an_unknown_field_like_no_other_is_answered_with_all() -> None:
    (line,) = said(GOOD + "  security: {xyzzy: 1}\n")

    assert line.endswith("there is no such field; there are imports, tenants, tls")


def test_everything_wrong_is_said_at_once_in_the_order_of_the_file() -> None:
    text = GOOD.replace("name: org/model", "nam: org/model") + (
        "  nodes:\n    ttl: 3w\n    memory: {l1: 64Mb}\n  similarity: {mode: Sometimes}\n"
    )

    assert said(text) == [
        "cache.yaml:6: spec.model.name: is missing",
        "cache.yaml:7: spec.model.nam: there is no such field; did you mean name?",
        (
            "cache.yaml:11: spec.nodes.ttl: must be a whole number and one of s, m, h, d:"
            ' 45s, 90m, 12h, 30d, got "3w"'
        ),
        (
            "cache.yaml:12: spec.nodes.memory.l1: must be a size such as 500M, 256Mi, 1.5Gi or a"
            ' number of bytes, got "64Mb"'
        ),
        (
            "cache.yaml:13: spec.similarity.mode: must be 'Off', 'Shadow' or 'Serve',"
            ' got "Sometimes"'
        ),
    ]


def test_an_unquoted_off_is_explained() -> None:
    """For kubectl it is false too, so it is no use to be kind here."""
    (line,) = said(GOOD + "  tuning: {mode: Off}\n")

    assert "got false; without quotes YAML reads Off and On as booleans: quote it" in line


def test_numbers_in_quotes_are_no_numbers() -> None:
    (line,) = said(GOOD + '  nodes: {shards: "1"}\n')

    assert line == 'cache.yaml:10: spec.nodes.shards: must be a valid integer, got "1"'


def test_a_key_given_twice_is_an_error() -> None:
    assert said(GOOD + "  paused: true\n  paused: false\n") == [
        "cache.yaml:11: spec.paused: is given twice, first in line 10"
    ]


def test_a_rule_over_several_fields_names_their_parent() -> None:
    assert said(GOOD.replace("managed: {}", "{}")) == [
        "cache.yaml:8: spec.embedder: give exactly one of managed and external"
    ]


def test_a_null_where_none_is_allowed_is_as_good_as_nothing() -> None:
    """So the API server takes it."""
    nulls = "  nodes: {storage: , shards: null}\n  security: {tenants: null}\n"

    assert parse(GOOD + nulls, source="cache.yaml").spec == (
        parse(GOOD + "  nodes: {}\n  security: {}\n", source="cache.yaml").spec
    )
    assert said(GOOD.replace("name: org/model", "name: null")) == [
        "cache.yaml:7: spec.model.name: is missing"
    ]


def test_a_null_leaf_means_its_default() -> None:
    resource = parse(GOOD + "  nodes: {ttl: null}\n", source="cache.yaml")

    assert resource.spec.nodes is not None
    assert resource.spec.nodes.ttl is None


def test_a_date_stays_text() -> None:
    text = GOOD.replace("name: org/model", "name: org/model\n    revision: 2026-01-02")

    assert parse(text, source="cache.yaml").spec.model.revision == "2026-01-02"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "cache.yaml: is empty: it must hold one EmbeddingCache, see examples/quickstart.yaml"),
        ("---\n# nothing\n", ("cache.yaml: is empty: it must hold one EmbeddingCache, see"
                             " examples/quickstart.yaml")),
        (f"{GOOD}---\n{GOOD}", "cache.yaml:11: holds 2 documents, must hold one EmbeddingCache"),
        ("[1]", "cache.yaml:1: must hold one EmbeddingCache, got [1]"),
        ("a: b: c", "cache.yaml:1: is no YAML: mapping values are not allowed here"),
        (GOOD.replace("v1alpha1", "v1"), ("cache.yaml:1: apiVersion: must be"
                                         ' embedkeep.dev/v1alpha1, got "embedkeep.dev/v1"')),
        (GOOD.replace("kind: EmbeddingCache\n", ""), ("cache.yaml:1: kind: is missing, must be"
                                                     " EmbeddingCache")),
        (GOOD.replace("name: docs", "1: docs"),
         "cache.yaml:4: metadata.1: a name must be text; quote it"),
        ("a: !!python/object:os.system x", ("cache.yaml: is no YAML: could not determine a"
         " constructor for the tag 'tag:yaml.org,2002:python/object:os.system'")),
    ],
    ids=["empty", "no document", "two documents", "a list", "no yaml", "wrong version", "no kind",
         "a number as a name", "a tag"],
)  # fmt: skip
def test_a_file_of_another_kind_is_refused(text: str, line: str) -> None:
    assert said(text) == [line]


def test_an_empty_document_after_the_last_line_does_not_count() -> None:
    assert parse(f"---\n{GOOD}---\n", source="cache.yaml").metadata.name == "docs"


def test_an_anchor_that_holds_itself_is_refused() -> None:
    (line,) = said(GOOD + "  nodes: &a {podTemplate: *a}\n")

    assert "is nested deeper than 64 levels" in line


def test_what_the_api_server_adds_to_metadata_is_ignored() -> None:
    text = GOOD.replace("name: docs", "name: docs\n  uid: 1-2\n  managedFields: [{manager: x}]")

    assert parse(text, source="cache.yaml").metadata.name == "docs"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for file in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InvalidConfig, match=f"{file}: cannot be read"):
            load(file)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "cache.yaml"
    file.write_bytes(b"\xff\xfe")

    with pytest.raises(InvalidConfig, match="is not UTF-8"):
        load(file)
