"""The ways to ask for vectors that are compared: embedkeep's clients, and what people use today.

Each is set up as its own documentation advises and as it is fastest: one kept connection, hiredis
parsing, no expiry to renew. Each returns what its API returns, and is not charged for turning that
into an array. What is missing is asked of upstream.py. Imported by the callers' processes.
"""

import asyncio
import base64
import http.client
import os
from collections.abc import Callable, Sequence
from typing import Final, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from embedkeep import AsyncClient, Client, NearCache, Retries
from rig import QUIET, Upstream
from upstream import MODEL

os.environ.update(QUIET)  # before the peers below read it

import litellm
import redis
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_community.storage import RedisStore
from langchain_core.embeddings import Embeddings
from litellm.caching import caching_handler
from redisvl.extensions.cache.embeddings import EmbeddingsCache

HOST: Final = "127.0.0.1"
TIMEOUT_S: Final = 60.0
Rows = NDArray[np.float32]
Lists = list[list[float]]


class Embedkeep:
    """embedkeep's client for threads."""

    def __init__(self, address: str, *, near: bool = False, attempts: int = 5) -> None:
        self._client = Client(
            address,
            near_cache=NearCache(max_bytes=64 << 20, max_age_s=3600.0) if near else None,
            retries=Retries(max_attempts=attempts),
            timeout_s=TIMEOUT_S,
        )

    def ask(self, texts: list[str]) -> Rows:
        return self._client.embed(texts)

    def rows(self, answer: object) -> Rows:
        return cast(Rows, answer)

    def close(self) -> None:
        self._client.close()


class EmbedkeepAsync:
    """embedkeep's client for asyncio."""

    def __init__(self, address: str, *, attempts: int = 5) -> None:
        self._client = AsyncClient(
            address, retries=Retries(max_attempts=attempts), timeout_s=TIMEOUT_S
        )

    async def ask(self, texts: list[str]) -> Rows:
        return await self._client.embed(texts)

    def rows(self, answer: object) -> Rows:
        return cast(Rows, answer)

    async def close(self) -> None:
        await self._client.close()


class Http:
    """POST /v1/embeddings over one kept connection of http.client, read with orjson."""

    def __init__(
        self, port: int, *, model: str, encoding: str = "float", key: str = "none"
    ) -> None:
        self._link = http.client.HTTPConnection(HOST, port, timeout=TIMEOUT_S)
        self._model, self._encoding = model, encoding
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}

    def ask(self, texts: list[str]) -> list[dict[str, object]]:
        body = orjson.dumps(
            {"model": self._model, "input": texts, "encoding_format": self._encoding}
        )
        try:
            said = self._post(body)
        except (ConnectionError, http.client.CannotSendRequest):
            self._link.close()  # the server closed what was idle: as every client does, once more
            said = self._post(body)
        found = orjson.loads(said)["data"]
        if self._encoding == "base64":
            for each in found:
                each["embedding"] = np.frombuffer(base64.b64decode(each["embedding"]), "<f4")
        return cast(list[dict[str, object]], found)

    def _post(self, body: bytes) -> bytes:
        self._link.request("POST", "/v1/embeddings", body, self._headers)
        answer = self._link.getresponse()
        said = answer.read()
        if answer.status != http.client.OK:
            raise OSError(f"{answer.status}: {said[:300]!r}")
        return said

    def rows(self, answer: object) -> Rows:
        data = cast(list[dict[str, object]], answer)
        return np.array([each["embedding"] for each in data], np.float32)

    def close(self) -> None:
        self._link.close()


class Model(Embeddings):  # type: ignore[misc]  # its base ships no types here
    """The model itself, over HTTP, as LangChain wants it; what peers ask on a miss."""

    def __init__(self, upstream: Upstream) -> None:
        self._http = Http(upstream.http_port, model=MODEL, encoding="base64")

    def embed_documents(self, texts: list[str]) -> Lists:
        return cast(Lists, self._http.rows(self._http.ask(texts)).tolist())

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


class RawMget:
    """Not a cache but its floor: redis-py's MGET of raw float32, and nothing around it."""

    def __init__(self, port: int, upstream: Upstream) -> None:
        self._redis = redis.Redis(HOST, port, socket_timeout=TIMEOUT_S)
        self._model, self._dims = Model(upstream), upstream.dims

    def ask(self, texts: list[str]) -> Rows:
        keys = [f"raw:{text}" for text in texts]
        found = cast(list[bytes | None], self._redis.mget(keys))
        if None in found:
            missing = [n for n, row in enumerate(found) if row is None]
            rows = np.array(self._model.embed_documents([texts[n] for n in missing]), np.float32)
            self._redis.mset({keys[n]: row.tobytes() for n, row in zip(missing, rows, strict=True)})
            for n, row in zip(missing, rows, strict=True):
                found[n] = row.tobytes()
        return np.frombuffer(b"".join(cast(list[bytes], found)), "<f4").reshape(-1, self._dims)

    def rows(self, answer: object) -> Rows:
        return cast(Rows, answer)

    def close(self) -> None:
        self._redis.close()


Entry = dict[str, object]


class RedisVL:
    """RedisVL's EmbeddingsCache, blocking."""

    def __init__(self, port: int, upstream: Upstream) -> None:
        client = redis.Redis(HOST, port, socket_timeout=TIMEOUT_S)
        self._cache = EmbeddingsCache(name="redisvl", redis_client=client)
        self._model = Model(upstream)

    def ask(self, texts: list[str]) -> list[Entry]:
        if len(texts) == 1:  # its own call for one is quicker than its batched one
            found = [self._cache.get(texts[0], MODEL)]
        else:
            found = self._cache.mget(texts, MODEL)
        if None in found:
            self._cache.mset(_filled(found, texts, self._model.embed_documents))
        return cast(list[Entry], found)

    def rows(self, answer: object) -> Rows:
        return np.array([each["embedding"] for each in cast(list[Entry], answer)], np.float32)

    def close(self) -> None:
        self._cache.disconnect()


class RedisVLAsync(RedisVL):
    """RedisVL's EmbeddingsCache on asyncio."""

    def __init__(self, port: int, upstream: Upstream) -> None:
        client = redis.asyncio.Redis(host=HOST, port=port, socket_timeout=TIMEOUT_S)
        self._cache = EmbeddingsCache(name="redisvl", async_redis_client=client)
        self._model = Model(upstream)

    async def ask(self, texts: list[str]) -> list[Entry]:  # type: ignore[override]  # awaited
        if len(texts) == 1:
            found = [await self._cache.aget(texts[0], MODEL)]
        else:
            found = await self._cache.amget(texts, MODEL)
        if None in found:
            await self._cache.amset(_filled(found, texts, self._model.embed_documents))
        return cast(list[Entry], found)

    async def close(self) -> None:  # type: ignore[override]  # awaited
        await self._cache.adisconnect()


class LangChain:
    """LangChain's CacheBackedEmbeddings on its RedisStore, queries cached too."""

    def __init__(self, port: int, upstream: Upstream) -> None:
        self._client = redis.Redis(HOST, port, socket_timeout=TIMEOUT_S)
        self._cached = CacheBackedEmbeddings.from_bytes_store(
            Model(upstream),
            RedisStore(client=self._client),
            namespace=f"{MODEL}:",
            query_embedding_cache=True,
            key_encoder="blake2b",
        )

    def ask(self, texts: list[str]) -> Lists:
        if len(texts) == 1:
            return [self._cached.embed_query(texts[0])]
        return cast(Lists, self._cached.embed_documents(texts))

    def rows(self, answer: object) -> Rows:
        return np.array(answer, np.float32)

    def close(self) -> None:
        self._client.close()


class LiteLLM:
    """LiteLLM's embedding cache in the caller's process: its memory before Redis.

    On asyncio: only there does it cache each text of a batch; its blocking call keeps whole
    requests.
    """

    def __init__(self, port: int, upstream: Upstream) -> None:
        litellm.suppress_debug_info = True
        litellm.default_redis_ttl = 24 * 3600  # it is a minute, in which not all is asked
        litellm.cache = litellm.Cache(type="redis", host=HOST, port=str(port))
        self._base = upstream.openai

    async def ask(self, texts: list[str]) -> object:
        return await litellm.aembedding(
            model=f"openai/{MODEL}",
            input=texts,
            api_base=self._base,
            api_key="none",
            encoding_format="float",
            caching=True,
        )

    def rows(self, answer: object) -> Rows:
        data = cast("list[dict[str, object]]", answer.data)  # type: ignore[attr-defined]  # untyped
        return np.array([each["embedding"] for each in data], np.float32)

    async def close(self) -> None:
        await litellm.cache.disconnect()


class SettledLiteLLM(LiteLLM):
    """The same, but a call ends when its entries are written.

    LiteLLM writes in tasks of its own, which stand still between the calls of a caller.
    """

    async def ask(self, texts: list[str]) -> object:
        answer = await super().ask(texts)
        await asyncio.gather(*caching_handler._PENDING_CACHE_WRITES)  # noqa: SLF001  # there is no other way to wait
        return answer


def _filled(
    found: list[Entry | None], texts: Sequence[str], compute: Callable[[list[str]], Lists]
) -> list[Entry]:
    """Put what was missing in *found* in its place. Returns the new entries, to be stored."""
    missing = [n for n, entry in enumerate(found) if entry is None]
    vectors = compute([texts[n] for n in missing])
    new: list[Entry] = [
        {"content": texts[n], "model_name": MODEL, "embedding": vector}
        for n, vector in zip(missing, vectors, strict=True)
    ]
    for n, entry in zip(missing, new, strict=True):
        found[n] = entry
    return new
