"""What is said to Valkey about entries, and what its replies mean. Pure.

A batch of reads is written and understood as a whole. Keys are all of one length, and so are the
records of a model: the one takes a join, the other a few calls to numpy (`records.decode_all`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

import hiredis

from embedkeep.keys import KEY_BYTES, Key
from embedkeep.node.connection import Command, Reply
from embedkeep.records import CorruptRecord, Entries, Entry, decode, decode_all, encode

STORE_BYTES: Final = 1 << 20
"""Of an import, written at once; then the replies are waited for."""

_KEY: Final = b"$%d\r\n" % KEY_BYTES
_GET: Final = b"*2\r\n$3\r\nGET\r\n" + _KEY
_BETWEEN_GETS: Final = b"\r\n" + _GET
_BETWEEN_KEYS: Final = b"\r\n" + _KEY


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """Which of some keys were there, and what lies under them."""

    places: Sequence[int]
    """Positions of the keys, each once."""
    entries: Entries
    """One a place."""

    @classmethod
    def nothing(cls, *, dimensions: int) -> "Found":
        """None was there."""
        return cls(places=(), entries=Entries.joined((), dimensions=dimensions))

    def items(self) -> Iterator[tuple[int, Entry]]:
        """Each place with its entry."""
        return zip(self.places, self.entries, strict=True)

    def only(self, at: Sequence[int]) -> "Found":
        """Those that stand *at* these positions here."""
        return Found(places=[self.places[each] for each in at], entries=self.entries.take(at))


@dataclass(slots=True, kw_only=True)
class Read:
    """What the replies to a batch of reads hold."""

    found: Found
    errors: list[hiredis.HiredisError] = field(default_factory=list)
    corrupt: list[tuple[Key, str]] = field(default_factory=list)
    """Keys under which lies no record of theirs, and why it is none."""


def reads(keys: Sequence[Key], *, together: bool) -> tuple[bytes, int]:
    """Commands that read *keys*, packed, and how many replies they get.

    Args:
        together: By one MGET, which a member of a cluster refuses for keys of several slots. For
            128 keys it takes two thirds of the time of as many GETs, Valkey's and this node's.
    """
    if together:
        head = b"*%d\r\n$4\r\nMGET\r\n" % (len(keys) + 1)
        return b"".join((head, _KEY, _BETWEEN_KEYS.join(keys), b"\r\n")), 1
    return b"".join((_GET, _BETWEEN_GETS.join(keys), b"\r\n")), len(keys)


def read_replies(
    keys: Sequence[Key], replies: Sequence[Reply], *, dimensions: int, oldest_s: float = 0
) -> Read:
    """What *replies* to `reads` of *keys* hold.

    Args:
        dimensions: What the model has; a vector of another length is corrupt.
        oldest_s: Unix time, seconds: what was computed then or before is over. Entries that do not
            say when they were computed live on.
    """
    if len(replies) == 1 and isinstance(replies[0], list):
        replies = replies[0]
    elif len(replies) != len(keys):  # an error that stands for all
        nothing = Found.nothing(dimensions=dimensions)
        return Read(found=nothing, errors=[cast("hiredis.HiredisError", each) for each in replies])
    places, entries = decode_all(keys, replies, dimensions=dimensions)
    read = Read(found=Found(places=places, entries=entries))
    if len(places) < len(keys):
        for place in sorted(set(range(len(keys))).difference(places)):
            _note(read, keys[place], replies[place], dimensions)
    if oldest_s > 0:
        born_s = entries.facts["born_s"]
        over = (born_s > 0) & (born_s <= oldest_s)
        if over.any():
            read.found = read.found.only((~over).nonzero()[0].tolist())
    return read


def merged(asked: Sequence[Sequence[int]], found: Sequence[Found], *, dimensions: int) -> Found:
    """What several have *found*, each of whom was *asked* for the keys at these places."""
    places = [mine[place] for mine, part in zip(asked, found, strict=True) for place in part.places]
    entries = Entries.joined([part.entries for part in found], dimensions=dimensions)
    return Found(places=places, entries=entries)


def set_command(key: Key, entry: Entry, *, ttl_s: int | None) -> Command:
    """Stores *entry*."""
    ttl = () if ttl_s is None else ("EX", ttl_s)
    return ("SET", key, encode(key, entry), *ttl)


def parts(entries: Mapping[Key, Entry]) -> Iterator[Mapping[Key, Entry]]:
    """*entries* in parts of about `STORE_BYTES`, in order."""
    part: dict[Key, Entry] = {}
    size = 0
    for key, entry in entries.items():
        part[key] = entry
        size += entry.nbytes
        if size >= STORE_BYTES:
            yield part
            part, size = {}, 0
    if part:
        yield part


def is_elsewhere(reply: Reply) -> bool:
    """A member of a cluster does not serve that slot, or not now."""
    return isinstance(reply, hiredis.HiredisError) and str(reply).startswith(
        ("MOVED ", "ASK ", "TRYAGAIN", "CLUSTERDOWN")
    )


def is_across(reply: Reply) -> bool:
    """A member of a cluster takes no command that names keys of several slots."""
    return isinstance(reply, hiredis.HiredisError) and str(reply).startswith("CROSSSLOT ")


def info(text: bytes, name: bytes) -> int:
    """One number of an INFO answer; 0: not in it."""
    for line in text.splitlines():
        if line.startswith(name + b":"):
            return int(line.partition(b":")[2])
    return 0


def _note(read: Read, key: Key, reply: Reply, dimensions: int) -> None:
    """Say of a reply without an entry what else it is."""
    if isinstance(reply, hiredis.HiredisError):
        read.errors.append(reply)
    elif isinstance(reply, bytes):
        try:
            decode(key, reply, dimensions=dimensions)
        except CorruptRecord as error:
            read.corrupt.append((key, str(error)))
