"""What a Valkey tier is, whether one Valkey or a cluster stands behind it."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from embedkeep.keys import Key
from embedkeep.node.commands import Found
from embedkeep.node.connection import Command, Reply
from embedkeep.records import Entry

Run = Callable[[Sequence[Command]], Awaitable[list[Reply]]]
"""Runs commands in order and gives their replies, or raises Unavailable."""


class Shared(Protocol):
    """State that a cache's nodes share through Valkey."""

    async def sync(self, run: Run) -> str | None:
        """Merge what Valkey holds with what this node knows, both ways.

        Returns: Why this node was told and Valkey could not be. None: both were.

        Raises:
            Unavailable: This node could not be told.
        """


class Tier(Protocol):
    """Entries in Valkey, in one or in several."""

    @property
    def tried(self) -> asyncio.Event:
        """Set once the first attempt to sync has ended, well or not."""

    @property
    def open(self) -> bool:
        """Entries are read and written."""

    @property
    def problem(self) -> str | None:
        """Why not, or what of it not; None: all is well."""

    @property
    def left_alone(self) -> int:
        """How many Valkeys are not asked now."""

    async def run(self) -> None:
        """Keep connected and in sync until cancelled."""

    async def read(
        self, keys: Sequence[Key], *, dimensions: int, timeout_s: float = math.inf
    ) -> Found:
        """Which of *keys* are there, can be read, and came in time."""

    def write(self, key: Key, entry: Entry) -> None:
        """Store soon, or drop and count it."""

    async def store(self, entries: Mapping[Key, Entry], *, overwrite: bool) -> int:
        """Store, and see it done: how many were.

        Without *overwrite*, keys that are there already are left alone.

        Raises:
            Unavailable: Not all are known to be stored.
            Overloaded: Too much is waiting for Valkey; some may be stored.
        """

    async def delete(self, keys: Sequence[Key]) -> None:
        """Delete *keys*, after all writes before it; raises Unavailable where that is not known."""

    async def settle(self) -> None:
        """Wait until all writes before it have ended, well or not."""

    async def share(self) -> None:
        """Sync now, and see it done; raises Unavailable where it is not."""

    def resync(self) -> None:
        """Sync soon."""

    async def ask(self, name: bytes, commands: Sequence[Command]) -> list[Reply]:
        """Run *commands* where *name* lies; all that they name must lie in its slot.

        Raises:
            Unavailable: That Valkey is shut, or has not carried out all of them.
        """

    def owns(self, key: bytes) -> bool:
        """The Valkey beside this node holds *key*, and no other."""
