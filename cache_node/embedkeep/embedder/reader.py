"""Texts into tokens, off the loop, by lane and flow in small pieces.

A person's question must not wait until another's megabytes are read. So texts wait here as they
do for the device, and go to the tokenizer a few thousand characters at a time. Long texts have a
thread of their own: one of them may keep the tokenizer busy longer than all questions together.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from embedkeep.embedder.backends import Tokens
from embedkeep.embedder.device import DeviceThread
from embedkeep.embedder.lanes import Lane, Lanes, Queued
from embedkeep.errors import EmbedderUnavailable, EmbedKeepError, Internal

PIECE_CHARACTERS: Final = 4096
"""Read at once, where single texts are not longer: few enough to keep nobody waiting."""

LONG_CHARACTERS: Final = 16384
"""A text beyond this is read on the other thread."""

_MOST_TEXTS: Final = 256
"""In a piece: even empty ones take time."""

Tokenizer = Callable[[Sequence[str]], list[Tokens]]


@dataclass(slots=True, eq=False)
class _Reading:
    """One call's texts."""

    texts: Sequence[str]
    found: list[Tokens | None]
    left: int
    done: asyncio.Future[None]

    def put(self, index: int, tokens: Tokens) -> None:
        self.found[index] = tokens
        self.left -= 1
        if self.left == 0 and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: EmbedKeepError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(frozen=True, slots=True)
class _Text:
    reading: _Reading
    index: int

    @property
    def text(self) -> str:
        return self.reading.texts[self.index]


class Reader:
    """Cuts texts into tokens, fairly and in order of their purpose.

    `run` must run for calls to be answered. All methods belong to one event loop.

    Args:
        tokenize: May run on two threads at once.
        max_wait_s: A lower lane whose text waits longer is lifted; see `Lanes`.
        clock: Seconds, for waiting times.
    """

    def __init__(
        self,
        tokenize: Tokenizer,
        *,
        max_wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._short = _Line(tokenize, "tokenizer", PIECE_CHARACTERS, max_wait_s, clock)
        self._long = _Line(tokenize, "tokenizer of long texts", LONG_CHARACTERS, max_wait_s, clock)
        self._readings: set[_Reading] = set()

    async def read(self, texts: Sequence[str], *, lane: Lane, flow: bytes) -> list[Tokens]:
        """One `Tokens` for each text, in order. Leaving early takes out what still waits.

        Raises:
            Internal: The tokenizer failed on one of them.
            EmbedderUnavailable: It stopped.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        reading = _Reading(texts, [None] * len(texts), len(texts), done)
        now_s = self._clock()
        entries = [
            Queued(
                payload=_Text(reading, index),
                size=len(text),
                lane=lane,
                flow=flow,
                arrived_s=now_s,
            )
            for index, text in enumerate(texts)
        ]
        for entry in entries:
            self._line_of(entry).add(entry)
        self._readings.add(reading)
        try:
            await done
        finally:
            self._readings.discard(reading)
            if reading.left:
                for entry in entries:
                    self._line_of(entry).lanes.drop(entry)
        return [tokens for tokens in reading.found if tokens is not None]

    def _line_of(self, entry: Queued[_Text]) -> "_Line":
        return self._long if entry.size > LONG_CHARACTERS else self._short

    async def run(self) -> None:
        """Serve until cancelled."""
        lines = [
            asyncio.create_task(line.run(), name=line.name) for line in (self._short, self._long)
        ]
        try:
            done, _ = await asyncio.wait(lines, return_when=asyncio.FIRST_COMPLETED)
            for line in done:
                line.result()
        finally:
            for reading in self._readings:
                reading.fail(EmbedderUnavailable("the embedder stopped"))
            for line in lines:
                line.cancel()
            await asyncio.wait(lines)

    def close(self) -> None:
        """End the threads once their present piece is read; does not wait."""
        self._short.thread.close()
        self._long.thread.close()

    def ended(self, *, within_s: float) -> bool:
        """Whether the threads end in that time after `close`; see `DeviceThread.ended`."""
        ends_s = time.monotonic() + within_s
        return all(
            line.thread.ended(within_s=max(0.0, ends_s - time.monotonic()))
            for line in (self._short, self._long)
        )


class _Line:
    """One thread, and what waits for it."""

    def __init__(
        self,
        tokenize: Tokenizer,
        name: str,
        piece: int,
        max_wait_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self.lanes: Lanes[_Text] = Lanes(max_wait_s=max_wait_s)
        self.thread = DeviceThread(name)
        self._tokenize = tokenize
        self._piece = piece
        self._clock = clock
        self._wake = asyncio.Event()

    def add(self, entry: Queued[_Text]) -> None:
        self.lanes.add(entry)
        self._wake.set()

    async def run(self) -> None:
        while True:
            if (lane := self.lanes.turn(self._clock())) is not None:
                piece = self.lanes.take(lane, most_size=self._piece, most=_MOST_TEXTS)
                await self._read([entry.payload for entry in piece])
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _read(self, piece: Sequence[_Text]) -> None:
        with contextlib.suppress(Exception):  # whatever a tokenizer raises: then each text alone
            await self._read_together(piece)
            return
        for text in piece:
            try:
                await self._read_together([text])
            except Exception as error:  # noqa: BLE001  # as above
                # Its message may hold the text.
                text.reading.fail(
                    Internal(f"the tokenizer failed on an input: {type(error).__name__}")
                )

    async def _read_together(self, piece: Sequence[_Text]) -> None:
        found = await self.thread.call(partial(self._tokenize, [text.text for text in piece]))
        for text, tokens in list(zip(piece, found, strict=True)):
            text.reading.put(text.index, tokens)
