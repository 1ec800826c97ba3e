"""Texts to token ids, by the model's own tokenizer.json."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from embedkeep.embedder.backends import Tokens
from embedkeep.embedder.folder import FIELD, Folder
from embedkeep.errors import InvalidConfig


class Tokenize:
    """A model's tokenizer, cut at *max_tokens*. May be called from several threads."""

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

    def __call__(self, texts: Sequence[str]) -> list[Tokens]:
        """One `Tokens` for each text, with the special tokens."""
        read = [text.lower() for text in texts] if self._lower else list(texts)
        return [
            Tokens(ids=found.ids, truncated=bool(found.overflowing))
            for found in self._tokenizer.encode_batch_fast(read)
        ]
