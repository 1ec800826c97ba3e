"""LiteLLM's SDK, and its proxy in front of a node."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import litellm
import pytest
from openai import OpenAI

from clients.conftest import Cache, same
from support.valkey import free_port

TEXTS = ["how do I reset my password?", "Wo ist mein Paket?"]
MASTER_KEY = f"sk-{secrets.token_hex(32)}"
START_S = 110.0
"""The proxy imports a great deal."""


@pytest.fixture(scope="module")
def proxy(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """LiteLLM's proxy; its base URL."""
    folder: Path = tmp_path_factory.mktemp("proxy")
    port = free_port()
    config = {
        "model_list": [
            {
                "model_name": "docs",
                "litellm_params": {
                    "model": "openai/docs",
                    "api_base": f"{cache.url}/v1",
                    "api_key": "unused",
                },
            }
        ]
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    command = [
        str(Path(sys.executable).parent / "litellm"),
        *("--config", str(folder / "config.yaml"), "--host", "127.0.0.1", "--port", str(port)),
    ]
    env = {**os.environ, "LITELLM_MASTER_KEY": MASTER_KEY}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        try:
            _wait(process, f"http://127.0.0.1:{port}/health/liveliness", folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while True:
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < end, log.read_text()[-4000:]
        with suppress(URLError, TimeoutError, ConnectionError), urlopen(url, timeout=2):  # noqa: S310  # loopback
            return
        time.sleep(0.2)


async def test_the_sdk_answers_what_grpc_answers(cache: Cache) -> None:
    how = {"model": "openai/docs", "api_base": f"{cache.url}/v1", "api_key": "unused"}

    found = litellm.embedding(input=TEXTS, **how)
    again = await litellm.aembedding(input=TEXTS, **how)

    assert same([each["embedding"] for each in found.data], cache.vectors(*TEXTS))
    assert same([each["embedding"] for each in again.data], cache.vectors(*TEXTS))


@pytest.mark.timeout(180)
def test_the_proxy_in_front_answers_what_grpc_answers(cache: Cache, proxy: str) -> None:
    with OpenAI(base_url=proxy, api_key=MASTER_KEY) as client:
        answer = client.embeddings.create(model="docs", input=TEXTS)

    assert same([each.embedding for each in answer.data], cache.vectors(*TEXTS))
