"""What is said of a process that ended, or was given up. Pure."""

import contextlib
import signal
from collections.abc import Mapping, Sequence
from typing import Final

from embedkeep.errors import InvalidConfig, Unavailable

REFUSAL_MARK: Final = "error: "
"""What our processes begin their last words with."""


def ended_how(code: int) -> str:
    """For people: a process's exit code, where 128 + n stands for signal n."""
    number = -code if code < 0 else code - 128
    if number > 0:
        with contextlib.suppress(ValueError):
            return f"ended by {signal.Signals(number).name}"
    return f"ended with exit code {code}"


def given_up(name: str, *, starts: int, reason: str, lines: Sequence[str]) -> Unavailable:
    """Why a process was given up.

    Args:
        starts: How often it was tried.
        reason: How it ended last.
        lines: What it said last.
    """
    told = [line for line in lines if '"level": "info"' not in line]
    said = "".join(f"\n    {line}" for line in told or lines)
    words = f"; it said last:{said}" if said else " and said nothing"
    tries = f" in {starts} tries" if starts > 1 else ""
    return Unavailable(f"{name} could not be started{tries}: {reason}{words}")


def refused(name: str, lines: Sequence[str], told_by: Mapping[str, str]) -> InvalidConfig:
    """What a process refused to start with, in the resource's words where its field is known.

    Args:
        lines: What it said last.
        told_by: Fields of its config, and the resource's fields that they come from.
    """
    starts = [index for index, line in enumerate(lines) if line.startswith(REFUSAL_MARK)]
    message = "\n".join(lines[starts[-1] if starts else 0 :]).removeprefix(REFUSAL_MARK)
    field, colon, rest = message.partition(": ")
    if colon and field in told_by:
        return InvalidConfig(rest, field=told_by[field])
    return InvalidConfig(message or "it refuses to start, and says nothing", source=name)
