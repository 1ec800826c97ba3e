"""The token that an upstream is asked with. It stands in no log, no error and no repr."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from embedkeep.config import Upstream
from embedkeep.errors import InvalidConfig

HIDDEN: Final = "***"
"""Stands where somebody else wrote the key."""

_SHAPE: Final = re.compile(r"[\x21-\x7e]{1,8192}")


@dataclass(slots=True)
class Key:
    """A bearer token from a file, which may be replaced, or from the environment.

    Args:
        file: None: from *variable*.
        variable: None, and no file: there is none.
    """

    file: Path | None
    variable: str | None
    env: Mapping[str, str] = field(repr=False)
    _seen: tuple[int, int, int] | None = None
    _token: str | None = field(default=None, repr=False)

    @property
    def named(self) -> str:
        """Where it comes from, for people."""
        if self.file is not None:
            return f"the key in {self.file}"
        return (
            f"the key in the variable {self.variable}" if self.variable else "calls without a key"
        )

    @property
    def told_by(self) -> str:
        """The config's field that names it."""
        return "upstream.key_env" if self.variable is not None else "upstream.key_file"

    def read(self) -> str | None:
        """The token now; None: none is sent.

        Raises:
            InvalidConfig: It is not there, or is no token.
        """
        if self.file is None:
            return self._checked(self.env.get(self.variable, "")) if self.variable else None
        try:
            seen = _version(self.file)
            if self._token is None or seen != self._seen:
                self._token, self._seen = self._checked(self.file.read_text()), seen
        except (OSError, ValueError) as error:
            said = error.strerror if isinstance(error, OSError) else "is no text"
            raise InvalidConfig(f"{self.file} cannot be read: {said}", field=self.told_by) from None
        return self._token

    def changed(self) -> bool:
        """The file is another one than when it was read last."""
        try:
            return self.file is not None and _version(self.file) != self._seen
        except OSError:
            return False

    def hide(self, body: bytes) -> bytes:
        """*body*, without the key where somebody wrote it in."""
        try:
            token = self.read()
        except InvalidConfig:
            token = self._token
        return body.replace(token.encode(), HIDDEN.encode()) if token else body

    def _checked(self, text: str) -> str:
        token = text.strip()
        where = self.file or f"the environment variable {self.variable}"
        if not token:
            raise InvalidConfig(f"{where} is empty or not set", field=self.told_by)
        if not _SHAPE.fullmatch(token):
            raise InvalidConfig(
                f"{where} holds something else than one token: white space or characters beyond"
                " ASCII",
                field=self.told_by,
            )
        return token


def key_of(upstream: Upstream) -> Key:
    """The key that *upstream* names."""
    return Key(upstream.key_file, upstream.key_env, os.environ)


def _version(file: Path) -> tuple[int, int, int]:
    seen = file.stat()
    return seen.st_mtime_ns, seen.st_ino, seen.st_size
