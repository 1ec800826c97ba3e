"""One call as a state machine: what to send now, and what the answers do. No I/O, no clock.

A shell (`sync`, `aio`) owns the wire and the clock. It asks `due` what to send, sends it, tells
`answered` or `failed` what came of it, and asks again, until `done`. Splitting, retries, the
deadline and the number of requests in flight are all decided here, so that the two shells cannot
differ in them.
"""

import heapq
import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from embedkeep.client.options import Retries
from embedkeep.client.results import CacheInfo
from embedkeep.client.wire import info_of
from embedkeep.errors import (
    DeadlineExceeded,
    EmbedKeepError,
    InvalidResponse,
    Overloaded,
    Unavailable,
)
from embedkeep.v1 import cache_pb2

Request = (
    cache_pb2.EmbedRequest
    | cache_pb2.ImportRequest
    | cache_pb2.InfoRequest
    | cache_pb2.InvalidateRequest
)
Metadata = tuple[tuple[str, str], ...]
Response = (
    cache_pb2.EmbedResponse
    | cache_pb2.ImportResponse
    | cache_pb2.InfoResponse
    | cache_pb2.InvalidateResponse
)
ResponseT = TypeVar("ResponseT", bound=Response)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transmit:
    """One request to send."""

    ticket: int
    """To be given back with what came of it."""
    request: Request
    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whom a call is made for. Settled once a call: an API key may change between two."""

    metadata: Metadata = field(default=(), repr=False)
    """What goes with each of its requests: the API key."""
    tenant: bytes = b""
    """Digest of the key; empty: it has none."""


NOBODY: Final = Caller()
"""Who has no API key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A request that is still to be answered; its message is made only when it is sent."""

    inputs: Sequence[int] | None = None
    """Which inputs it asks for. None: it is not about inputs."""
    attempts: int = 0
    """How often it was sent and refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a call may take, and how it waits.

    Args:
        started_at: When the call began, on the shell's clock, seconds.
        draw: Uniform random numbers in [0, 1).
    """

    started_at: float
    timeout_s: float
    retries: Retries
    draw: Callable[[], float]

    @property
    def deadline(self) -> float:
        """On the shell's clock, seconds."""
        return self.started_at + self.timeout_s

    def pause_s(self, error: EmbedKeepError, *, attempts: int, now: float) -> float | None:
        """How long to wait before sending again; None: do not.

        Args:
            attempts: How often it was sent already, at least 1.
        """
        if isinstance(error, Unavailable):
            asked_s = error.retry_after_s or 0.0
        elif isinstance(error, Overloaded) and error.retry_after_s is not None:
            asked_s = error.retry_after_s
        else:
            return None
        if attempts >= self.retries.max_attempts:
            return None
        # The exponent is bounded before it is used: 2.0**1024 overflows.
        longest_s = min(
            self.retries.first_pause_s * 2.0 ** min(attempts - 1, 64), self.retries.max_pause_s
        )
        pause_s = asked_s + self.draw() * longest_s
        return pause_s if now + pause_s < self.deadline else None


class Exchange(ABC):
    """What all calls share: letters wait, fly, rest after a refusal, and are done.

    Args:
        window: Letters in flight at once.
    """

    def __init__(self, patience: Patience, *, caller: Caller = NOBODY, window: int = 1) -> None:
        self.patience = patience
        self.caller = caller
        self._window = window
        self._waiting: deque[Letter] = deque()
        self._resting: list[tuple[float, int, Letter]] = []
        self._flying: dict[int, Letter] = {}
        self._order = itertools.count()
        self._tickets = 0
        self.retried = 0
        """Requests sent again."""

    @property
    def sent(self) -> int:
        """Requests sent."""
        return self._tickets

    @property
    def done(self) -> bool:
        """Nothing is left to send or to wait for."""
        return not (self._waiting or self._resting or self._flying)

    def due(self, now: float) -> list[Transmit]:
        """What to send now.

        Raises:
            DeadlineExceeded: The call's time is up.
        """
        while self._resting and self._resting[0][0] <= now:
            self._waiting.append(heapq.heappop(self._resting)[2])
        transmits: list[Transmit] = []
        while self._waiting and len(self._flying) < self._window:
            left_s = self.patience.deadline - now
            if left_s <= 0:
                self._end(DeadlineExceeded(f"no answer within {self.patience.timeout_s:g} s"))
                break
            letter = self._waiting.popleft()
            self._tickets += 1
            self._flying[self._tickets] = letter
            transmits.append(
                Transmit(ticket=self._tickets, request=self._request(letter), timeout_s=left_s)
            )
        return transmits

    def rest_s(self, now: float) -> float | None:
        """How long until `due` has more, if no answer comes before; None: only answers matter."""
        if not self._resting or len(self._flying) >= self._window:
            return None
        return max(self._resting[0][0] - now, 0.0)

    def answered(self, ticket: int, response: Response, now: float) -> None:
        """Take in an answer. One whose letter was given up meanwhile is ignored.

        Raises:
            EmbedKeepError: It ends the call.
        """
        if (letter := self._flying.pop(ticket, None)) is not None:
            self._accept(letter, response, now)

    def failed(self, ticket: int, error: EmbedKeepError, now: float) -> None:
        """Take in that a request failed: it rests and is sent again, or it ends the call.

        Raises:
            EmbedKeepError: It ends the call.
        """
        if (letter := self._flying.pop(ticket, None)) is None:
            return
        if not self._again(letter, error, now):
            self._end(error)

    def _again(self, letter: Letter, error: EmbedKeepError, now: float) -> bool:
        """Let *letter* rest and be sent again; False: *error* is not one to try again after."""
        attempts = letter.attempts + 1
        pause_s = self.patience.pause_s(error, attempts=attempts, now=now)
        if pause_s is None:
            return False
        self.retried += 1
        for inputs in self._recut(letter, error):
            self._rest(Letter(inputs=inputs, attempts=attempts), until=now + pause_s)
        return True

    def _recut(self, letter: Letter, error: EmbedKeepError) -> Sequence[Sequence[int] | None]:
        """The inputs of the requests that take the place of a refused one."""
        del error
        return [letter.inputs]

    def _rest(self, letter: Letter, *, until: float) -> None:
        # The middle field keeps equal times in order and letters out of the comparison.
        heapq.heappush(self._resting, (until, next(self._order), letter))

    def _drop_letters(self) -> None:
        """Nothing more is sent or waited for."""
        self._waiting.clear()
        self._resting.clear()
        self._flying.clear()

    def _end(self, error: EmbedKeepError) -> None:
        """The call cannot go on."""
        self._drop_letters()
        raise error

    @abstractmethod
    def _request(self, letter: Letter) -> Request: ...

    @abstractmethod
    def _accept(self, letter: Letter, response: Response, now: float) -> None: ...


class InfoExchange(Exchange):
    """Asks a node what it serves."""

    def __init__(self, patience: Patience, *, caller: Caller = NOBODY) -> None:
        super().__init__(patience, caller=caller)
        self._info: CacheInfo | None = None
        self._waiting.append(Letter())

    def result(self) -> CacheInfo:
        """Once done."""
        if self._info is None:
            raise RuntimeError("not done")
        return self._info

    def _request(self, letter: Letter) -> Request:
        del letter
        return cache_pb2.InfoRequest()

    def _accept(self, letter: Letter, response: Response, now: float) -> None:
        del letter, now
        self._info = info_of(expected(response, cache_pb2.InfoResponse))


class InvalidateExchange(Exchange):
    """Sends the requests that forget entries. Sending one twice does no harm, so it is retried."""

    def __init__(
        self,
        patience: Patience,
        requests: Sequence[cache_pb2.InvalidateRequest],
        *,
        caller: Caller = NOBODY,
        window: int,
    ) -> None:
        super().__init__(patience, caller=caller, window=window)
        self._requests = requests
        self._epoch = 0
        self._waiting.extend(Letter(inputs=(number,)) for number in range(len(requests)))

    def result(self) -> int:
        """The tenant's epoch after it, as far as the answers show it yet."""
        return self._epoch

    def _request(self, letter: Letter) -> Request:
        return self._requests[(letter.inputs or (0,))[0]]

    def _accept(self, letter: Letter, response: Response, now: float) -> None:
        del letter, now
        self._epoch = max(self._epoch, expected(response, cache_pb2.InvalidateResponse).epoch)


def expected(response: Response, kind: type[ResponseT]) -> ResponseT:
    """*response*, known to be of *kind*.

    Raises:
        InvalidResponse: It is not.
    """
    if not isinstance(response, kind):
        raise InvalidResponse(f"a {type(response).__name__} came for a {kind.__name__}")
    return response
