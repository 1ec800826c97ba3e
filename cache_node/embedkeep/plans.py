"""What the predictor tells nodes: a tenant's texts in the order in which they are worth computing.

::

    offset  size  field
    0       2     magic  b"EP"
    2       1     format version, 1
    3       1     0
    4       4     CRC-32 over all behind it
    8       8     when it was made, Unix time in ms
    16            JSON, compressed by zlib

All little-endian. Whatever does not fit exactly is no plan, never a guess. The first 16 bytes tell
one plan from another.
"""

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from isal.isal_zlib import crc32

from embedkeep.history import Asked, Fence

HEAD_BYTES: Final = 16
MAX_BYTES: Final = 64 << 20
"""Of a plan's JSON; one that claims more is no plan."""

_MAGIC: Final = b"EP"
_VERSION: Final = 1
_head = struct.Struct("<2sBBI")
_made = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One text of a plan."""

    asked: Asked
    worth: float
    """0..1: the chance that it is asked for within the plan's horizon. Computing it ahead of time
    saves one computation at most, so this is also what it saves on average, of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to compute for a tenant ahead of time."""

    made_at_ms: int
    """Unix time, ms."""
    expires_at_s: int
    """Unix time, seconds: its texts are kept no longer than their history would be."""
    fence: Fence
    """What had been withdrawn when its history was read; where more was, it is void."""
    predictor: str
    horizon_s: float
    texts: tuple[Planned, ...]
    """The most worth first."""


class CorruptPlan(ValueError):
    """Stored bytes that are no plan. Counted, then treated as none."""


def encode(plan: Plan) -> bytes:
    """As it lies in Valkey."""
    prompts: dict[str, int] = {}
    texts = [
        [
            prompts.setdefault(each.asked.prompt, len(prompts)),
            round(each.worth, 4),
            each.asked.text,
        ]
        for each in plan.texts
    ]
    told = {
        "expires_at_s": plan.expires_at_s,
        "fence": [plan.fence.epoch, plan.fence.forgotten],
        "predictor": plan.predictor,
        "horizon_s": plan.horizon_s,
        "prompts": list(prompts),
        "texts": texts,
    }
    body = json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()
    rest = _made.pack(plan.made_at_ms) + zlib.compress(body)
    return _head.pack(_MAGIC, _VERSION, 0, crc32(rest)) + rest


def decode(data: bytes) -> Plan:
    """The inverse of `encode`.

    Raises:
        CorruptPlan: Anything does not fit.
    """
    if len(data) < HEAD_BYTES:
        raise CorruptPlan(f"{len(data)} bytes")
    magic, version, zero, crc = _head.unpack_from(data)
    if (magic, version, zero) != (_MAGIC, _VERSION, 0):
        raise CorruptPlan(f"unknown header {data[:4].hex()}")
    if crc32(data[_head.size :]) != crc:
        raise CorruptPlan("checksum")
    (made_at_ms,) = _made.unpack_from(data, _head.size)
    try:
        told = json.loads(_inflated(data[HEAD_BYTES:]))
        prompts: Sequence[str] = told["prompts"]
        epoch, forgotten = map(int, told["fence"])
        return Plan(
            made_at_ms=made_at_ms,
            expires_at_s=int(told["expires_at_s"]),
            fence=Fence(epoch=epoch, forgotten=forgotten),
            predictor=str(told["predictor"]),
            horizon_s=float(told["horizon_s"]),
            texts=tuple(
                Planned(asked=Asked(prompt=str(prompts[at]), text=str(text)), worth=float(worth))
                for at, worth, text in told["texts"]
            ),
        )
    except (ValueError, KeyError, IndexError, TypeError, zlib.error) as error:
        raise CorruptPlan(f"cannot be read: {error}") from error


def _inflated(data: bytes) -> bytes:
    inflating = zlib.decompressobj()
    body = inflating.decompress(data, MAX_BYTES)
    if not inflating.eof:
        raise CorruptPlan(f"cut off, or more than {MAX_BYTES} bytes")
    return body
