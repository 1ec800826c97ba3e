"""How the texts that a cache was asked for lie in Valkey: nodes write, the predictor reads. Pure.

A tenant's history is a ring of `BUCKETS` sorted sets, one for each sixteenth of the retention, in
one slot by the tenant's tag. A bucket expires when its place in the ring comes round again, so no
text stays longer than the retention. Its members are prompts with texts, its scores how often they
were asked for: an estimate, and how much of it may be another's. It has a fixed number of places.
Where they are all taken a newcomer gets that of the least asked for, and its count with it, so that
whoever is asked for often enough has a place, however many others there are.

Beside the ring stands a fence: the tenant's epoch and when it last forgot texts. What a node heard
before is refused behind it, so that nothing which was withdrawn comes back from a node's buffer or
a predictor that was just reading.

Source of the counting: space-saving, Metwally, Agrawal and El Abbadi, ICDT 2005; the floor that a
newcomer inherits is kept, so that the bounds also hold where room in bytes drops several at once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

BUCKETS: Final = 16
"""A fixed number, so that whoever deletes from a history knows all of its names, whatever the
retention was when it was written."""
TEXT_OVERHEAD_BYTES: Final = 128
"""What Valkey takes for a member beside its bytes, about: a hash entry, a skip list's node."""
BATCH_TEXTS: Final = 256
"""Of one script's call: Valkey answers nobody while it runs, about half a millisecond."""

_ERROR_UNIT: Final = 1 << 26
"""A score is an estimate, and behind the point its error in parts of this: exact up to 67 million
asks in a bucket."""
_LENGTH_BYTES: Final = 4

Command = tuple[str | bytes | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was asked for."""

    prompt: str
    """Resolved, not its name."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """What a tenant has withdrawn: numbers that only grow."""

    epoch: int = 0
    forgotten: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How often something was asked for in a bucket."""

    asked: Asked
    least: int
    """Certainly so often."""
    most: int
    """Certainly not more often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """What was asked for in some time."""

    place: int
    """In the ring."""
    start_s: int
    """Unix time, seconds."""
    counts: tuple[Count, ...]


def width_s(retention_s: int) -> int:
    """How long a bucket is, seconds."""
    return max(1, retention_s // BUCKETS)


def start_s(now_s: float, retention_s: int) -> int:
    """When the bucket of *now_s* began."""
    width = width_s(retention_s)
    return int(now_s) // width * width


def fence_name(tag: bytes) -> bytes:
    """Where in Valkey the fence of a tenant stands; names the slot of all that is its."""
    return b"embedkeep:history:{%s}" % tag.hex().encode()


def bucket_name(tag: bytes, place: int) -> bytes:
    """Where the bucket at a *place* of the ring lies."""
    return b"%s:%d" % (fence_name(tag), place)


def bucket_names(tag: bytes) -> list[bytes]:
    """All of the ring."""
    return [bucket_name(tag, place) for place in range(BUCKETS)]


def plan_name(tag: bytes) -> bytes:
    """Where the plan of a tenant lies: beside its history, whose texts stand in it."""
    return b"embedkeep:plan:{%s}" % tag.hex().encode()


def warmed_name(tag: bytes) -> bytes:
    """Where the keys of a tenant stand that were warmed, and that nobody has asked for yet."""
    return b"embedkeep:warmed:{%s}" % tag.hex().encode()


def _names(tag: bytes) -> list[bytes]:
    """All that a script may touch: the fence, the plan, and the ring."""
    return [fence_name(tag), plan_name(tag), *bucket_names(tag)]


def pack(asked: Asked) -> bytes:
    """As a member of a bucket."""
    prompt = asked.prompt.encode()
    return len(prompt).to_bytes(_LENGTH_BYTES, "little") + prompt + asked.text.encode()


def unpack(member: bytes) -> Asked | None:
    """The inverse of `pack`. None: it is something else."""
    end = _LENGTH_BYTES + int.from_bytes(member[:_LENGTH_BYTES], "little")
    if not _LENGTH_BYTES <= end < len(member):
        return None
    try:
        return Asked(prompt=member[_LENGTH_BYTES:end].decode(), text=member[end:].decode())
    except UnicodeDecodeError:
        return None


_START: Final = b"start"
_BYTES: Final = b"bytes"
_FLOOR: Final = b"floor"
_SPECIAL: Final = frozenset((_START, _BYTES, _FLOOR))
"""Members that say something of the bucket itself, so that they live and go with it. No text packs
to one: their first four bytes would be a length beyond them."""
_ABOVE: Final = 1 << 52
"""Added to their scores, so that they are never the least."""

_FENCED: Final = """
local held = redis.call('HMGET', KEYS[1], 'epoch', 'forgotten')
local epoch, forgotten = tonumber(held[1] or '0'), tonumber(held[2] or '0')
"""
_RAISE: Final = """
redis.call('HSET', KEYS[1], 'epoch', string.format('%.17g', math.max(epoch, tonumber(ARGV[1]))),
  'forgotten', string.format('%.17g', math.max(forgotten, tonumber(ARGV[2]))))
"""

_ADD: Final = (
    _FENCED
    + """
if epoch > tonumber(ARGV[1]) or forgotten > tonumber(ARGV[2]) then return 0 end
"""
    + _RAISE
    + f"""
if epoch < tonumber(ARGV[1]) then
  for at = 2, #KEYS do redis.call('UNLINK', KEYS[at]) end
end
local bucket = KEYS[tonumber(ARGV[3])]
local start, span = tonumber(ARGV[4]), tonumber(ARGV[5])
local most_texts, most_bytes = tonumber(ARGV[6]), tonumber(ARGV[7])
local above, unit, beside = {_ABOVE}, {_ERROR_UNIT}, {TEXT_OVERHEAD_BYTES}
local function special(name)
  return tonumber(redis.call('ZSCORE', bucket, name) or above) - above
end
local began = special('start')
if began < start then redis.call('UNLINK', bucket) else start = began end
local bytes, floor = special('bytes'), special('floor')
local count = math.max(0, redis.call('ZCARD', bucket) - 3)
for at = 8, #ARGV, 2 do
  local times, member = tonumber(ARGV[at]), ARGV[at + 1]
  if redis.call('ZSCORE', bucket, member) then
    redis.call('ZINCRBY', bucket, times, member)
  else
    while count > 0 and (count >= most_texts or bytes + #member + beside > most_bytes) do
      local gone = redis.call('ZPOPMIN', bucket)
      floor = math.max(floor, math.floor(tonumber(gone[2])))
      bytes, count = bytes - #gone[1] - beside, count - 1
    end
    floor = math.min(floor, unit - 1)
    local score = floor + times + floor / unit
    redis.call('ZADD', bucket, string.format('%.17g', score), member)
    bytes, count = bytes + #member + beside, count + 1
  end
end
redis.call('ZADD', bucket, string.format('%.17g', above + start), 'start',
  string.format('%.17g', above + bytes), 'bytes', string.format('%.17g', above + floor), 'floor')
redis.call('EXPIREAT', bucket, string.format('%d', start + span))
return 1
"""
)
"""Adds counts to a bucket. 1: done; 0: they are behind the fence.

All that is left of an older epoch goes first, and an older bucket in the same place. A newer one,
by a clock that is ahead or after another retention, takes them.
"""

_FORGET: Final = (
    _FENCED
    + _RAISE
    + f"""
redis.call('UNLINK', KEYS[2])
for at = 3, #KEYS do
  if #ARGV == 2 then redis.call('UNLINK', KEYS[at]) end
  for member = 3, #ARGV do
    if redis.call('ZREM', KEYS[at], ARGV[member]) == 1 then
      redis.call('ZINCRBY', KEYS[at], -#ARGV[member] - {TEXT_OVERHEAD_BYTES}, 'bytes')
    end
  end
end
return 1
"""
)
"""Raises the fence, and deletes the plan and those members; all, where none are given."""

_PLAN: Final = (
    _FENCED
    + """
if epoch ~= tonumber(ARGV[1]) or forgotten ~= tonumber(ARGV[2]) then return 0 end
redis.call('SET', KEYS[2], ARGV[3], 'EXAT', ARGV[4])
return 1
"""
)
"""Writes a plan. 1: done; 0: something was withdrawn since its history was read."""


def add_command(  # noqa: PLR0913  # what the script is told
    tag: bytes,
    counts: Iterable[tuple[Asked, int]],
    *,
    fence: Fence,
    now_s: float,
    retention_s: int,
    max_texts: int,
    max_bytes: int,
) -> Command:
    """Adds *counts* to the bucket of *now_s*; replied to with 1, or 0: refused.

    Args:
        fence: As the node knows it that was asked.
    """
    width, start = width_s(retention_s), start_s(now_s, retention_s)
    names = _names(tag)
    place = start // width % BUCKETS
    span_s = min(retention_s, BUCKETS * width)
    told = (
        fence.epoch,
        fence.forgotten,
        len(names) - BUCKETS + 1 + place,
        start,
        span_s,
        max_texts,
        max_bytes,
    )
    added = [part for asked, times in counts for part in (times, pack(asked))]
    return ("EVAL", _ADD, len(names), *names, *told, *added)


def forget_command(tag: bytes, texts: Sequence[Asked] | None, *, fence: Fence) -> Command:
    """Forgets *texts*, and the plan that may hold them; None: all of the tenant's."""
    names = _names(tag)
    told: Command = (fence.epoch, fence.forgotten, *map(pack, texts or ()))
    return ("EVAL", _FORGET, len(names), *names, *told)


def plan_command(tag: bytes, plan: bytes, *, fence: Fence, expires_at_s: int) -> Command:
    """Writes a plan, whose history was read behind *fence*; replied to as `add_command`."""
    told = (fence.epoch, fence.forgotten, plan, expires_at_s)
    return ("EVAL", _PLAN, 2, fence_name(tag), plan_name(tag), *told)


def read_commands(tag: bytes) -> list[Command]:
    """Reads a tenant's fence and history, the fence first; see `read_fence` and `read_bucket`."""
    return [
        ("HMGET", fence_name(tag), "epoch", "forgotten"),
        *(("ZRANGE", name, 0, -1, "WITHSCORES") for name in bucket_names(tag)),
    ]


def shorten_commands(tag: bytes, buckets: Iterable[Bucket], *, retention_s: int) -> list[Command]:
    """Lets *buckets* that were written under a longer retention expire by this one."""
    return [
        ("EXPIREAT", bucket_name(tag, bucket.place), bucket.start_s + retention_s, "LT")
        for bucket in buckets
    ]


def read_fence(reply: object) -> Fence:
    """What a fence was answered with; one that is not there stands at 0.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(reply, list) or len(reply) != 2:
        raise ValueError(f"no fence: {reply!r}")
    epoch, forgotten = (int(each) if isinstance(each, bytes) else 0 for each in reply)
    return Fence(epoch=epoch, forgotten=forgotten)


def read_bucket(reply: object, *, place: int) -> Bucket | None:
    """What the bucket at a *place* was answered with. None: there is none.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(reply, list) or len(reply) % 2:
        raise ValueError(f"no bucket: {reply!r}")
    scores = {member: float(score) for member, score in zip(reply[::2], reply[1::2], strict=True)}
    if _START not in scores:
        return None
    counts = []
    for member, score in scores.items():
        if member in _SPECIAL or (asked := unpack(member)) is None:
            continue
        most = int(score)
        error = round((score - most) * _ERROR_UNIT)
        counts.append(Count(asked=asked, least=max(0, most - error), most=most))
    return Bucket(place=place, start_s=int(scores[_START]) - _ABOVE, counts=tuple(counts))
