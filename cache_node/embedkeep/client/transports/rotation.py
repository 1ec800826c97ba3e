"""Which address a request goes to: all in turn, those that have just failed last. Pure.

Names are looked up by a shell, which tells what it found.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from embedkeep.client.transports.origins import Origin

FIRST_REST_S: Final = 0.1
"""How long an address that failed goes last; doubles. About what a restart takes at least."""
LONGEST_REST_S: Final = 10.0
LOOK_UP_EVERY_S: Final = 30.0
"""How old what a name stands for may be: how late new nodes get their share."""
DOUBT_EVERY_S: Final = 1.0
"""The same after a failure, which may be that of an address that is gone for good."""
MAX_LOOK_UPS: Final = 4
"""At once, so that a name that hangs holds no other; each takes a thread, and in asyncio one of at
least five that the loop shares with whatever else runs in it."""


@dataclass(frozen=True, slots=True)
class Address:
    """One node, as it is dialled."""

    origin: Origin
    ip: str


@dataclass(slots=True)
class _Rest:
    until: float
    length_s: float


@dataclass(slots=True)
class _Name:
    due_at: float = float("-inf")
    doubt_at: float = float("-inf")
    """The earliest that a failure makes it due."""
    under_way: bool = False


class Rotation:
    """The addresses of a target. Not thread-safe.

    Args:
        origins: Of the target. Those with an IP address need no looking up.
    """

    def __init__(self, origins: Sequence[Origin]) -> None:
        self._origins = origins
        self._known = {
            origin: [Address(origin, origin.host)] for origin in origins if origin.literal
        }
        self._names = {origin: _Name() for origin in origins if not origin.literal}
        self._due_at = float("-inf") if self._names else float("inf")
        """The first name's that may be looked up."""
        self._addresses: list[Address] = []
        self._rests: dict[Address, _Rest] = {}
        self._turn = 0
        self._join()

    def due(self, now: float) -> Sequence[Origin]:
        """Whose names are to be looked up now; what came of it must be told of each."""
        if now < self._due_at:
            return ()
        room = MAX_LOOK_UPS - sum(name.under_way for name in self._names.values())
        idle = ((origin, name) for origin, name in self._names.items() if not name.under_way)
        due = [origin for origin, name in idle if name.due_at <= now][:room]
        for origin in due:
            self._names[origin] = _Name(now + LOOK_UP_EVERY_S, now + DOUBT_EVERY_S, under_way=True)
        self._plan()
        return due

    @property
    def looking(self) -> bool:
        """Some name is being looked up."""
        return any(name.under_way for name in self._names.values())

    def found(self, origin: Origin, ips: Iterable[str]) -> None:
        """What a name stands for now."""
        self._known[origin] = [Address(origin, ip) for ip in dict.fromkeys(ips)]
        self._join()
        self._names[origin].under_way = False
        self._plan()

    def unknown(self, origin: Origin, now: float) -> None:
        """A name could not be looked up: what it stood for may hold still, and it is tried soon."""
        name = self._names[origin]
        name.under_way, name.due_at = False, min(name.due_at, now + DOUBT_EVERY_S)
        self._plan()

    def order(self, now: float) -> list[Address]:
        """All addresses: the next in turn first, those that rest last. Empty: none is known yet."""
        count = len(self._addresses)
        if count < 2:
            return self._addresses
        self._turn = (self._turn + 1) % count
        turned = self._addresses[self._turn :] + self._addresses[: self._turn]
        if not self._rests:
            return turned
        rests = self._rests
        awake = [each for each in turned if each not in rests or rests[each].until <= now]
        resting = sorted(set(turned) - set(awake), key=lambda each: rests[each].until)
        return [*awake, *resting]

    def failed(self, address: Address, now: float) -> None:
        """It could not be reached; what its name stands for is looked up soon."""
        before = self._rests.get(address)
        length_s = FIRST_REST_S if before is None else min(2 * before.length_s, LONGEST_REST_S)
        self._rests[address] = _Rest(now + length_s, length_s)
        if (name := self._names.get(address.origin)) is not None:
            name.due_at = min(name.due_at, max(now, name.doubt_at))
            self._plan()

    def worked(self, address: Address) -> None:
        """It was reached."""
        self._rests.pop(address, None)

    def _plan(self) -> None:
        idle = [name.due_at for name in self._names.values() if not name.under_way]
        room = len(self._names) - len(idle) < MAX_LOOK_UPS
        self._due_at = min(idle, default=float("inf")) if room else float("inf")

    def _join(self) -> None:
        self._addresses = [
            address for origin in self._origins for address in self._known.get(origin, ())
        ]
        self._rests = {each: rest for each, rest in self._rests.items() if each in self._addresses}
