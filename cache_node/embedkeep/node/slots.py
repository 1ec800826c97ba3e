"""Whose a key is in a Valkey Cluster. Pure.

A key's slot is CRC16 of it, modulo 16,384; each slot has one primary. Each Valkey tells who owns
what as it sees it (`View`), and these are merged into one `SlotMap`: of its own slots a Valkey
knows more than others have heard, and of what was heard the newest counts. Where two say that a
slot is theirs, a replica has taken over from a primary that has not heard of it yet: the one with
the later config epoch is right.

Source: Valkey Cluster specification, "Key distribution model" and "Hash tags".
"""

import binascii
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from embedkeep.config import Member
from embedkeep.errors import InvalidResponse
from embedkeep.node.commands import info

SLOTS: Final = 16384
TAGS: Final = 1 << 18
"""Tried to find a name in a Valkey's own slots. Where it has one, 16,384 are needed on average, and
all of these miss it once in nine million times."""

LOOK: Final = (("CLUSTER", "SLOTS"), ("CLUSTER", "INFO"), ("ROLE",))
"""What `read_view` reads the replies to."""

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
    epoch: int = 0
    """Config epoch of the teller: when it got its slots, in the cluster's own time."""
    is_replica: bool = False
    """The teller is one, and owns nothing."""
    replicas: int = 0
    """How many copy the teller now."""

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


def read_view(replies: Sequence[object], *, teller: str, members: Sequence[Member]) -> View:
    """What `LOOK` was answered with.

    Raises:
        InvalidResponse: These are no such answers.
    """
    told, facts, role = replies
    by_address = {
        (member.valkey_host.encode(), member.valkey_port): member.name for member in members
    }
    own_host = next(each.valkey_host.encode() for each in members if each.name == teller)
    ranges, strangers = list[Range](), set[str]()
    try:
        for first, last, primary, *_replicas in _lists(told):
            endpoint, port, _id, *more = primary
            hosts = [endpoint, *(more[0] if more else ())[1::2]]
            known = [host for host in hosts if host not in _UNKNOWN] or [own_host]
            owners = [by_address[host, port] for host in known if (host, port) in by_address]
            if not owners:
                strangers.add(f"{known[0].decode()}:{port}")
            ranges.append(Range(first=first, last=last, owner=owners[0] if owners else None))
        within = all(0 <= each.first <= each.last < SLOTS for each in ranges)
        epoch = info(facts, b"cluster_my_epoch") if isinstance(facts, bytes) else 0
        is_replica, replicas = _role(role)
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidResponse(f"CLUSTER SLOTS or ROLE cannot be read: {error}") from error
    if not within:
        raise InvalidResponse(f"CLUSTER SLOTS tells of slots beyond {SLOTS - 1}: {told!r}")
    return View(
        teller=teller,
        ranges=tuple(ranges),
        strangers=frozenset(strangers),
        epoch=epoch,
        is_replica=is_replica,
        replicas=replicas,
    )


class SlotMap:
    """The owner of each slot. Immutable.

    Args:
        names: Of members, fewer than 65,535.
        views: The oldest first.
    """

    __slots__ = ("_names", "_owners")

    def __init__(self, names: Sequence[str], views: Iterable[View]) -> None:
        index: dict[str | None, int] = {name: at for at, name in enumerate(names)}
        index[None] = nobody = len(names)
        owners = array("H", [nobody]) * SLOTS
        views = tuple(views)
        heard = [each for view in views for each in view.ranges if each.owner != view.teller]
        claimed = [
            each
            for view in sorted(views, key=lambda view: view.epoch)
            for each in view.ranges
            if each.owner == view.teller
        ]
        for each in (*heard, *claimed):
            count = each.last + 1 - each.first
            owners[each.first : each.last + 1] = array("H", [index[each.owner]]) * count
        self._names = (*names, None)
        self._owners = owners

    def owner(self, key: bytes) -> str | None:
        """The member beside the Valkey that holds *key*. None: nobody that is known."""
        return self._names[self._owners[slot_of(key)]]


def _tagged(name: bytes) -> Iterator[bytes]:
    yield name
    for number in range(TAGS):
        yield b"%s{%d}" % (name, number)


def _role(reply: object) -> tuple[bool, int]:
    """Whether it is a replica, and how many it has."""
    name, _, replicas, *_ = _lists(reply)
    is_replica = bool(name == b"slave")
    return is_replica, 0 if is_replica else len(_lists(replicas))


def _lists(reply: object) -> list[Any]:
    if not isinstance(reply, list):
        raise TypeError(f"got {reply!r}")
    return reply
