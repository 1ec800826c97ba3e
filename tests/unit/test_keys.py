import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep.keys import (
    KEY_BYTES,
    TAG_BYTES,
    Key,
    KeySpace,
    space_tag,
    tenant_salt,
    tenant_tag,
)

SECRET = b"0123456789abcdef"
SALT = tenant_salt(SECRET, "acme")

# Few letters, so that fields often differ only in where one ends and the next begins.
words = st.text(alphabet="ab:\x00", max_size=4) | st.text(max_size=20)
identities = st.tuples(words, st.integers(0, 2**64 - 1) | st.integers(0, 3), words, words)


def key(fingerprint: str, epoch: int, prompt: str, text: str, *, salt: bytes = SALT) -> Key:
    return KeySpace(fingerprint=fingerprint, salt=salt, epoch=epoch, prompt=prompt).key(text)


@given(one=identities, other=identities)
def test_two_requests_share_a_key_only_if_every_field_is_the_same(
    one: tuple[str, int, str, str], other: tuple[str, int, str, str]
) -> None:
    assert (key(*one) == key(*other)) is (one == other)


@given(joined=st.text(alphabet="ab", min_size=1, max_size=8), data=st.data())
def test_moving_letters_from_one_field_to_the_next_makes_another_key(
    joined: str, data: st.DataObject
) -> None:
    """Fields joined without their lengths would collide here."""
    cuts = st.tuples(*[st.integers(0, len(joined))] * 2).map(sorted)
    first, second = data.draw(cuts), data.draw(cuts)

    def cut(at: list[int]) -> Key:
        return key(joined[: at[0]], 0, joined[at[0] : at[1]], joined[at[1] :])

    assert (cut(first) == cut(second)) is (first == second)


@given(prompt=words, text=words)
def test_a_prompt_and_the_same_words_in_the_text_are_different_entries(
    prompt: str, text: str
) -> None:
    assert (key("fp", 0, prompt, text) == key("fp", 0, "", prompt + text)) is (prompt == "")


@given(text=words)
def test_tenants_never_share_a_key(text: str) -> None:
    other = tenant_salt(SECRET, "other")

    mine, theirs = key("fp", 0, "", text), key("fp", 0, "", text, salt=other)

    # Not by their tags alone: the digests differ too.
    assert mine[:TAG_BYTES] == theirs[:TAG_BYTES]
    assert mine[TAG_BYTES : 2 * TAG_BYTES] != theirs[TAG_BYTES : 2 * TAG_BYTES]
    assert mine[2 * TAG_BYTES :] != theirs[2 * TAG_BYTES :]


@given(identity=identities)
def test_a_key_begins_with_the_tags_that_purging_goes_by(
    identity: tuple[str, int, str, str],
) -> None:
    made = key(*identity)

    assert len(made) == KEY_BYTES
    assert made[:TAG_BYTES] == space_tag(identity[0])
    assert made[TAG_BYTES : 2 * TAG_BYTES] == tenant_tag(SALT)


@given(texts=st.lists(words, max_size=10))
def test_making_one_key_does_not_change_the_next(texts: list[str]) -> None:
    """The hash state up to the prompt is kept and copied."""
    space = KeySpace(fingerprint="fp", salt=SALT, epoch=1, prompt="p")

    assert [space.key(text) for text in texts] == [key("fp", 1, "p", text) for text in texts]


@pytest.mark.parametrize("pair", [("a", "a?"), ("a", "A"), ("a", " a"), ("é", "e\u0301")])
def test_texts_are_not_normalized(pair: tuple[str, str]) -> None:
    one, other = (key("fp", 0, "", text) for text in pair)

    assert one != other


PINNED = {
    "hello": "669a07b74514df638c75e570a27525fba08876b905169b17",
    "": "669a07b74514df634bfaf7f64e0533e32b6a029c8372d881",
    "Grüße 😀": "669a07b74514df63c049f474477eba86e7773eacd1a3a1b3",
}


@pytest.mark.parametrize(("text", "expected"), PINNED.items())
def test_keys_are_those_of_earlier_versions(text: str, expected: str) -> None:
    """Another key for the same request empties every cache at the next upgrade."""
    assert key("fp", 3, "query: ", text).hex() == expected


def test_salts_are_those_of_earlier_versions() -> None:
    assert len(SALT) == 32
    assert SALT.hex() == "6b6c3a53a6f5491d7c2b04d331a748af6bd9feb0056b6f0d23f946bfbf325115"
    assert (
        tenant_salt(b"", "").hex()
        == "37342c636c863f3ecd399a2c3f9d3680a1144447137526287f9a4245e0ef8508"
    )


def test_another_process_makes_the_same_keys() -> None:
    """Nodes share a Valkey; Python's own hash differs from process to process."""
    program = (
        "import json, sys\n"
        "from embedkeep.keys import KeySpace, tenant_salt\n"
        "salt = tenant_salt(b'0123456789abcdef', 'acme')\n"
        "space = KeySpace(fingerprint='fp', salt=salt, epoch=3, prompt='query: ')\n"
        "print(json.dumps([space.key(text).hex() for text in json.loads(sys.argv[1])]))\n"
    )

    printed = subprocess.run(
        [sys.executable, "-c", program, json.dumps(list(PINNED))],
        capture_output=True,
        check=True,
        text=True,
    )

    assert json.loads(printed.stdout) == list(PINNED.values())


@given(
    one=st.tuples(st.binary(min_size=16, max_size=40), st.text(max_size=10)),
    other=st.tuples(st.binary(min_size=16, max_size=40), st.text(max_size=10)),
)
def test_salts_differ_by_secret_and_by_name(
    one: tuple[bytes, str], other: tuple[bytes, str]
) -> None:
    assert (tenant_salt(*one) == tenant_salt(*other)) is (one == other)


def test_a_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        key("fp", 0, "", "\ud800")
