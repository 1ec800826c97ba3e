"""Values that are tuned while a node runs: a small JSON file, re-read when it changes.

Whoever tunes may be wrong, so a node keeps each value within bounds of its own config. A file that
cannot be read changes nothing: half a write must not move anything.
"""

import asyncio
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

import structlog

MAX_BYTES: Final = 64 << 10

log = structlog.stdlib.get_logger()


class Bounds(Protocol):
    """Where a value begins, and between what it stays."""

    @property
    def initial(self) -> float: ...  # noqa: D102  # what the class says
    @property
    def min(self) -> float: ...  # noqa: D102  # as above
    @property
    def max(self) -> float: ...  # noqa: D102  # as above


class Tuned:
    """The values by name. `follow` must run beside it.

    Args:
        file: None: they stay as they begin.
        bounds: By name. What else stands in the file is ignored.
    """

    def __init__(self, file: Path | None, bounds: Mapping[str, Bounds]) -> None:
        self._file = file
        self._bounds = bounds
        self._values = {name: each.initial for name, each in bounds.items()}
        self._version: object = None

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    async def follow(self, *, poll_s: float) -> None:
        """Re-read the file as it changes, until cancelled."""
        while self._file is not None:
            await asyncio.to_thread(self.look, self._file)
            await asyncio.sleep(poll_s)

    def look(self, file: Path) -> None:
        """Read *file*, if it is another one than before."""
        try:
            found = file.stat()
            version = found.st_mtime_ns, found.st_ino, found.st_size
            if version == self._version:
                return
            told = read(file.read_bytes()[:MAX_BYTES])
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            log.warning("tuned values not read", file=str(file), why=str(error))
            return
        self._version = version
        for name in self._bounds.keys() & told.keys():
            self._take(name, told[name])

    def _take(self, name: str, told: float) -> None:
        bounds = self._bounds[name]
        value = min(max(told, bounds.min), bounds.max)
        if value != self._values[name]:
            log.info("tuned", name=name, value=value, told=told)
            self._values[name] = value


def read(data: bytes) -> dict[str, float]:
    """What stands in such a file: those of its fields that are numbers.

    Raises:
        ValueError: It holds no JSON object, or a number that is none.
    """
    told = json.loads(data)
    if not isinstance(told, dict):
        raise ValueError("no JSON object")  # noqa: TRY004  # of the file, not of an argument
    found = {
        name: float(value)
        for name, value in told.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    for name, value in found.items():
        if not math.isfinite(value):
            raise ValueError(f"{name}: {value} is no number")
    return found
