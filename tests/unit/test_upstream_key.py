"""The key: found, followed, and never told."""

import os
from pathlib import Path

import pytest

from embedkeep.embedder.upstream.key import Key
from embedkeep.errors import InvalidConfig

SECRET = "sk-sesame-0123456789"


def in_file(tmp_path: Path, text: str) -> Key:
    file = tmp_path / "token"
    file.write_text(text)
    return Key(file, None, {})


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    key = in_file(tmp_path, f"{SECRET}\n")
    assert (key.read(), key.changed()) == (SECRET, False)

    (tmp_path / "new").write_text("sk-another")
    (tmp_path / "new").replace(tmp_path / "token")

    assert key.changed()
    assert (key.read(), key.changed()) == ("sk-another", False)


def test_a_variable_is_read_from_the_environment() -> None:
    assert Key(None, "K", {"K": f" {SECRET} "}).read() == SECRET


def test_none_is_none() -> None:
    assert Key(None, None, dict(os.environ)).read() is None


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "is empty"), (" \n", "is empty"), ("a b", "one token"), ("a\r\nX-Evil: 1", "one token"),
     ("schlüssel", "one token"), ("x" * 9000, "one token")],
    ids=["empty", "blank", "two words", "a header", "not ASCII", "endless"],
)  # fmt: skip
def test_what_is_no_token_is_refused_without_telling_it(
    tmp_path: Path, text: str, said: str
) -> None:
    for key in (in_file(tmp_path, text), Key(None, "K", {"K": text})):
        with pytest.raises(InvalidConfig, match=said) as refused:
            key.read()

        assert refused.value.field in {"upstream.key_file", "upstream.key_env"}
        assert not text.strip() or text not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"/nowhere cannot be read: No such file"):
        Key(tmp_path / "nowhere", None, {}).read()


def test_it_is_hidden_wherever_it_could_be_told(tmp_path: Path) -> None:
    for key in (in_file(tmp_path, SECRET), Key(None, "K", {"K": SECRET})):
        key.read()

        assert SECRET not in repr(key) + str(key) + key.named + key.told_by
        assert key.hide(f"wrong key {SECRET}!".encode()) == b"wrong key ***!"
