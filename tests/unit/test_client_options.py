from dataclasses import fields
from pathlib import Path

import pytest

import embedkeep
from embedkeep.client.core import Core
from embedkeep.client.dialling import channel_options, target_of
from embedkeep.client.embedding import check
from embedkeep.client.options import (
    Ask,
    CacheControl,
    ClientOptions,
    EmbedOptions,
    ImportAsk,
    ImportOptions,
    NearCache,
    Options,
    Retries,
)
from embedkeep.errors import InvalidConfig, InvalidInput, InvalidRequest

PUBLIC = [
    "AsyncClient", "CacheControl", "CacheInfo", "Client", "ClientStats", "ClientTls",
    "EmbedKeepError", "Embedded", "Encoding", "Fallback", "Imported", "InputFailed", "NearCache",
    "Options", "Priority", "Retries", "Source", "Tier",
]  # fmt: skip
"""What services import. Taking a name away breaks them."""


def test_the_public_names_are_these_and_can_be_imported() -> None:
    assert sorted(embedkeep.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(embedkeep, name).__name__ == name


def test_a_name_that_is_not_there_is_missed_as_usual() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = embedkeep.Nothing  # type: ignore[attr-defined]  # the point


@pytest.mark.parametrize(
    ("keywords", "options"),
    [(ClientOptions, Options), (EmbedOptions, Ask), (ImportOptions, ImportAsk)],
)
def test_keywords_are_the_fields_of_the_options(keywords: type, options: type) -> None:
    assert {field.name for field in fields(options)} == keywords.__annotations__.keys()


def test_the_api_key_is_never_shown() -> None:
    client = embedkeep.Client("localhost:1", api_key="very-secret")

    assert "very-secret" not in f"{client!r} {client} {Options(api_key='very-secret')!r}"


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel", "tab\t"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(InvalidConfig) as raised:
        Core(Options(api_key=key))

    assert not key or key not in str(raised.value)


def test_a_key_file_is_read_again_for_each_call(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("first\n")
    core = Core(Options(api_key=file))
    before = core.caller().metadata
    file.write_text("second\nfirst\n")

    assert [before, core.caller().metadata] == [
        (("authorization", "Bearer first"),),
        (("authorization", "Bearer second"),),
    ]


def test_a_key_file_that_is_missing_is_named_before_the_first_call(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="missing"):
        embedkeep.Client("localhost:1", api_key=tmp_path / "missing")


@pytest.mark.parametrize(
    ("target", "becomes"),
    [
        ("host:7301", "host:7301"),
        ("[::1]:7301", "[::1]:7301"),
        ("dns:///docs.prod:7301", "dns:///docs.prod:7301"),
        (["host:7301"], "host:7301"),
        (["10.0.0.1:1", "10.0.0.2:2"], "ipv4:10.0.0.1:1,10.0.0.2:2"),
        (["[::1]:1", "[::2]:2"], "ipv6:[::1]:1,[::2]:2"),
    ],
)
def test_targets_are_understood(target: str | list[str], becomes: str) -> None:
    assert target_of(target) == becomes


@pytest.mark.parametrize(
    ("target", "direct"),
    [
        ("127.0.0.1:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("dns:///localhost:1", True),
        ("ipv4:127.0.0.1:1,127.0.0.2:2", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:2", False),
        ("dns:///docs.prod:1", False),
        ("docs.prod:1", False),
    ],
)
def test_what_is_on_this_machine_is_never_asked_through_a_proxy(target: str, direct: bool) -> None:  # noqa: FBT001  # what is expected
    assert (("grpc.enable_http_proxy", 0) in channel_options(target, None)) is direct


@pytest.mark.parametrize(
    "target", ["", "host", "host:", ":1", "host:x", "host:70000", [], ["a:1", "b:2"],
               "a:b:1", "::1:1", "a/b:1", "[::1:1",
               ["10.0.0.1:1", "[::1]:1"], ["10.0.0.1:1", "10.0.0.2"]],
)  # fmt: skip
def test_a_target_that_is_none_is_refused(target: str | list[str]) -> None:
    with pytest.raises(InvalidConfig, match="target"):
        target_of(target)


@pytest.mark.parametrize("kind", [embedkeep.Client, embedkeep.AsyncClient])
def test_a_scheme_that_is_unknown_is_named_with_those_that_are_taken(
    kind: type[embedkeep.Client] | type[embedkeep.AsyncClient],
) -> None:
    with pytest.raises(
        InvalidConfig, match=r"unknown scheme, ftp://: write http://.*https://.*dns:"
    ):
        kind("ftp://host:21")


def test_options_out_of_range_are_named() -> None:
    with pytest.raises(InvalidConfig, match="timeout_s"):
        Options(timeout_s=0)
    with pytest.raises(InvalidConfig, match="max_attempts"):
        Retries(max_attempts=0)
    with pytest.raises(InvalidConfig, match="max_bytes"):
        NearCache(max_bytes=0)
    with pytest.raises(InvalidRequest, match="dimensions"):
        Ask(dimensions=0)
    with pytest.raises(InvalidRequest, match="timeout_s"):
        Ask(timeout_s=-1)
    with pytest.raises(InvalidRequest, match="exclude each other"):
        CacheControl(no_cache=True, only_if_cached=True)


def test_a_prompt_is_known_by_its_field_or_by_the_alias() -> None:
    assert Ask(prompt="query").prompt_name == "query"
    assert Ask(model="docs:query").prompt_name == "query"
    assert Ask(model="docs").prompt_name is None


def test_one_string_is_a_batch_of_one() -> None:
    assert check("text") == (["text"], {})


def test_no_texts_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least one"):
        check([])


def test_texts_that_no_request_can_carry_are_named_by_their_index() -> None:
    texts = ["fine", 3, None, b"bytes", "a\udfffb", "\0", "emoji 😀", ""]

    _, errors = check(texts)  # type: ignore[arg-type]  # what callers without a type checker do

    assert list(errors) == [1, 2, 3, 4]
    assert all(isinstance(error, InvalidInput) for error in errors.values())
    assert all(f"input {index} " in str(error) for index, error in errors.items())
    assert "character 1" in str(errors[4])
