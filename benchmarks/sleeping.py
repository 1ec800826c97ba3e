"""An embedder whose model sleeps instead of computing, and a bare server that answers nothing.

    python benchmarks/sleeping.py --announce FILE
    python benchmarks/sleeping.py --announce FILE --bare

The first is all of embedkeep's embedder but the model: texts wait and are put into batches as
always, a batch takes as long as one of a device would, and no core is taken. The second is what a
call over gRPC costs on this machine at the time, with nothing behind it: it answers Embed of a
node with an empty message.
"""

import argparse
import asyncio
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import grpc
import numpy as np

from embedkeep.config import Backend as BackendName
from embedkeep.config import Dtype, Listen, ModelSpec
from embedkeep.embedder.answering import SERVICE
from embedkeep.embedder.backends import About, Tokens, Vectors
from embedkeep.embedder.service import EmbedderService
from embedkeep.refusal import Context
from embedkeep.serving import Endpoint, Health, run, serving
from embedkeep.v1 import cache_pb2, embedder_pb2_grpc

FIXED_S: Final = 0.004
TOKEN_S: Final = 0.0004
"""What a batch takes: 4 ms, and 0.4 ms for each word of its texts."""
DIMENSIONS: Final = 384
NODE: Final = cache_pb2.DESCRIPTOR.services_by_name["EmbeddingCache"].full_name


class SleepingBackend:
    """One token a word, and a vector that is the same for each text."""

    about = About(
        fingerprint="sleeping",
        dimensions=DIMENSIONS,
        max_tokens=256,
        normalized=False,
        backend=BackendName.ONNX,
        device="cpu",
        dtype=Dtype.FLOAT32,
    )

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Count words."""
        return [
            Tokens(
                ids=[
                    int.from_bytes(hashlib.blake2b(word.encode(), digest_size=3).digest())
                    for word in text.split()
                ],
                truncated=False,
            )
            for text in texts
        ]

    def detokenize(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Know none."""
        return ["" for _ in rows]

    def embed(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """Sleep."""
        time.sleep(FIXED_S + TOKEN_S * sum(map(len, rows)))
        return np.ones((len(rows), DIMENSIONS), np.float32)


class Bare:
    """Stands for a node's service, with one of its methods, and answers nothing."""

    async def Embed(  # noqa: N802 - the wire's name
        self, _request: cache_pb2.EmbedRequest, _context: Context
    ) -> cache_pb2.EmbedResponse:
        """Answer nothing."""
        return cache_pb2.EmbedResponse()


async def serve(announce: Path, stop: asyncio.Event, *, bare: bool) -> None:
    """Serve until *stop*."""
    service = EmbedderService(ModelSpec(name="sleeping"))

    def register(server: grpc.aio.Server) -> None:
        if bare:
            handler = grpc.unary_unary_rpc_method_handler(
                Bare().Embed,
                cache_pb2.EmbedRequest.FromString,
                cache_pb2.EmbedResponse.SerializeToString,
            )
            server.add_registered_method_handlers(NODE, {"Embed": handler})
        else:
            embedder_pb2_grpc.add_EmbedderServicer_to_server(service, server)

    health = Health([SERVICE])
    endpoint = Endpoint(
        grpc=Listen(),
        metrics=Listen(),
        tls=None,
        max_message_bytes=4 << 20,
        announce_file=announce,
        drain_s=1.0,
    )
    async with serving(
        endpoint, register=register, health=health, registry=service.metrics.registry
    ):
        if not bare:
            await service.start(SleepingBackend)
        await health.set(serving=True)
        await stop.wait()
    await service.close()


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--announce", type=Path, required=True)
    parser.add_argument("--bare", action="store_true")
    given = parser.parse_args()
    run(lambda stop: serve(given.announce, stop, bare=given.bare), process="sleeping")


if __name__ == "__main__":
    main()
