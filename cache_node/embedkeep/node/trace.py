"""The trace that a request belongs to, by W3C's Trace Context. Pure: it is passed on, never made.

What is not as the recommendation has it must not be passed on, and is no reason to refuse.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

PARENT: Final = "traceparent"
STATE: Final = "tracestate"
"""Headers over HTTP, metadata over gRPC."""

MOST_STATE: Final = 512
"""Characters of a tracestate that are passed on, which is all that the recommendation asks for: it
goes with every computation. A longer one is left out as a whole, since a part may mislead."""
MOST_MEMBERS: Final = 32
"""Of a tracestate, by the recommendation."""

_PARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_MEMBER: Final = re.compile(
    r"[a-z0-9][a-z0-9_\-*/@]{0,255}="
    r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Where in a trace a request stands."""

    parent: str
    state: str = ""
    """What the tracing systems on the way have added. Empty: nothing."""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes beside a call that belongs to it."""
        parent = (PARENT, self.parent)
        return (parent, (STATE, self.state)) if self.state else (parent,)


def trace_of(metadata: Iterable[tuple[str, str | bytes]]) -> Trace | None:
    """The trace that a call belongs to, as it says; None: to none that can be read.

    Args:
        metadata: Names in lower case and values, also of a request's headers.
    """
    parents, states = list[str | bytes](), list[str | bytes]()
    for name, value in metadata:
        if name == PARENT:
            parents.append(value)
        elif name == STATE:
            states.append(value)
    if len(parents) != 1 or not isinstance(parents[0], str) or not _PARENT.fullmatch(parents[0]):
        return None
    return Trace(parent=parents[0], state=_state(states))


def _state(given: Iterable[str | bytes]) -> str:
    """All of *given* as one list, as the recommendation joins them; empty where it is none."""
    joined = ",".join(each for each in given if isinstance(each, str))
    members = [part for each in joined.split(",") if (part := each.strip(" \t"))]
    state = ",".join(members)
    if len(state) > MOST_STATE or len(members) > MOST_MEMBERS:
        return ""
    return state if all(map(_MEMBER.fullmatch, members)) else ""
