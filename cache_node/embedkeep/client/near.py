"""The near cache: answers kept in the client, bounded in bytes and age."""

import itertools
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from embedkeep.client.options import NearCache
from embedkeep.views import View

ENTRY_OVERHEAD_BYTES: Final = 400
"""What CPython keeps for an entry beside text and vector: key, row, dict and list slots."""
MAX_TENANTS: Final = 1024
"""API keys whose answers are kept; beyond it those of the least recently used one go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What, beside its text, makes two answers the same."""

    tenant: bytes = b""
    """Digest of the API key: a client's key may change, and tenants share nothing."""
    model: str | None
    prompt: str | None
    view: View


@dataclass(frozen=True, slots=True, kw_only=True)
class NearRow:
    """One answer."""

    vector: bytes
    """float32, little-endian."""
    tokens: int
    truncated: bool
    imported: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a tenant's answers were made in; with another one they are all void."""

    fingerprint: str
    epoch: int


@dataclass(slots=True, kw_only=True)
class _Tenant:
    """What is known of the answers to one API key."""

    generation: int
    identity: Identity | None = None
    """None: nothing is kept."""
    epoch: int = 0
    """The highest one that was seen."""
    epoch_at: float = 0.0
    """When it was last seen, monotonic seconds."""
    scopes: dict[Scope, int] = field(default_factory=dict)
    """Numbers stand for scopes in the rows' keys: a scope is hashed once, not for each text."""


class NearStore:
    """Rows by text, the least recently used one going first. Safe between threads.

    A call notes the `generation` when it begins and gives it back with what it wants kept:
    answers that were asked for before the tenant's were forgotten are not kept.

    Epochs only grow, so an answer of an earlier one comes from a node that has not heard of an
    invalidation yet, and is not kept. Only where nobody has shown the higher epoch for max_age_s
    is the lower one believed: the cache has then begun anew and forgotten what it knew.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, options: NearCache, *, clock: Callable[[], float]) -> None:
        self._options = options
        self._clock = clock
        self._lock = threading.Lock()
        self._rows: OrderedDict[tuple[int, str], tuple[float, NearRow]] = OrderedDict()
        self._tenants: OrderedDict[bytes, _Tenant] = OrderedDict()
        self._numbers = itertools.count()
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes in use; never above the bound."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._rows)

    def look_up(
        self, scope: Scope, texts: list[str]
    ) -> tuple[int, Identity | None, dict[str, NearRow]]:
        """The generation, whose answers are kept, and those that are there for *texts*."""
        oldest = self._clock() - self._options.max_age_s
        found: dict[str, NearRow] = {}
        with self._lock:
            tenant = self._tenant(scope.tenant)
            number = tenant.scopes.get(scope, -1)
            for text in texts:
                key = (number, text)
                if (kept := self._rows.get(key)) is None:
                    continue
                if kept[0] < oldest:
                    self._drop(key)
                    continue
                self._rows.move_to_end(key)
                found[text] = kept[1]
            return tenant.generation, tenant.identity, found

    def all_of(
        self, scope: Scope, texts: Sequence[object]
    ) -> tuple[Identity, list[NearRow]] | None:
        """Rows for *texts*, in their order, and what they were made in. None: one is not there."""
        oldest = self._clock() - self._options.max_age_s
        with self._lock:
            tenant = self._tenant(scope.tenant)
            number = tenant.scopes.get(scope, -1)
            keys = [(number, text) for text in texts if isinstance(text, str)]
            rows = [
                kept[1]
                for key in keys
                if (kept := self._rows.get(key)) is not None and kept[0] >= oldest
            ]
            if len(rows) < len(texts):
                return None
            for key in keys:
                self._rows.move_to_end(key)
            return (tenant.identity, rows) if rows and tenant.identity is not None else None

    def keep(
        self, generation: int, identity: Identity, scope: Scope, rows: dict[str, NearRow]
    ) -> None:
        """Keep *rows*, unless they were asked for before a `forget`, or are of an earlier epoch."""
        now = self._clock()
        with self._lock:
            tenant = self._tenant(scope.tenant)
            if generation != tenant.generation:
                return
            if identity.epoch < tenant.epoch and now - tenant.epoch_at <= self._options.max_age_s:
                return
            tenant.epoch, tenant.epoch_at = identity.epoch, now
            if tenant.identity is not None and identity != tenant.identity:
                self._empty(tenant)
            tenant.identity = identity
            if (number := tenant.scopes.get(scope)) is None:
                number = tenant.scopes[scope] = next(self._numbers)
            for text, row in rows.items():
                key = (number, text)
                self._drop(key)
                size = _size(text, row)
                if size > self._options.max_bytes:
                    continue
                self._rows[key] = (now, row)
                self._bytes += size
                while self._bytes > self._options.max_bytes:
                    self._drop(next(iter(self._rows)))

    def forget(self, tenant: bytes, *, epoch: int) -> None:
        """Forget all of a tenant's answers, and keep none of the calls under way.

        Args:
            epoch: What the invalidation returned: answers of an earlier one are not kept.
        """
        now = self._clock()
        with self._lock:
            known = self._tenant(tenant)
            self._empty(known)
            if epoch >= known.epoch:
                known.epoch, known.epoch_at = epoch, now

    def _tenant(self, name: bytes) -> _Tenant:
        if (tenant := self._tenants.get(name)) is None:
            tenant = self._tenants[name] = _Tenant(generation=next(self._numbers))
            if len(self._tenants) > MAX_TENANTS:
                self._empty(self._tenants.popitem(last=False)[1])
        self._tenants.move_to_end(name)
        return tenant

    def _empty(self, tenant: _Tenant) -> None:
        numbers = set(tenant.scopes.values())
        for key in [key for key in self._rows if key[0] in numbers]:
            self._drop(key)
        tenant.scopes.clear()
        tenant.identity = None
        tenant.generation = next(self._numbers)

    def _drop(self, key: tuple[int, str]) -> None:
        if (kept := self._rows.pop(key, None)) is not None:
            self._bytes -= _size(key[1], kept[1])


def _size(text: str, row: NearRow) -> int:
    return sys.getsizeof(text) + len(row.vector) + ENTRY_OVERHEAD_BYTES
