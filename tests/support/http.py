"""A thin way to speak HTTP to a node."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from embedkeep.v1 import cache_pb2
from support.node import WAIT_S, Node, rows

JSON = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """OpenAI's."""
        return self.json["error"]


@dataclass(frozen=True, slots=True)
class Http:
    """One connection pool."""

    session: aiohttp.ClientSession

    async def ask(
        self,
        method: str,
        path: str,
        json: object = None,  # the parameter is aiohttp's
        *,
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
    ) -> Reply:
        """One request."""
        async with self.session.request(
            method, path, json=json, headers=headers, data=data
        ) as response:
            found = {name.lower(): value for name, value in response.headers.items()}
            return Reply(response.status, found, await response.read())

    async def openai(self, headers: Mapping[str, str] | None = None, **body: object) -> Reply:
        """`POST /v1/embeddings`."""
        return await self.ask("POST", "/v1/embeddings", {"model": "docs", **body}, headers=headers)

    async def tei(self, headers: Mapping[str, str] | None = None, **body: object) -> Reply:
        """`POST /embed`."""
        return await self.ask("POST", "/embed", body, headers=headers)


@asynccontextmanager
async def talking(node: Node, **session: Any) -> AsyncIterator[Http]:
    """Speak to *node*."""
    timeout = aiohttp.ClientTimeout(total=WAIT_S)
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{node.http_port}", timeout=timeout, **session
    ) as made:
        yield Http(made)
    await asyncio.sleep(0)  # aiohttp closes its connections in the loop's next turn


def decoded(reply: Reply) -> list[bytes]:
    """The vectors of an OpenAI answer in base64, as bytes."""
    return [base64.b64decode(each["embedding"]) for each in reply.json["data"]]


async def over_grpc(node: Node, *texts: str, **fields: object) -> list[bytes]:
    """The same texts' vectors over gRPC, as bytes."""
    answer: cache_pb2.EmbedResponse = await node.embed(*texts, **fields)  # type: ignore[arg-type]  # fields of the message
    return rows(answer)
