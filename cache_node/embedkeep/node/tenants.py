"""Who calls: tenants by API key, each with its own partition of the keys, its epoch and its share.

A partition hangs on the tenant's name and the cache's secret alone, so API keys come and go
without touching entries.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import structlog

from embedkeep.config import NodeConfig, PredictorConfig, Tenant
from embedkeep.errors import InvalidConfig, Unauthenticated
from embedkeep.keys import KeySpace, tenant_salt, tenant_tag

MIN_SECRET_BYTES: Final = 16
BEARER: Final = "authorization"
KEY_HEADERS: Final = ("x-api-key", "api-key")
"""Where an API key may stand beside `BEARER`; the latter is Azure OpenAI's."""
MAX_KEY_SPACES: Final = 64
"""Prompts whose hash state is kept for a tenant. Prompts are named in the resource, so few."""

log = structlog.stdlib.get_logger()


class Partition:
    """One tenant's part of the cache.

    Args:
        name: For people. Never a metric's label.
        salt: The tenant's hashing key.
    """

    def __init__(self, name: str, salt: bytes) -> None:
        self.name = name
        self.tag: Final = tenant_tag(salt)
        self.epoch = 0
        """Entries of another epoch are never answered. Only grows."""
        self.forgotten = 0
        """When single texts were last forgotten by any node, ms; what L1 holds from before is
        dropped. Only grows."""
        self._salt = salt
        self._spaces: OrderedDict[tuple[str, int, str], KeySpace] = OrderedDict()

    def learn(self, *, epoch: int, forgotten: int) -> bool:
        """Take the larger numbers; whether anything was new."""
        new = epoch > self.epoch or forgotten > self.forgotten
        self.epoch, self.forgotten = max(epoch, self.epoch), max(forgotten, self.forgotten)
        return new

    def keys(self, *, fingerprint: str, prompt: str, epoch: int | None = None) -> KeySpace:
        """Maker of this tenant's keys.

        Args:
            epoch: None: the present one.
        """
        epoch = self.epoch if epoch is None else epoch
        name = (fingerprint, epoch, prompt)
        if (found := self._spaces.get(name)) is None:
            found = self._spaces[name] = KeySpace(
                fingerprint=fingerprint, salt=self._salt, epoch=epoch, prompt=prompt
            )
            while len(self._spaces) > MAX_KEY_SPACES:
                self._spaces.popitem(last=False)
        return found


class Tenants:
    """All partitions, and the API keys that open them.

    Args:
        partitions: In the order of the config; a single one named "" where there are no tenants.
        keys: Partition by the SHA-256 of each valid API key.
        versions: Of the key files, taken before *keys* was read from them.
    """

    def __init__(
        self,
        partitions: Sequence[Partition],
        keys: Mapping[bytes, Partition],
        config: NodeConfig,
        *,
        versions: tuple[object, ...],
    ) -> None:
        self.partitions = tuple(partitions)
        self._keys = keys
        self._config = config
        self._versions = versions

    @property
    def required(self) -> bool:
        """Calls need an API key."""
        return bool(self._config.tenants)

    def authenticate(self, metadata: Iterable[tuple[str, str | bytes]]) -> Partition:
        """Whose call this is, by ``authorization: Bearer KEY`` or one of `KEY_HEADERS`.

        Keys are compared by digest, so the time it takes tells nothing of a key.

        Raises:
            Unauthenticated: No key, not a tenant's, or two that differ.
        """
        if not self.required:
            return self.partitions[0]
        if (key := _api_key(metadata)) is None:
            raise Unauthenticated(
                "this cache has tenants: send your API key as `authorization: Bearer KEY` "
                "or `x-api-key: KEY`"
            )
        if (found := self._keys.get(hashlib.sha256(key).digest())) is None:
            raise Unauthenticated("the API key belongs to no tenant of this cache")
        return found

    async def follow(self, *, poll_s: float) -> None:
        """Re-read the key files as they change, until cancelled.

        A file that cannot be read leaves the keys as they are: a rotation half done must not
        shut everybody out.
        """
        while True:
            await asyncio.sleep(poll_s)
            now = await asyncio.to_thread(_versions, self._config.tenants)
            if now == self._versions:
                continue
            try:
                self._keys = await asyncio.to_thread(
                    read_keys, self._config.tenants, self.partitions
                )
            except InvalidConfig as error:
                log.warning("API keys not re-read", why=str(error))
                continue
            self._versions = now
            log.info("API keys re-read", keys=len(self._keys))


def open_tenants(config: NodeConfig) -> Tenants:
    """Read what *config* names.

    Raises:
        InvalidConfig: A file is missing or empty, the secret is short, or two tenants share a key.
    """
    if not config.tenants:
        return Tenants([Partition("", tenant_salt(b"", ""))], {}, config, versions=())
    secret = read_secret(config)
    partitions = [
        Partition(tenant.name, tenant_salt(secret, tenant.name)) for tenant in config.tenants
    ]
    versions = _versions(config.tenants)
    keys = read_keys(config.tenants, partitions)
    return Tenants(partitions, keys, config, versions=versions)


def read_secret(config: NodeConfig | PredictorConfig) -> bytes:
    """The secret of the cache's nodes.

    Raises:
        InvalidConfig: The file is missing, or the secret is short.
    """
    assert config.cluster_secret_file is not None  # noqa: S101 - the config's own rule
    secret = _read(config.cluster_secret_file, "cluster_secret_file").strip()
    if len(secret) < MIN_SECRET_BYTES:
        raise InvalidConfig(
            f"{config.cluster_secret_file} holds {len(secret)} bytes; "
            f"at least {MIN_SECRET_BYTES} random ones are needed",
            field="cluster_secret_file",
        )
    return secret


def read_keys(tenants: Sequence[Tenant], partitions: Sequence[Partition]) -> dict[bytes, Partition]:
    """Partition by the digest of each API key, one key a line.

    Raises:
        InvalidConfig: A file is missing or holds no key, or two tenants share one.
    """
    keys: dict[bytes, Partition] = {}
    for index, (tenant, partition) in enumerate(zip(tenants, partitions, strict=True)):
        field = f"tenants.{index}.api_key_file"
        lines = [line.strip() for line in _read(tenant.api_key_file, field).splitlines()]
        if not any(lines):
            raise InvalidConfig(f"{tenant.api_key_file} holds no API key", field=field)
        for line in filter(None, lines):
            other = keys.setdefault(hashlib.sha256(line).digest(), partition)
            if other is not partition:
                raise InvalidConfig(
                    f"tenants {other.name} and {tenant.name} have the same API key", field=field
                )
    return keys


def _api_key(metadata: Iterable[tuple[str, str | bytes]]) -> bytes | None:
    """The one key that a call shows; None: none.

    Raises:
        Unauthenticated: It shows two that differ: one of them is not meant.
    """
    shown: dict[bytes, str] = {}
    for name, value in metadata:
        # HTTP's headers may hold bytes that are no UTF-8.
        data = value.encode(errors="surrogateescape") if isinstance(value, str) else value
        if name in KEY_HEADERS:
            shown.setdefault(data.strip(), name)
        elif name == BEARER and data[:7].lower() == b"bearer ":
            shown.setdefault(data[7:].strip(), name)
    if len(shown) > 1:
        raise Unauthenticated(
            f"{' and '.join(shown.values())} hold different API keys: send one of them"
        )
    return next(iter(shown), None)


def _versions(tenants: Sequence[Tenant]) -> tuple[object, ...]:
    """Changes when a file does. Also through links, as the kubelet swaps them."""
    return tuple(_version(tenant.api_key_file) for tenant in tenants)


def _version(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _read(file: Path, field: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidConfig(f"{file} cannot be read: {error.strerror}", field=field) from error
