"""What both clients are, but for their I/O: options, what was learned, counts, and new calls."""

import hashlib
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedkeep.client.embedding import (
    EmbedExchange,
    Learned,
    Setting,
    check,
    scope_of,
    utf8_bytes,
)
from embedkeep.client.exchange import (
    NOBODY,
    Caller,
    InfoExchange,
    InvalidateExchange,
    Patience,
)
from embedkeep.client.gathering import near_answer
from embedkeep.client.importing import ImportExchange
from embedkeep.client.near import NearStore
from embedkeep.client.options import Ask, ImportAsk, Options
from embedkeep.client.results import ClientStats, Embedded
from embedkeep.client.splitting import PartLimits, split
from embedkeep.errors import InvalidConfig, InvalidResponse
from embedkeep.v1 import cache_pb2
from embedkeep.views import apply, resolve

INVALIDATE_BYTES: Final = 1 << 20
"""Largest Invalidate request: well below what any node takes."""
INVALIDATE_INPUTS: Final = 1000


@dataclass(slots=True)
class _Counts:
    """`ClientStats`, while it grows."""

    calls: int = 0
    inputs: int = 0
    near_hits: int = 0
    requests: int = 0
    retries: int = 0
    fallback_inputs: int = 0


class Core:
    """Makes the exchanges that a shell drives.

    Args:
        clock: Monotonic seconds; the shell's own.
        draw: Uniform random numbers in [0, 1).
    """

    def __init__(
        self,
        options: Options,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.options = options
        self.clock = clock
        self._draw = draw
        self._learned = Learned()
        self._near = (
            NearStore(options.near_cache, clock=clock) if options.near_cache is not None else None
        )
        self._lock = threading.Lock()
        self._counts = _Counts()
        self.caller()  # a key that cannot be read is found out before the first call

    def caller(self) -> Caller:
        """Whom a call that begins now is made for.

        Raises:
            InvalidConfig: The API key's file cannot be read, or it is no key.
        """
        if self.options.api_key is None:
            return NOBODY
        key = _key_of(self.options.api_key)
        return Caller(
            metadata=(("authorization", f"Bearer {key}"),),
            tenant=hashlib.blake2b(key.encode(), digest_size=16).digest(),
        )

    def embedding(
        self, texts: Sequence[str] | str, ask: Ask, *, strict: bool, near: bool
    ) -> EmbedExchange | Embedded:
        """A call of `embed`: its exchange, or its answer where the near cache has all of it.

        An exchange would find the same there; it costs three times as much.

        Args:
            strict: Refuse the whole call for an input that no request can carry.
            near: The near cache may answer.

        Raises:
            InvalidRequest: No texts.
            InvalidInput: *strict*, and a text that no request can carry.
        """
        caller = self.caller()
        if near and (answer := self._near_answer(texts, ask, caller)) is not None:
            return answer
        batch, errors = check(texts)
        if strict and errors:
            raise errors[min(errors)]
        timeout_s = ask.timeout_s or self.options.timeout_s
        fallback = self.options.fallback
        if fallback is not None and not ask.cache.only_if_cached:
            after_s = timeout_s / 2 if fallback.after_s is None else fallback.after_s
            timeout_s = min(timeout_s, after_s)
        return EmbedExchange(
            batch,
            ask,
            patience=self._patience(timeout_s),
            setting=self._setting(caller),
            errors=errors,
        )

    def fall_back(self, texts: Sequence[str], ask: Ask) -> NDArray[np.float32]:
        """The fallback's rows as the call wants them, shape [n, d].

        Raises:
            InvalidResponse: What it returned is not one row of numbers a text.
        """
        if self.options.fallback is None:
            raise RuntimeError("no fallback")
        rows = np.asarray(self.options.fallback.embed(texts, ask.prompt_name), dtype=np.float32)
        if rows.ndim != 2 or len(rows) != len(texts) or rows.shape[1] == 0:
            raise InvalidResponse(
                f"the fallback returned shape {rows.shape} for {len(texts)} texts"
            )
        scaled = bool(np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-3))
        view = resolve(
            ask.view(self.options.encoding),
            model_dimensions=rows.shape[1],
            model_normalizes=scaled,
        )
        return apply(view, rows).astype(np.float32)

    def info(self, timeout_s: float | None) -> InfoExchange:
        """A call of `info`."""
        patience = self._patience(timeout_s or self.options.timeout_s)
        return InfoExchange(patience, caller=self.caller())

    def invalidating(self, texts: Sequence[str] | str | None, ask: Ask) -> InvalidateExchange:
        """A call of `invalidate` for *texts*, or for everything where they are None.

        Raises:
            InvalidRequest: No texts.
            InvalidInput: One that no request can carry.
        """
        model = ask.model or ""
        requests = [cache_pb2.InvalidateRequest(model=model, everything=True)]
        if texts is not None:
            batch, errors = check(texts)
            if errors:
                raise errors[min(errors)]
            limits = PartLimits(max_inputs=INVALIDATE_INPUTS, max_bytes=INVALIDATE_BYTES)
            sizes = [utf8_bytes(text) for text in batch]
            requests = [
                cache_pb2.InvalidateRequest(
                    model=model,
                    inputs=cache_pb2.InputSet(
                        inputs=[batch[index] for index in part], prompt=ask.prompt or ""
                    ),
                )
                for part in split(range(len(batch)), sizes, limits)
            ]
        patience = self._patience(ask.timeout_s or self.options.timeout_s)
        return InvalidateExchange(
            patience, requests, caller=self.caller(), window=self.options.parallel
        )

    def importing(
        self, texts: Sequence[str], vectors: NDArray[np.float32], ask: ImportAsk
    ) -> ImportExchange:
        """A call of `import_pairs`.

        Raises:
            InvalidRequest: No texts, or columns that do not fit them.
            InvalidInput: A text that no request can carry.
        """
        batch, errors = check(texts)
        if errors:
            raise errors[min(errors)]
        return ImportExchange(
            batch,
            vectors,
            ask,
            patience=self._patience(ask.timeout_s or self.options.timeout_s),
            setting=self._setting(self.caller()),
        )

    def forget_near(self, exchange: InvalidateExchange) -> None:
        """Empty the near cache after an invalidation, also one that is not known to be done."""
        if self._near is not None:
            self._near.forget(exchange.caller.tenant, epoch=exchange.result())

    def count(self, exchange: EmbedExchange, *, fallback_inputs: int) -> None:
        """Book a call."""
        with self._lock:
            counts = self._counts
            counts.calls += 1
            counts.inputs += exchange.size
            counts.near_hits += exchange.near_hits
            counts.requests += exchange.sent
            counts.retries += exchange.retried
            counts.fallback_inputs += fallback_inputs

    @property
    def stats(self) -> ClientStats:
        """What was booked so far."""
        with self._lock:
            return ClientStats(**asdict(self._counts))

    def _near_answer(self, texts: Sequence[str] | str, ask: Ask, caller: Caller) -> Embedded | None:
        if self._near is None or ask.cache.no_cache:
            return None
        batch = (texts,) if isinstance(texts, str) else texts
        if not isinstance(batch, tuple | list):
            return None  # it may be possible to read it only once
        scope = scope_of(ask, encoding=self.options.encoding, caller=caller)
        if (found := self._near.all_of(scope, batch)) is None:
            return None
        with self._lock:
            self._counts.calls += 1
            self._counts.inputs += len(batch)
            self._counts.near_hits += len(batch)
        return near_answer(*found)

    def _setting(self, caller: Caller) -> Setting:
        return Setting(
            learned=self._learned,
            near=self._near,
            encoding=self.options.encoding,
            parallel=self.options.parallel,
            has_fallback=self.options.fallback is not None,
            caller=caller,
        )

    def _patience(self, timeout_s: float) -> Patience:
        return Patience(
            started_at=self.clock(),
            timeout_s=timeout_s,
            retries=self.options.retries,
            draw=self._draw,
        )


def _key_of(source: str | Path | Callable[[], str]) -> str:
    """The key itself. What is wrong with it is said without showing it."""
    if isinstance(source, Path):
        try:
            key = next(iter(source.read_text().split()), "")
        except OSError as error:
            raise InvalidConfig(
                f"{source} cannot be read: {error.strerror}", field="api_key"
            ) from error
        except UnicodeDecodeError:
            raise InvalidConfig(f"{source} is not text", field="api_key") from None
    else:
        key = source if isinstance(source, str) else source()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidConfig("must be one word of printable ASCII", field="api_key")
    return key
