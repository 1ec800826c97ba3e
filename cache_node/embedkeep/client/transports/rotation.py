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


@dataclass(frozen=True, slots=True)
class Address:
    """One node, as it is dialled."""

    origin: Origin
    ip: str


@dataclass(slots=True)
class _Rest:
    until: float
    length_s: float


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
        self._names = [origin for origin in origins if not origin.literal]
        self._due_at = float("-inf") if self._names else float("inf")
        self._doubt_at = self._due_at
        self._addresses: list[Address] = []
        self._rests: dict[Address, _Rest] = {}
        self._turn = 0
        self._join()

    @property
    def names(self) -> Sequence[Origin]:
        """Origins to look up."""
        return self._names

    def due(self, now: float) -> bool:
        """Names are to be looked up; true once, until `LOOK_UP_EVERY_S` later."""
        if now < self._due_at:
            return False
        self._due_at, self._doubt_at = now + LOOK_UP_EVERY_S, now + DOUBT_EVERY_S
        return True

    def found(self, origin: Origin, ips: Iterable[str]) -> None:
        """What a name stands for now."""
        self._known[origin] = [Address(origin, ip) for ip in dict.fromkeys(ips)]
        self._join()

    def unknown(self, now: float) -> None:
        """A name could not be looked up: what it stood for may hold still, and it is tried soon."""
        self._due_at = min(self._due_at, now + DOUBT_EVERY_S)

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
        self._due_at = min(self._due_at, max(now, self._doubt_at))

    def worked(self, address: Address) -> None:
        """It was reached."""
        self._rests.pop(address, None)

    def _join(self) -> None:
        self._addresses = [
            address for origin in self._origins for address in self._known.get(origin, ())
        ]
        self._rests = {each: rest for each, rest in self._rests.items() if each in self._addresses}
