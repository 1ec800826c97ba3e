"""The call that embeds texts, as a state machine (see `exchange`).

It asks the near cache first, learns the node's limits where they are not known, cuts the rest into
requests, and puts the rows together. Where a node refuses a request that was cut by what is known,
its limits may have changed: they are asked for again, once a call. All rows of a result are made
by one model: where nodes answer with different fingerprints, as they may while a model is being
replaced, the call begins anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from embedkeep.client.exchange import (
    NOBODY,
    Caller,
    Exchange,
    Letter,
    Patience,
    Request,
    Response,
    expected,
)
from embedkeep.client.gathering import Gathered
from embedkeep.client.near import Identity, NearStore, Scope
from embedkeep.client.options import PLAIN, Ask
from embedkeep.client.results import CacheInfo, Embedded
from embedkeep.client.splitting import PartLimits, inputs_an_answer_holds, split
from embedkeep.client.transports.messages import MAX_RECEIVE_BYTES
from embedkeep.client.wire import INPUT_OVERHEAD_BYTES, Answer, answer_of, info_of, request_of
from embedkeep.errors import (
    DeadlineExceeded,
    EmbedKeepError,
    InvalidInput,
    InvalidRequest,
    ModelDrift,
    Overloaded,
    Unavailable,
)
from embedkeep.v1 import cache_pb2
from embedkeep.views import Encoding

MAX_BEGINNINGS: Final = 4
"""How often a call begins anew because nodes answer with different models."""
UTF8_BYTES: Final = 4
"""Of a character, at most."""
MIN_HALF_INPUTS: Final = 16
"""Smaller halves are not worth a request each."""


@dataclass(slots=True)
class Learned:
    """What a client knows of the cache it talks to; shared by its calls."""

    info: CacheInfo | None = None
    """None: not asked yet, the model or the limits have changed since, or no embedder was seen yet,
    so that how much fits an answer is not known."""

    plain: tuple[CacheInfo, PartLimits] | None = None
    """What a request of a call without options may hold, by what was known then."""

    def take(self, info: CacheInfo) -> None:
        """Keep *info* for calls to come, where it tells all."""
        self.info = info if info.dimensions else None

    def forget(self, info: CacheInfo) -> None:
        """*info* does not hold any more; what another call has learned since may."""
        if self.info is info:
            self.info = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a call is given by its client."""

    learned: Learned
    near: NearStore | None
    encoding: Encoding
    parallel: int
    has_fallback: bool
    caller: Caller = NOBODY


class EmbedExchange(Exchange):
    """One call of `embed`.

    Args:
        texts: Already checked to be strings; see `check`.
        errors: Inputs that are not sent, by index.
    """

    def __init__(
        self,
        texts: Sequence[str],
        ask: Ask,
        *,
        patience: Patience,
        setting: Setting,
        errors: dict[int, InvalidInput],
    ) -> None:
        super().__init__(patience, caller=setting.caller, window=setting.parallel)
        self._texts = texts
        self._ask = ask
        self._setting = setting
        self._refused = errors
        self._falls_back = setting.has_fallback and not ask.cache.only_if_cached
        self._scope = scope_of(ask, encoding=setting.encoding, caller=setting.caller)
        self._info: CacheInfo | None = None
        self._asked_again = False
        self._refusal: EmbedKeepError | None = None
        self._beginnings = 0
        self._generation = 0
        self.near_hits = 0
        self._begin(near=True)

    @property
    def size(self) -> int:
        """How many inputs the call has."""
        return len(self._texts)

    def texts(self, inputs: Sequence[int]) -> list[str]:
        """The texts of *inputs*, which ascend."""
        if len(inputs) == len(self._texts):
            return list(self._texts)
        return [self._texts[index] for index in inputs]

    def unanswered(self) -> list[int]:
        """Inputs that the fallback must embed. Once done."""
        if not self._falls_back:
            return []
        lost = [
            index
            for index, error in self._gathered.errors.items()
            if isinstance(error, Unavailable | DeadlineExceeded)
        ]
        return sorted([*lost, *self._gathered.missing()])

    def fell_back(self, inputs: Sequence[int], rows: NDArray[np.float32]) -> None:
        """Take in the fallback's *rows* for *inputs*.

        Raises:
            InvalidResponse: Their dimensions are not those of the other rows.
        """
        self._gathered.put_fallback(inputs, rows)

    def result(self) -> Embedded:
        """Once done, and after the fallback."""
        if (info := self._setting.learned.info or self._info) is not None:
            self._gathered.dimensions = self._ask.dimensions or info.dimensions
        return self._gathered.result()

    def _begin(self, *, near: bool, pause_until: float | None = None) -> None:
        self._beginnings += 1
        self._gathered = Gathered(len(self._texts))
        self._gathered.errors.update(self._refused)
        missing = self._gathered.missing()
        if self._setting.near is not None:
            use = near and not self._ask.cache.no_cache
            missing = self._ask_near(self._setting.near, missing if use else [])
        if not missing:
            return
        if self._setting.learned.info is None or pause_until is not None:
            # Texts are cut into requests only when the limits are known.
            self._rest(Letter(), until=pause_until or self.patience.started_at)
        else:
            self._cut(missing, self._setting.learned.info, fresh=False)

    def _ask_near(self, near: NearStore, inputs: list[int]) -> list[int]:
        """Take rows for *inputs* from the near cache; returns what the call still misses."""
        self._generation, identity, found = near.look_up(self._scope, self.texts(inputs))
        hits = {
            index: row for index in inputs if (row := found.get(self._texts[index])) is not None
        }
        if identity is not None and hits:
            self._gathered.put_near(hits)
            self._gathered.fingerprint = identity.fingerprint
            self._gathered.epoch = identity.epoch
            self.near_hits += len(hits)
        return self._gathered.missing()

    def _cut(self, missing: list[int], info: CacheInfo, *, fresh: bool) -> None:
        self._info = info
        limits = self._limits(info)
        longest = min(info.max_input_bytes, limits.max_input_bytes)
        if self._fits_whole(missing, limits, longest):
            self._waiting.append(Letter(inputs=missing))
            return
        sizes = [utf8_bytes(text) for text in self._texts]
        sendable = [index for index in missing if sizes[index] <= longest]
        if not fresh and len(sendable) < len(missing):
            self._doubt(info)  # what was learned some time ago refuses no text
            return
        for index in missing:
            if sizes[index] > longest:
                self._gathered.errors[index] = InvalidInput(
                    f"input {index} has {sizes[index]} bytes of UTF-8; at most {longest} here: "
                    "split it before embedding",
                    index=index,
                )
        self._waiting.extend(Letter(inputs=part) for part in split(sendable, sizes, limits))

    def _fits_whole(self, missing: list[int], limits: PartLimits, longest: int) -> bool:
        """The usual call is one request beyond doubt; only others are measured text by text."""
        if len(missing) > limits.max_inputs:
            return False
        lengths = list(map(len, self._texts))
        most = UTF8_BYTES * sum(lengths) + INPUT_OVERHEAD_BYTES * len(lengths)
        return UTF8_BYTES * max(lengths) <= longest and most + limits.base_bytes <= limits.max_bytes

    def _limits(self, info: CacheInfo) -> PartLimits:
        """Of a request to who serves *info*; of the usual call they are worked out once."""
        if self._ask is not PLAIN:
            return self._worked_out(info)
        learned = self._setting.learned
        if learned.plain is None or learned.plain[0] is not info:
            learned.plain = (info, self._worked_out(info))
        return learned.plain[1]

    def _worked_out(self, info: CacheInfo) -> PartLimits:
        base = request_of((), self._ask, self._setting.encoding).ByteSize()
        most = info.max_inputs
        if dimensions := self._ask.dimensions or info.dimensions:
            fit = inputs_an_answer_holds(
                dimensions=dimensions,
                itemsize=np.dtype(self._setting.encoding.value).itemsize,
                max_bytes=min(info.max_message_bytes, MAX_RECEIVE_BYTES),
            )
            most = min(most, fit)
        return PartLimits(max_inputs=most, max_bytes=info.max_message_bytes, base_bytes=base)

    def _request(self, letter: Letter) -> Request:
        if letter.inputs is None:
            return cache_pb2.InfoRequest()
        return request_of(self.texts(letter.inputs), self._ask, self._setting.encoding)

    def _accept(self, letter: Letter, response: Response, now: float) -> None:
        if letter.inputs is None:
            self._take_info(info_of(expected(response, cache_pb2.InfoResponse)))
            return
        answer = answer_of(
            expected(response, cache_pb2.EmbedResponse), count=len(letter.inputs), ask=self._ask
        )
        has_rows = len(answer.errors) < len(letter.inputs)
        if has_rows:
            self._learn(answer)
            if self._gathered.fingerprint not in {"", answer.fingerprint}:
                self._begin_anew(answer, now)
                return
        self._gathered.put_answer(letter.inputs, answer)
        self._take_errors(letter, answer, now)
        if has_rows:
            self._keep_near(letter.inputs, answer)

    def _take_info(self, info: CacheInfo) -> None:
        before, refusal, self._refusal = self._info, self._refusal, None
        self._setting.learned.take(info)
        if (
            refusal is not None
            and before is not None
            and self._limits(info) == self._limits(before)
        ):
            self._end(refusal)  # it was not about limits
            return
        self._cut(self._gathered.missing(), info, fresh=True)

    def _doubt(self, info: CacheInfo) -> None:
        """Ask for the limits again before anything else is sent."""
        self._drop_letters()
        self._setting.learned.forget(info)
        self._waiting.append(Letter())

    def failed(self, ticket: int, error: EmbedKeepError, now: float) -> None:
        """As for any call; but a request that is refused as it is may have been cut wrongly."""
        letter = self._flying.get(ticket)
        # By its very class: what is wrong with a text, a key or a model is not about limits.
        about_limits = type(error) is InvalidRequest and letter and letter.inputs is not None
        if about_limits and self._info is not None and not self._asked_again:
            self._asked_again, self._refusal = True, error
            self._doubt(self._info)
            return
        super().failed(ticket, error, now)

    def _recut(self, letter: Letter, error: EmbedKeepError) -> Sequence[Sequence[int] | None]:
        """Halves, where too much is waiting: what never fits as a whole is answered in parts."""
        inputs = letter.inputs or ()
        if not isinstance(error, Overloaded) or len(inputs) < 2 * MIN_HALF_INPUTS:
            return super()._recut(letter, error)
        half = len(inputs) // 2
        return [inputs[:half], inputs[half:]]

    def _learn(self, answer: Answer) -> None:
        """Limits go with a model: with another one they are asked for again."""
        learned = self._setting.learned
        if learned.info is not None and learned.info.fingerprint != answer.fingerprint:
            learned.info = None

    def _begin_anew(self, answer: Answer, now: float) -> None:
        before = self._gathered.fingerprint
        self._drop_letters()
        if self._beginnings == MAX_BEGINNINGS:
            raise ModelDrift(
                f"nodes answer with different models: {before} and {answer.fingerprint}; "
                "try again when the model has been replaced everywhere"
            )
        pause_s = self.patience.retries.first_pause_s * 2.0**self._beginnings
        if now + pause_s >= self.patience.deadline:
            self._end(DeadlineExceeded(f"no answer of one model in {self.patience.timeout_s:g} s"))
            return
        self._begin(near=False, pause_until=now + pause_s)

    def _take_errors(self, letter: Letter, answer: Answer, now: float) -> None:
        """Rows that may pass by themselves are asked for again; the others have failed."""
        inputs = letter.inputs or ()
        again = [place for place, error in answer.errors.items() if isinstance(error, Unavailable)]
        if again:
            rest = Letter(inputs=[inputs[place] for place in again], attempts=letter.attempts)
            if not self._again(rest, answer.errors[again[0]], now):
                again = []
        for place in answer.errors.keys() - set(again):
            self._gathered.errors[inputs[place]] = answer.errors[place]

    def _keep_near(self, inputs: Sequence[int], answer: Answer) -> None:
        if self._setting.near is None or self._ask.cache.no_store:
            return
        self._setting.near.keep(
            self._generation,
            Identity(fingerprint=answer.fingerprint, epoch=answer.epoch),
            self._scope,
            {self._texts[index]: row for index, row in self._gathered.near_rows(inputs)},
        )

    def _end(self, error: EmbedKeepError) -> None:
        """With a fallback, a cache that is not available leaves rows unanswered instead."""
        self._drop_letters()
        if not (self._falls_back and isinstance(error, Unavailable | DeadlineExceeded)):
            raise error


def scope_of(ask: Ask, *, encoding: Encoding, caller: Caller) -> Scope:
    """What the near cache tells the answers to *ask* from others by."""
    if ask is PLAIN and caller is NOBODY:
        return _PLAIN_SCOPES[encoding]
    return Scope(tenant=caller.tenant, model=ask.model, prompt=ask.prompt, view=ask.view(encoding))


_PLAIN_SCOPES: Final = {
    encoding: Scope(model=None, prompt=None, view=PLAIN.view(encoding)) for encoding in Encoding
}
"""The usual ones, made once: an equal object takes longer to find than the same."""


def check(texts: Sequence[str] | str) -> tuple[list[str], dict[int, InvalidInput]]:
    """The texts of a call, and what is wrong with those that no request can carry.

    A single string is a batch of one.

    Raises:
        InvalidRequest: No texts.
    """
    given: list[object] = [texts] if isinstance(texts, str | bytes) else list(texts)
    if not given:
        raise InvalidRequest("no texts: give at least one")
    if (sound := _all_sound(given)) is not None:
        return sound, {}
    batch: list[str] = []
    errors: dict[int, InvalidInput] = {}
    for index, text in enumerate(given):
        if not isinstance(text, str):
            problem = f"is {type(text).__name__}; a str is needed"
        elif not text.isascii() and (place := _lone_surrogate(text)) is not None:
            problem = (
                f"has a lone surrogate (U+{ord(text[place]):04X}) at character {place}, which "
                "UTF-8 cannot carry; decode its source with errors='replace'"
            )
        else:
            batch.append(text)
            continue
        batch.append("")
        errors[index] = InvalidInput(f"input {index} {problem}", index=index)
    return batch, errors


def _all_sound(given: list[object]) -> list[str] | None:
    """*given* where nothing is wrong with any; None: one by one it is to be found out."""
    if set(map(type, given)) != {str}:
        return None
    texts = cast("list[str]", given)
    joined = "".join(texts)
    if not joined.isascii():
        try:
            joined.encode()
        except UnicodeEncodeError:
            return None
    return texts


def utf8_bytes(text: str) -> int:
    """Length of *text* in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def _lone_surrogate(text: str) -> int | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None
