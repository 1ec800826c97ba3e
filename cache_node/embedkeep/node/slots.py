"""Whose a key is in a Valkey Cluster. Pure.

A key's slot is CRC16 of it, modulo 16,384; each slot has one primary. Each Valkey tells who owns
what as it sees it (`View`), and these are merged into one `SlotMap`: of its own slots a Valkey
knows more than others have heard, and of what was heard the newest counts.

Source: Valkey Cluster specification, "Key distribution model" and "Hash tags".
"""

import binascii
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from embedkeep.config import Member
from embedkeep.errors import InvalidResponse

SLOTS: Final = 16384
TAGS: Final = 1 << 18
"""Tried to find a name in a Valkey's own slots. Where it has one, 16,384 are needed on average, and
all of these miss it once in nine million times."""

_NOBODY: Final = 255
_UNKNOWN: Final = (None, b"", b"?")
"""How a Valkey writes an address that it does not know, its own for one."""


def slot_of(key: bytes) -> int:
    """The slot of *key*; where braces hold something, that alone decides."""
    if (start := key.find(b"{")) >= 0 and (end := key.find(b"}", start)) > start + 1:
        key = key[start + 1 : end]
    return binascii.crc_hqx(key, 0) % SLOTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Slots of one primary."""

    first: int
    last: int
    """Inclusive."""
    owner: str | None
    """Name of a member. None: a Valkey that is beside no member."""


@dataclass(frozen=True, kw_only=True)
class View:
    """Who owns which slots, as one Valkey sees it. Slots that nobody owns are in no range."""

    teller: str
    """The member beside that Valkey."""
    ranges: tuple[Range, ...] = ()
    strangers: frozenset[str] = frozenset()
    """Addresses of primaries that are beside no member."""

    @cached_property
    def own(self) -> frozenset[int]:
        """The teller's slots."""
        return frozenset(
            slot
            for each in self.ranges
            if each.owner == self.teller
            for slot in range(each.first, each.last + 1)
        )

    def name_here(self, name: bytes) -> bytes | None:
        """*name* with the first tag behind it that puts it into a slot of the teller's.

        Without a tag where the name itself is in one. All nodes with this view find the same one.
        None: the teller owns no slot.
        """
        if not self.own:
            return None
        return next((each for each in _tagged(name) if slot_of(each) in self.own), None)


def read_view(reply: object, *, teller: str, members: Sequence[Member]) -> View:
    """What CLUSTER SLOTS was answered with.

    Raises:
        InvalidResponse: It is no such answer.
    """
    by_address = {
        (member.valkey_host.encode(), member.valkey_port): member.name for member in members
    }
    own_host = next(each.valkey_host.encode() for each in members if each.name == teller)
    ranges, strangers = list[Range](), set[str]()
    try:
        for first, last, primary, *_replicas in _lists(reply):
            endpoint, port, _id, *more = primary
            hosts = [endpoint, *(more[0] if more else ())[1::2]]
            known = [host for host in hosts if host not in _UNKNOWN] or [own_host]
            owners = [by_address[host, port] for host in known if (host, port) in by_address]
            if not owners:
                strangers.add(f"{known[0].decode()}:{port}")
            ranges.append(Range(first=first, last=last, owner=owners[0] if owners else None))
        within = all(0 <= each.first <= each.last < SLOTS for each in ranges)
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidResponse(f"CLUSTER SLOTS cannot be read: {error}") from error
    if not within:
        raise InvalidResponse(f"CLUSTER SLOTS tells of slots beyond {SLOTS - 1}: {reply!r}")
    return View(teller=teller, ranges=tuple(ranges), strangers=frozenset(strangers))


class SlotMap:
    """The owner of each slot. Immutable.

    Args:
        names: Of members, fewer than 255.
        views: The oldest first.
    """

    __slots__ = ("_names", "_owners")

    def __init__(self, names: Sequence[str], views: Iterable[View]) -> None:
        index = {name: at for at, name in enumerate(names)}
        views = tuple(views)
        owners = bytearray([_NOBODY]) * SLOTS
        for of_themselves in (False, True):
            for view in views:
                for each in view.ranges:
                    if (each.owner == view.teller) is of_themselves:
                        at = _NOBODY if each.owner is None else index[each.owner]
                        owners[each.first : each.last + 1] = bytes([at]) * (
                            each.last + 1 - each.first
                        )
        self._names = (*names, *[None] * (_NOBODY + 1 - len(names)))
        self._owners = bytes(owners)

    def owner(self, key: bytes) -> str | None:
        """The member beside the Valkey that holds *key*. None: nobody that is known."""
        return self._names[self._owners[slot_of(key)]]


def _tagged(name: bytes) -> Iterator[bytes]:
    yield name
    for number in range(TAGS):
        yield b"%s{%d}" % (name, number)


def _lists(reply: object) -> list[list[Any]]:
    if not isinstance(reply, list):
        raise TypeError(f"got {reply!r}")
    return reply
