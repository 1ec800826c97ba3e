"""A model that costs nothing and counts: what stands behind every cache that is measured.

    python benchmarks/upstream.py --dims 384 --grpc PORT --http PORT

Speaks embedkeep's embedder wire and OpenAI's /v1/embeddings, so that all caches get the same
vectors for the same texts. GET /counts says what it was asked since POST /reset; POST
/delay?seconds=S makes each call take that long.
"""

import argparse
import asyncio
import base64
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import grpc
import numpy as np
import orjson
import uvloop
from aiohttp import web
from numpy.typing import NDArray

from embedkeep.v1 import embedder_pb2, embedder_pb2_grpc

MODEL: Final = "bench-model"
MAX_MESSAGE_BYTES: Final = 64 << 20

Context = grpc.aio.ServicerContext[Any, Any]


def vector(text: str, dims: int) -> NDArray[np.float32]:
    """What the model returns for *text*: shape (dims,), float32, length 1, always the same."""
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
    row = np.random.default_rng(seed).standard_normal(dims, np.float32)
    unit: NDArray[np.float32] = row / np.linalg.norm(row)
    return unit


def matrix(texts: Sequence[str], dims: int) -> NDArray[np.float32]:
    """Rows of `vector`."""
    return np.stack([vector(text, dims) for text in texts])


@dataclass(slots=True)
class Counts:
    """What was asked."""

    calls: int = 0
    texts: int = 0


class Upstream(embedder_pb2_grpc.EmbedderServicer):
    """The model, on both wires."""

    def __init__(self, dims: int) -> None:
        self._dims = dims
        self._delay_s = 0.0
        self._counts = Counts()

    async def _compute(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self._counts.calls += 1
        self._counts.texts += len(texts)
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        return matrix(texts, self._dims)

    async def Embed(  # noqa: N802  # the wire's name
        self, request: embedder_pb2.ComputeRequest, _context: Context
    ) -> embedder_pb2.ComputeResponse:
        """Compute."""
        texts = list(request.inputs)
        return embedder_pb2.ComputeResponse(
            vectors=(await self._compute(texts)).tobytes(),
            dimensions=self._dims,
            tokens=[len(text.split()) + 2 for text in texts],
            device_ns=[1_000_000] * len(texts),
            fingerprint=MODEL,
            instance=b"bench",
        )

    async def Describe(  # noqa: N802  # the wire's name
        self, _request: embedder_pb2.DescribeRequest, _context: Context
    ) -> embedder_pb2.DescribeResponse:
        """Describe."""
        return embedder_pb2.DescribeResponse(
            fingerprint=MODEL,
            model=MODEL,
            dimensions=self._dims,
            max_tokens=512,
            normalized=True,
            backend="none",
            dtype="float32",
            max_inputs=4096,
            canaries=vector("canary", self._dims).tobytes(),
            min_canary_cosine=0.9999,
            instance=b"bench",
        )

    async def Detokenize(  # noqa: N802 - the wire's name
        self, _request: embedder_pb2.DetokenizeRequest, _context: object
    ) -> embedder_pb2.DetokenizeResponse:
        """Know no tokens."""
        return embedder_pb2.DetokenizeResponse()

    async def openai(self, request: web.Request) -> web.Response:
        """POST /v1/embeddings."""
        body = orjson.loads(await request.read())
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        rows = await self._compute(texts)
        as_base64 = body.get("encoding_format") == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(row.tobytes()).decode() if as_base64 else row,
            }
            for index, row in enumerate(rows)
        ]
        tokens = sum(len(text.split()) + 2 for text in texts)
        answer = {
            "object": "list",
            "data": data,
            "model": body["model"],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return web.Response(
            body=orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY),
            content_type="application/json",
        )

    async def counts(self, _request: web.Request) -> web.Response:
        """GET /counts."""
        return web.json_response(asdict(self._counts))

    async def reset(self, _request: web.Request) -> web.Response:
        """POST /reset."""
        self._counts = Counts()
        return web.json_response({})

    async def delay(self, request: web.Request) -> web.Response:
        """POST /delay?seconds=S."""
        self._delay_s = float(request.query["seconds"])
        return web.json_response({})


async def serve(*, dims: int, grpc_port: int, http_port: int) -> None:
    """Serve both wires until cancelled."""
    upstream = Upstream(dims)
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
        ]
    )
    embedder_pb2_grpc.add_EmbedderServicer_to_server(upstream, server)
    server.add_insecure_port(f"127.0.0.1:{grpc_port}")
    await server.start()
    app = web.Application(client_max_size=MAX_MESSAGE_BYTES)
    app.router.add_post("/v1/embeddings", upstream.openai)
    app.router.add_get("/counts", upstream.counts)
    app.router.add_post("/reset", upstream.reset)
    app.router.add_post("/delay", upstream.delay)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", http_port).start()
    await server.wait_for_termination()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dims", type=int, required=True)
    parser.add_argument("--grpc", type=int, required=True)
    parser.add_argument("--http", type=int, required=True)
    given = parser.parse_args()
    uvloop.run(serve(dims=given.dims, grpc_port=given.grpc, http_port=given.http))


if __name__ == "__main__":
    main()
