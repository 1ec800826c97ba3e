"""Texts to token ids, by the model's own tokenizer.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import BaseModel
from tokenizers import Tokenizer

from embedkeep.embedder.backends import Tokens
from embedkeep.embedder.folder import FIELD, Folder
from embedkeep.errors import InvalidConfig

_CHARACTERS_A_TOKEN: Final = 8
"""Of a long text, so many for each token of the limit are read first: more than most have."""
NEVER_FIRST: Final = range(94, 124)
"""Ids that begin no text in the byte-level vocabularies of OpenAI's models, which their clients
send: there these are bytes that only continue a character. Those vocabularies begin alike: 94
printable ASCII characters from 0, then the bytes from 0xA1; up to 123 (0xBF) they continue."""
_LONGER: Final = 4
"""Times as much is read where that was not enough."""


class _Part(BaseModel):
    type: str | None = None


class _Added(BaseModel):
    content: str


class _File(BaseModel):
    """What tokenizer.json says about how a text is divided."""

    normalizer: _Part | None = None
    pre_tokenizer: _Part | None = None
    model: _Part
    added_tokens: tuple[_Added, ...] = ()

    def reads_words_alone(self) -> bool:
        """Whether what stands before a space is read the same, whatever follows it.

        Known of BERT's: its normalizer works character by character, or on a letter and its
        marks; its pre-tokenizer ends a word at each space; WordPiece sees one word at a time.
        An added token may not reach over a space.
        """
        parts = (self.normalizer, self.pre_tokenizer, self.model)
        return [part and part.type for part in parts] == [
            "BertNormalizer",
            "BertPreTokenizer",
            "WordPiece",
        ] and all(
            added.content.isascii() and not any(map(str.isspace, added.content))
            for added in self.added_tokens
        )


class Tokenize:
    """A model's tokenizer, cut at *max_tokens*. May be called from several threads.

    Of a long text only as much is read as can matter, where the tokenizer is one that reads each
    word alone.
    """

    def __init__(self, folder: Folder) -> None:
        try:
            self._tokenizer: Tokenizer = Tokenizer.from_file(str(folder.tokenizer))
        except Exception as error:  # the library raises no narrower class
            raise InvalidConfig(
                f"{folder.tokenizer} cannot be read: {error}", field=FIELD
            ) from error
        # The file may carry another length and padding, from its training.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(folder.max_tokens)
        self._lower = folder.lower_case
        self._most = folder.max_tokens
        # What stands before every text. A single letter: what is empty may be left without.
        first = self._tokenizer.encode("a").ids[0]
        self._marks = {first} & {*NEVER_FIRST} & {*_special_ids(self._tokenizer)}
        self._first = _first_characters(folder.tokenizer, folder.max_tokens)

    def __call__(self, texts: Sequence[str]) -> list[Tokens]:
        """One `Tokens` for each text, with the special tokens."""
        if self._first is None:
            return self.whole(texts)
        length = self._first
        heads = [head(text, length) for text in texts]
        found = self.whole(heads)
        # A head with more tokens than the limit has all that the text's vector is made of.
        while short := [
            number
            for number, text in enumerate(texts)
            if len(heads[number]) < len(text) and not found[number].truncated
        ]:
            length *= _LONGER
            for number in short:
                heads[number] = head(texts[number], length)
            again = self.whole([heads[number] for number in short])
            for number, tokens in zip(short, again, strict=True):
                found[number] = tokens
        return found

    def texts_of(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """A text for each row of ids, of which this tokenizer makes that very row.

        Empty where there is none; also where the row does not begin with a special token that
        marks it as none of OpenAI's (see `NEVER_FIRST`), as BERT's 101 does. Ids of another
        tokenizer would often be a text's here, and of another text than was meant.
        """
        known = [bool(row) and row[0] in self._marks and len(row) <= self._most for row in rows]
        texts = [
            self._tokenizer.decode(row, skip_special_tokens=True) if sure else ""
            for row, sure in zip(rows, known, strict=True)
        ]
        again = self.whole(texts)
        return [
            text if list(tokens.ids) == list(row) and not tokens.truncated else ""
            for text, tokens, row in zip(texts, again, rows, strict=True)
        ]

    def whole(self, texts: Sequence[str]) -> list[Tokens]:
        """The same, slower: each text read to its end."""
        read = [text.lower() for text in texts] if self._lower else list(texts)
        return [
            Tokens(ids=found.ids, truncated=bool(found.overflowing))
            for found in self._tokenizer.encode_batch_fast(read)
        ]


def _special_ids(tokenizer: Tokenizer) -> list[int]:
    return [id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special]


def _first_characters(file: Path, max_tokens: int) -> int | None:
    """How much of a text is read first; None: all."""
    if not _File.model_validate_json(file.read_bytes()).reads_words_alone():
        return None
    return _CHARACTERS_A_TOKEN * max_tokens


def head(text: str, length: int) -> str:
    """What stands before *text*'s last space or line end within *length*, else its first beyond."""
    if len(text) <= length:
        return text
    at = max(text.rfind(" ", 1, length), text.rfind("\n", 1, length))
    if at < 0:
        beyond = [found for sign in " \n" if (found := text.find(sign, length)) > 0]
        at = min(beyond, default=len(text))
    return text[:at]
