"""Callers that never stop asking a running cache, and the truth to hold its answers against."""

import asyncio
import random
from dataclasses import dataclass, field

import grpc

from embedkeep import AsyncClient
from embedkeep.errors import DeadlineExceeded, EmbedKeepError, PartialFailure, Retryable
from embedkeep.v1 import embedder_pb2, embedder_pb2_grpc
from embedkeep_operator.local.runner import Running
from support.node import until_serving

PATIENCE_S = 60.0
"""For what must happen."""
CALL_S = 5.0
"""Deadline of a call."""


@dataclass
class Load:
    """Callers that never stop asking, and all that they were told."""

    client: AsyncClient
    texts: list[str]
    answers: list[tuple[str, bytes]] = field(default_factory=list)
    refusals: list[EmbedKeepError] = field(default_factory=list)
    answered: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def ask(self, seed: int) -> None:
        """One caller."""
        choice = random.Random(seed)
        while True:
            # Squared: some texts come often, most seldom.
            batch = [
                self.texts[int(len(self.texts) * choice.random() ** 2)]
                for _ in range(choice.randint(1, 8))
            ]
            try:
                vectors = await self.client.embed(batch, timeout_s=CALL_S)
            except EmbedKeepError as error:
                self.refusals.append(error)
                continue
            self.answers += [
                (text, row.tobytes()) for text, row in zip(batch, vectors, strict=True)
            ]
            async with self.answered:
                self.answered.notify_all()

    def unclear(self) -> list[EmbedKeepError]:
        """Refusals that no accident explains."""
        return [error for error in self.refusals if not passes(error)]

    async def until_answered(self, more: int) -> None:
        """Wait for so many more rows."""
        wanted = len(self.answers) + more
        async with asyncio.timeout(PATIENCE_S), self.answered:
            await self.answered.wait_for(lambda: len(self.answers) >= wanted)


def passes(error: EmbedKeepError) -> bool:
    """What was refused may be answered later; of a call in parts, all that was."""
    if isinstance(error, PartialFailure):
        return all(map(passes, error.failures.values()))
    return isinstance(error, Retryable | DeadlineExceeded)


async def alone(running: Running, texts: set[str]) -> dict[str, bytes]:
    """What the embedder returns for each text when it is asked for nothing else."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.ports.embedder_grpc}") as channel:
        # One that was killed just now loads its model first.
        await until_serving(channel, wait_s=PATIENCE_S)
        stub: embedder_pb2_grpc.EmbedderAsyncStub = embedder_pb2_grpc.EmbedderStub(channel)
        return {
            text: (
                await stub.Embed(embedder_pb2.ComputeRequest(inputs=[text]), wait_for_ready=True)
            ).vectors
            for text in texts
        }
