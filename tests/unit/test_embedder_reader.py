"""Texts into tokens: order, turns and pieces, with a tokenizer that waits at a gate."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue

import pytest

from embedkeep.embedder.backends import Tokens
from embedkeep.embedder.lanes import Lane
from embedkeep.embedder.reader import LONG_CHARACTERS, PIECE_CHARACTERS, Reader
from embedkeep.errors import EmbedderUnavailable, Internal


@dataclass(eq=False)
class GatedTokenizer:
    """The tokens of a text are its length and its first letter."""

    gate: threading.Event = field(default_factory=threading.Event)
    entered: SimpleQueue[list[str]] = field(default_factory=SimpleQueue)
    pieces: list[list[str]] = field(default_factory=list)

    def __call__(self, texts: Sequence[str]) -> list[Tokens]:
        self.pieces.append(list(texts))
        self.entered.put(list(texts))
        assert self.gate.wait(30)
        if any("planted" in text for text in texts):
            raise ValueError("planted")
        return [Tokens(ids=[len(text), ord(text[0])], truncated=False) for text in texts]


@asynccontextmanager
async def a_reader(tokenizer: GatedTokenizer) -> AsyncIterator[Reader]:
    reader = Reader(tokenizer, max_wait_s=1e9)
    task = asyncio.create_task(reader.run(), name="reader")
    try:
        yield reader
    finally:
        tokenizer.gate.set()
        task.cancel()
        await asyncio.wait([task])
        reader.close()
        assert reader.ended(within_s=30)


def spawn(
    reader: Reader, *texts: str, lane: Lane = Lane.DEMAND, flow: bytes = b""
) -> asyncio.Task[list[Tokens]]:
    return asyncio.create_task(reader.read(texts, lane=lane, flow=flow))


async def entered(tokenizer: GatedTokenizer) -> list[str]:
    return await asyncio.to_thread(tokenizer.entered.get, timeout=30)


async def turns_of(reader: Reader, tokenizer: GatedTokenizer) -> asyncio.Task[list[Tokens]]:
    """A read that keeps the short texts' thread busy until the gate opens."""
    first = spawn(reader, "first")
    await entered(tokenizer)
    return first


async def test_a_persons_texts_are_read_before_those_of_background_work_that_came_first() -> None:
    tokenizer = GatedTokenizer()
    async with a_reader(tokenizer) as reader:
        first = await turns_of(reader, tokenizer)
        warm = spawn(reader, *["w" * PIECE_CHARACTERS] * 50, lane=Lane.BACKGROUND, flow=b"a")
        await asyncio.sleep(0)  # it queues first
        person = spawn(reader, *["p" * 100] * 30, flow=b"b")
        await asyncio.sleep(0)
        tokenizer.gate.set()
        await asyncio.gather(first, warm, person)

    assert tokenizer.pieces[1] == ["p" * 100] * 30


async def test_two_flows_of_one_lane_are_read_in_turns() -> None:
    tokenizer = GatedTokenizer()
    async with a_reader(tokenizer) as reader:
        first = await turns_of(reader, tokenizer)
        many = spawn(reader, *["a" * PIECE_CHARACTERS] * 50, flow=b"a")
        await asyncio.sleep(0)
        few = spawn(reader, "b" * PIECE_CHARACTERS, flow=b"b")
        await asyncio.sleep(0)
        tokenizer.gate.set()
        await asyncio.gather(first, many, few)

    assert ["b" * PIECE_CHARACTERS] in tokenizer.pieces[1:4]


async def test_pieces_are_small_and_each_text_gets_its_own_tokens() -> None:
    tokenizer = GatedTokenizer()
    tokenizer.gate.set()
    texts = [chr(97 + n % 26) * (1 + n * 37 % (2 * PIECE_CHARACTERS)) for n in range(300)]
    async with a_reader(tokenizer) as reader:
        found = await reader.read(texts, lane=Lane.BULK, flow=b"")

    assert [list(tokens.ids) for tokens in found] == [[len(text), ord(text[0])] for text in texts]
    assert all(
        len(piece) == 1 or sum(map(len, piece)) <= PIECE_CHARACTERS for piece in tokenizer.pieces
    )


async def test_a_long_text_that_is_being_read_delays_no_short_one() -> None:
    tokenizer = GatedTokenizer()
    async with a_reader(tokenizer) as reader:
        long = spawn(reader, "l" * (LONG_CHARACTERS + 1), lane=Lane.BACKGROUND)
        await entered(tokenizer)

        short = spawn(reader, "short")

        assert await entered(tokenizer) == ["short"]
        tokenizer.gate.set()
        await asyncio.gather(long, short)


async def test_texts_of_a_caller_who_left_are_not_read() -> None:
    tokenizer = GatedTokenizer()
    async with a_reader(tokenizer) as reader:
        first = await turns_of(reader, tokenizer)
        leaving, staying = spawn(reader, "leaves"), spawn(reader, "stays")
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
        tokenizer.gate.set()
        await asyncio.gather(first, staying)

    assert tokenizer.pieces == [["first"], ["stays"]]


async def test_a_text_that_the_tokenizer_fails_on_fails_its_own_call_only() -> None:
    tokenizer = GatedTokenizer()
    async with a_reader(tokenizer) as reader:
        first = await turns_of(reader, tokenizer)
        bad, good = spawn(reader, "planted secret"), spawn(reader, "good")
        await asyncio.sleep(0)
        tokenizer.gate.set()

        with pytest.raises(Internal) as caught:
            await bad
        assert [list(tokens.ids) for tokens in await good] == [[4, ord("g")]]
        await first

    assert "secret" not in str(caught.value)


async def test_those_who_wait_hear_of_its_end() -> None:
    tokenizer = GatedTokenizer()
    async with a_reader(tokenizer) as reader:
        waiting = await turns_of(reader, tokenizer)

    with pytest.raises(EmbedderUnavailable):
        await waiting
