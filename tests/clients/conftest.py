"""A real node with a real model, for clients that are made by others."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embedkeep import Client
from embedkeep.config import NodeConfig
from support.embedder import PACKAGE, WAIT_S, embedder

# Nothing here may look for the network.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True, slots=True)
class Cache:
    """A running node."""

    address: str
    """Of gRPC."""
    url: str
    """Of HTTP."""

    def vectors(self, *texts: str, prompt: str | None = None) -> NDArray[np.float32]:
        """What gRPC answers."""
        with Client(self.address) as client:
            return client.embed(texts, prompt=prompt)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cache]:
    """One node with all-MiniLM-L6-v2."""
    folder = tmp_path_factory.mktemp("node")
    with embedder(folder) as behind:
        config = NodeConfig.model_validate(
            {
                "name": "docs",
                "model": {
                    "name": MODEL,
                    "prompts": {"query": "query: ", "document": "passage: "},
                    "source": {"package": PACKAGE},
                },
                "embedder": {"address": f"127.0.0.1:{behind.port()}"},
                "http": {},
                "announce_file": str(folder / "node-ports.json"),
                "drain_s": 1,
            }
        )
        (folder / "node.json").write_text(config.model_dump_json())
        node = subprocess.Popen(
            [sys.executable, "-m", "embedkeep.cli", "node", "--config", folder / "node.json"]
        )
        try:
            ports = _announced(folder / "node-ports.json")
            found = Cache(f"127.0.0.1:{ports['grpc']}", f"http://127.0.0.1:{ports['http']}")
            with Client(found.address, timeout_s=WAIT_S) as client:
                client.embed("warm")
            yield found
        finally:
            node.terminate()
            node.wait(WAIT_S)


def _announced(file: Path) -> dict[str, int]:
    end = time.monotonic() + WAIT_S
    while not file.exists():
        assert time.monotonic() < end, "the node does not listen"
        time.sleep(0.02)
    ports: dict[str, int] = json.loads(file.read_text())
    return ports


def same(given: object, expected: NDArray[np.float32]) -> bool:
    """*given*, numbers in lists, is *expected* bit for bit."""
    found = np.array(given, np.float32)
    return found.shape == expected.shape and found.tobytes() == expected.tobytes()
