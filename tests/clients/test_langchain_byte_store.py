"""Stores that LangChain's own CacheBackedEmbeddings has written, imported whole."""

import asyncio
import warnings
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_classic.storage import LocalFileStore
from langchain_core.embeddings import Embeddings

from embedkeep.cli.importing import import_
from support.node import Node, sources
from support.tap import Tap
from support.valkey import Valkey

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # unmaintained, and in use
    from langchain_community.storage import RedisStore

TEXTS = [f"text {number} ü" for number in range(300)]
ENCODERS = ["sha1", "blake2b", "sha256", "sha512"]


class Tapped(Embeddings):  # type: ignore[misc]  # known only where LangChain is installed
    """The model, as LangChain calls one."""

    def __init__(self) -> None:
        self._tap = Tap(steady=True)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector a text."""
        return [np.frombuffer(self._tap.vector(text), np.float32).tolist() for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """The same for one."""
        return self.embed_documents([text])[0]


@pytest.fixture
def tap() -> Tap:
    return Tap(steady=True)


@pytest.fixture
def node_fields() -> dict[str, object]:
    return {"imports": True}


async def imported(node: Node, *arguments: str) -> None:
    """Import, and see that every text is answered as the model would, without it."""
    command = ["-a", f"127.0.0.1:{node.port}", *arguments]
    result = await asyncio.to_thread(CliRunner().invoke, import_, command)
    assert result.exit_code == 0, result.output
    assert "300 stored, 0 there already, 1 not in the store" in result.stderr
    answer = await node.embed(*TEXTS)
    assert set(sources(answer)) == {"valkey"}
    assert answer.vectors == b"".join(map(Tap(steady=True).vector, TEXTS))


@pytest.mark.filterwarnings("ignore:Using default key encoder")
@pytest.mark.parametrize("encoder", ENCODERS)
async def test_a_folder_that_langchain_wrote(node: Node, tmp_path: Path, encoder: str) -> None:
    cache = CacheBackedEmbeddings.from_bytes_store(
        Tapped(), LocalFileStore(tmp_path / "cache"), namespace="acme/counter", key_encoder=encoder
    )
    cache.embed_documents(TEXTS)
    (tmp_path / "texts.txt").write_text("\n".join([*TEXTS, "never embedded"]))

    await imported(
        node, "--langchain-store", str(tmp_path / "cache"), "--namespace", "acme/counter",
        "--key-encoder", encoder, "--texts", str(tmp_path / "texts.txt"),
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using default key encoder")
@pytest.mark.parametrize("namespace", [None, "ns"])
async def test_a_redis_that_langchain_wrote(
    node: Node, store: Valkey, tmp_path: Path, namespace: str | None
) -> None:
    url = f"redis://127.0.0.1:{store.port}/3"
    cache = CacheBackedEmbeddings.from_bytes_store(
        Tapped(), RedisStore(redis_url=url, namespace=namespace), query_embedding_cache=True
    )
    cache.embed_documents(TEXTS[:200])
    for text in TEXTS[200:]:
        cache.embed_query(text)
    (tmp_path / "texts.txt").write_text("\n".join([*TEXTS, "never embedded"]))

    more = ["--store-namespace", namespace] if namespace else []
    await imported(node, "--langchain-store", url, *more, "--texts", str(tmp_path / "texts.txt"))
