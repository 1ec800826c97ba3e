"""What LangChain's CacheBackedEmbeddings has left in a byte store, looked up by text.

Such a cache keeps hashes of texts and no texts. Its key is the namespace and the hash, without
anything between them; its value is the vector as a JSON list. `LocalFileStore` has one file a key;
`RedisStore` may put a namespace of its own and a slash before it.
Source: langchain_classic 1.0.8, embeddings/cache.py and storage/file_system.py;
langchain_community 0.4.2, storage/redis.py.
"""

import hashlib
import socket
import ssl
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self
from urllib.parse import unquote, urlsplit

import hiredis

from embedkeep.errors import InvalidConfig

_FLAG: Final = "--langchain-store"
_TIMEOUT_S: Final = 10.0
_NAMESPACE: Final = uuid.UUID(int=1985)


def _sha1(data: bytes) -> str:
    digest = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    return str(uuid.uuid5(_NAMESPACE, digest))


HASHES: Final[Mapping[str, Callable[[bytes], str]]] = MappingProxyType(
    {
        "sha1": _sha1,
        "blake2b": lambda data: hashlib.blake2b(data).hexdigest(),
        "sha256": lambda data: hashlib.sha256(data).hexdigest(),
        "sha512": lambda data: hashlib.sha512(data).hexdigest(),
    }
)
"""By what `key_encoder` is called there."""


def key_of(text: str, *, namespace: str, encoder: str) -> str:
    """Where such a cache keeps the vector of *text*."""
    return namespace + HASHES[encoder](text.encode(errors="surrogatepass"))


class Store(ABC):
    """A byte store, for reading."""

    @abstractmethod
    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """Values in the order of *keys*; None: there is none.

        Raises:
            InvalidConfig: It cannot be read.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FolderStore(Store):
    """A `LocalFileStore`.

    Raises:
        InvalidConfig: No such folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InvalidConfig(f"{folder} is no folder", field=_FLAG)
        self._folder = folder

    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """See `Store`."""
        return [self._value(key) for key in keys]

    def close(self) -> None:
        """See `Store`."""

    def _value(self, key: str) -> bytes | None:
        try:
            return (self._folder / key.lstrip("/")).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InvalidConfig(f"cannot be read: {error}", field=_FLAG) from error


class RedisStore(Store):
    """A `RedisStore`, over one blocking connection.

    Args:
        url: redis://[[user]:password@]host[:port][/database], or rediss:// for TLS.
        namespace: The store's own; empty: it has none.

    Raises:
        InvalidConfig: It cannot be reached, or refuses us. The password is not shown.
    """

    def __init__(self, url: str, *, namespace: str) -> None:
        self._prefix = f"{namespace}/" if namespace else ""
        self._reader = hiredis.Reader()
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "localhost", parts.port or 6379
            database = int(parts.path.strip("/") or 0)
        except ValueError as error:
            raise InvalidConfig(f"is no URL of a Redis: {error}", field=_FLAG) from error
        self._where = f"{host}:{port}"
        try:
            self._socket = socket.create_connection((host, port), timeout=_TIMEOUT_S)
            if parts.scheme == "rediss":
                context = ssl.create_default_context()
                self._socket = context.wrap_socket(self._socket, server_hostname=host)
        except OSError as error:
            raise self._failed(error) from error
        if parts.password is not None:
            user = [unquote(parts.username)] if parts.username else []
            self._call("AUTH", *user, unquote(parts.password))
        if database:
            self._call("SELECT", str(database))

    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """See `Store`."""
        if not keys:
            return []
        found = self._call("MGET", *(self._prefix + key for key in keys))
        if not isinstance(found, list):
            raise self._failed(f"MGET answered {found!r}")
        return found

    def close(self) -> None:
        """See `Store`."""
        self._socket.close()

    def _call(self, *words: str) -> object:
        packed = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub knows 1-tuples
        try:
            self._socket.sendall(packed)
            while (reply := self._reader.gets()) is False:
                if not (data := self._socket.recv(1 << 16)):
                    raise self._failed("the connection was closed")
                self._reader.feed(data)
        except OSError as error:
            raise self._failed(error) from error
        if isinstance(reply, hiredis.HiredisError):
            raise self._failed(reply) from reply
        return reply

    def _failed(self, why: object) -> InvalidConfig:
        return InvalidConfig(f"{self._where} cannot be read: {why}", field=_FLAG)


def opened(where: str, *, namespace: str) -> Store:
    """The store at a folder or a redis:// address.

    Args:
        namespace: A `RedisStore`'s own.

    Raises:
        InvalidConfig: It cannot be read.
    """
    if where.startswith(("redis://", "rediss://")):
        return RedisStore(where, namespace=namespace)
    if "://" in where:
        raise InvalidConfig(f"{where.partition('://')[0]}:// is none: give a folder or redis://",
                            field=_FLAG)  # fmt: skip
    return FolderStore(Path(where))
