"""A server that speaks as OpenAI or as TEI, and misbehaves on demand."""

import asyncio
import base64
import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
from aiohttp import web
from numpy.typing import NDArray

DIMENSIONS = 8
KEY = "sk-sesame-0123456789"

Misbehave = Callable[[list[str]], Awaitable[web.StreamResponse | None]]
"""Gets a request's texts; None: it is answered as it should."""


def vector_of(text: str, *, dimensions: int = DIMENSIONS, model: str = "") -> NDArray[np.float32]:
    """What this upstream computes: of length 1, and another for each text and model."""
    seed = int.from_bytes(hashlib.blake2b(f"{model}\0{text}".encode(), digest_size=8).digest())
    drawn = np.random.default_rng(seed).standard_normal(dimensions)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


@dataclass(eq=False)
class FakeUpstream:
    """Counts what it is asked, and answers as it is told."""

    protocol: str = "openai"
    dimensions: int = DIMENSIONS
    key: str | None = None
    """Asked for. None: everybody may call."""
    model: str = ""
    """Another one computes other vectors."""
    as_base64: bool = True
    shuffled: bool = True
    noise: float = 0.0
    """Added to each vector, drawn anew each time: what providers do."""
    max_client_batch_size: int = 4
    asked: list[list[str]] = field(default_factory=list)
    """The texts of each request, canaries too."""
    bodies: list[dict[str, object]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    next: list[Misbehave | web.Response] = field(default_factory=list)
    """What becomes of the next requests, first one first; then `always`."""
    always: Misbehave | None = None
    info_gate: asyncio.Event = field(default_factory=asyncio.Event)
    """/info waits for it; open unless a test shuts it."""
    port: int = 0
    infos: int = 0
    """Looks at /info."""
    most_inputs: int = 0
    """Of any request, from the very first."""
    in_flight: int = 0
    most_in_flight: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by each request."""

    def __post_init__(self) -> None:
        self.info_gate.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}" + ("/v1" if self.protocol == "openai" else "")

    def forget(self) -> None:
        """Count from here: what a start has asked is not of interest."""
        self.asked.clear()
        self.bodies.clear()
        self.most_in_flight = 0
        self.arrived.clear()

    async def until_asked(self, requests: int) -> None:
        """Wait until so many requests have come."""
        while len(self.asked) < requests:
            self.arrived.clear()
            await self.arrived.wait()

    async def embed(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        texts = body["input" if self.protocol == "openai" else "inputs"]
        self.asked.append(texts)
        self.most_inputs = max(self.most_inputs, len(texts))
        self.bodies.append(body)
        self.authorizations.append(request.headers.get("authorization"))
        self.arrived.set()
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return refused(401, f"Incorrect API key provided: {KEY}", "invalid_api_key")
        self.in_flight += 1
        self.most_in_flight = max(self.in_flight, self.most_in_flight)
        try:
            turn = self.next.pop(0) if self.next else self.always
            if isinstance(turn, web.Response):
                return turn
            if turn is not None and (answer := await turn(texts)) is not None:
                return answer
            return self.good(texts)
        finally:
            self.in_flight -= 1

    def good(self, texts: Sequence[str]) -> web.Response:
        """The answer as it should be."""
        rng = np.random.default_rng()
        rows = [
            vector_of(text, dimensions=self.dimensions, model=self.model)
            + rng.normal(0, self.noise, self.dimensions).astype(np.float32)
            if self.noise
            else vector_of(text, dimensions=self.dimensions, model=self.model)
            for text in texts
        ]
        tokens = sum(tokens_of(text) for text in texts)
        if self.protocol == "tei":
            return web.json_response(
                [row.tolist() for row in rows], headers={"x-compute-tokens": str(tokens)}
            )
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(row.tobytes()).decode()
                if self.as_base64
                else row.tolist(),
            }
            for index, row in enumerate(rows)
        ]
        if self.shuffled:
            data.reverse()
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return web.json_response({"object": "list", "data": data, "model": "fake", "usage": usage})

    async def info(self, _: web.Request) -> web.Response:
        self.infos += 1
        await self.info_gate.wait()
        return web.json_response(
            {
                "model_id": "acme/fake",
                "model_sha": f"sha-{self.model}",
                "model_dtype": "float16",
                "model_type": {"embedding": {"pooling": "mean"}},
                "max_input_length": 512,
                "max_client_batch_size": self.max_client_batch_size,
                "version": "1.8.0",
            }
        )


def tokens_of(text: str) -> int:
    """As this upstream counts: one a word, and one at the end."""
    return len(text.split()) + 1


def refused(
    status: int, message: str, code: str | None, *, kind: str = "invalid_request_error",
    headers: dict[str, str] | None = None,
) -> web.Response:  # fmt: skip
    """An error as OpenAI writes it."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return web.json_response({"error": error}, status=status, headers=headers)


def refusing(*bad: str, names_it: bool = False) -> Misbehave:
    """Refuse every request that holds one of these texts."""

    async def turn(texts: list[str]) -> web.Response | None:
        found = [index for index, text in enumerate(texts) if text in bad]
        if not found:
            return None
        where = f"input[{found[0]}]" if names_it else "an input"
        return refused(400, f"{where} is bad", None)

    return turn


@asynccontextmanager
async def serve(
    fake: FakeUpstream, *, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[FakeUpstream]:
    """Serve *fake* while the block runs; connections are cut at its end."""
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/embeddings", fake.embed)
    app.router.add_post("/embed", fake.embed)
    app.router.add_get("/info", fake.info)
    runner = web.AppRunner(app, shutdown_timeout=0.01, handle_signals=False)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, reuse_address=True, ssl_context=tls)
    await site.start()
    fake.port = runner.addresses[0][1]
    try:
        yield fake
    finally:
        await runner.cleanup()
