"""A long text is read only as far as it matters, and gets the tokens of the whole."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from embedkeep.config import Backend, ModelSpec
from embedkeep.embedder import folder as folders
from embedkeep.embedder import source
from embedkeep.embedder.backends import Tokens
from embedkeep.embedder.folder import Folder
from embedkeep.embedder.tokens import Tokenize, head
from support.embedder import PACKAGE

LIMIT = 16


def the_folder() -> Folder:
    spec = ModelSpec.model_validate({"name": "MiniLM", "source": {"package": PACKAGE}})
    return folders.read(source.resolve(spec, backend=Backend.ONNX), max_tokens=LIMIT)


class Recording(Tokenize):
    """Remembers how much it read."""

    characters = 0

    def whole(self, texts: Sequence[str]) -> list[Tokens]:
        self.characters += sum(map(len, texts))
        return super().whole(texts)


FOLDER = the_folder()
PLAIN, LOWERING = Tokenize(FOLDER), Tokenize(replace(FOLDER, lower_case=True))

# What could reach over a cut: marks, final sigmas, joiners, names of special tokens, characters
# that are dropped or surrounded by spaces, words beyond the tokenizer's limit.
words = st.one_of(
    st.text(max_size=30),
    st.text("aZé\u0301\u200d\u00ad\ufeff\0\u03a3\u03c3\u03c2中文.,[]#'\u2019", max_size=12),
    st.sampled_from(
        ["[MASK]", "[SEP", "]", "##ing", "unaffable", "x" * 120, "\u0301", "Σ", "\x07"]
    ),
)
gaps = st.sampled_from([" ", " ", " ", "  ", "\n", " \t", "\r\n", "", "\u00a0", "\u3000"])
texts = st.lists(st.tuples(words, gaps), max_size=120).map(
    lambda parts: "".join(word + gap for word, gap in parts)
)


@pytest.mark.parametrize("tokenize", [PLAIN, LOWERING], ids=["plain", "lowering"])
@given(given=st.lists(texts, max_size=4), times=st.sampled_from([1, 3, 40]))
def test_the_tokens_are_those_of_the_whole_text(
    tokenize: Tokenize, given: list[str], times: int
) -> None:
    long = [text * times for text in given]

    assert tokenize(long) == tokenize.whole(long)


@given(texts, st.integers(1, 400))
def test_a_head_ends_before_a_space_or_with_the_text(text: str, length: int) -> None:
    found = head(text, length)

    assert text.startswith(found)
    assert found == text or (found and text[len(found)] in " \n")
    if re.search(r"(?<!^)[ \n]", text[:length]):
        assert len(found) <= length


def test_what_is_beyond_the_limit_is_not_read() -> None:
    tokenize = Recording(FOLDER)

    (tokens,) = tokenize(["the quick brown fox jumps over the lazy dog " * 100_000])

    assert tokens.truncated
    assert tokenize.characters < 1000


def test_a_text_that_begins_with_nothing_to_read_is_read_further() -> None:
    text = "\x07 " * 500 + "the end of it " * 5000
    tokenize = Recording(FOLDER)

    assert tokenize([text]) == PLAIN.whole([text])
    assert tokenize.characters < len(text)


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}},
        {"normalizer": None},
        {
            "added_tokens": [
                {
                    "id": 30522,
                    "content": "brown fox",
                    "special": False,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                }
            ]
        },
    ],
    ids=["another pre-tokenizer", "no normalizer", "an added token with a space"],
)
def test_a_tokenizer_that_may_look_over_a_space_reads_all(
    tmp_path: Path, change: dict[str, object]
) -> None:
    described = json.loads(FOLDER.tokenizer.read_text())
    described.update(change)
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    tokenize = Recording(replace(FOLDER, transformer=tmp_path))
    text = "the quick brown fox " * 500

    assert tokenize([text])[0].truncated
    assert tokenize.characters == len(text)


def ids_of(text: str) -> list[int]:
    return list(PLAIN([text])[0].ids)


@given(text=texts)
def test_a_text_of_token_ids_has_these_very_ids_again(text: str) -> None:
    ids = ids_of(text)

    (found,) = PLAIN.texts_of([ids])

    assert not found or ids_of(found) == ids


def test_plain_words_are_found_again_from_their_ids() -> None:
    assert PLAIN.texts_of([ids_of("how do I reset my password?"), ids_of("naïve café")]) == [
        "how do i reset my password?",
        "naive cafe",
    ]


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param([], id="nothing"),
        pytest.param([9906, 1917], id="'Hello world' by cl100k_base"),
        pytest.param([15339], id="'hello' by cl100k_base"),
        pytest.param([40], id="'I' by cl100k_base"),
        pytest.param(ids_of("hello world")[1:-1], id="the model's own without special tokens"),
        pytest.param([*ids_of("hello"), 102], id="two ends"),
        pytest.param([101, 102], id="an empty text"),
        pytest.param([101, 100, 102], id="an unknown word"),
        pytest.param([101, 99_999_999, 102], id="no such id"),
        pytest.param([101, *[2000] * LIMIT, 102], id="longer than the model reads"),
    ],
)
def test_ids_that_may_be_another_tokenizers_have_no_text(ids: list[int]) -> None:
    assert PLAIN.texts_of([ids, ids_of("fine")]) == ["", "fine"]


# Ids of a text by cl100k_base begin with one of these: a printable ASCII character (0 to 93), a
# byte that begins a character or is a control (to 255), or a longer token.
cl100k = st.tuples(
    st.one_of(st.integers(0, 93), st.integers(124, 100_255)),
    st.lists(st.one_of(st.integers(0, 100_255), st.just(102)), max_size=LIMIT),
).map(lambda parts: [parts[0], *parts[1]])


@given(ids=cl100k)
def test_ids_by_the_tokenizers_of_openais_models_are_never_taken(ids: list[int]) -> None:
    assert PLAIN.texts_of([ids]) == [""]


@pytest.mark.parametrize(("mark", "found"), [(0, ""), (50, ""), (101, "hello"), (300, "")])
def test_ids_are_only_taken_where_every_text_begins_with_what_none_of_openais_does(
    tmp_path: Path, mark: int, found: str
) -> None:
    """RoBERTa's 0 is an exclamation mark there; BERT's 101 is half a character."""
    words = {"<s>": mark, "hello": mark + 1, "</s>": mark + 2, "<unk>": mark + 3}
    made = tokenizers.Tokenizer(WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    made.add_special_tokens(["<s>", "</s>", "<unk>"])
    made.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", mark), ("</s>", mark + 2)]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    tokenize = Tokenize(replace(FOLDER, transformer=tmp_path))

    assert list(tokenize(["hello"])[0].ids) == [mark, mark + 1, mark + 2]
    assert tokenize.texts_of([[mark, mark + 1, mark + 2]]) == [found]
