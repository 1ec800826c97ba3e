"""A client that was told another port, scheme or path than the node's: what it is told of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from embedkeep import AsyncClient, Retries
from embedkeep.config import ClientTls
from embedkeep.errors import EmbedKeepError, InvalidRequest, InvalidResponse, Unavailable
from support.certificates import Authority
from support.clients import Kind, Threaded
from support.node import Node

ONCE = Retries(max_attempts=1)


@pytest.mark.parametrize("kind", [AsyncClient, Threaded])
@pytest.mark.parametrize(
    ("target", "error", "said"),
    [
        (
            lambda node: f"http://127.0.0.1:{node.port}", InvalidResponse,
            "does not answer as HTTP/1.1: is it the node's gRPC port? Then leave http:// out",
        ),
        (
            lambda node: f"https://127.0.0.1:{node.http_port}", Unavailable,
            "the other side does not speak TLS: write http://",
        ),
        (
            lambda node: f"https://127.0.0.1:{node.port}", Unavailable,
            "the other side does not speak TLS: write http://",
        ),
        (
            lambda node: f"127.0.0.1:{node.http_port}", Unavailable,
            "does not answer as gRPC: is it the node's HTTP port? Then write http:// before it",
        ),
        (
            lambda node: f"http://127.0.0.1:{node.http_port}/gateway", InvalidRequest,
            "Info: there is no such path; did you mean /embedkeep.v1.EmbeddingCache/Info?",
        ),
    ],
    ids=["http to gRPC", "https to plain HTTP", "https to plain gRPC", "gRPC to HTTP", "path"],
)  # fmt: skip
async def test_a_target_that_is_not_the_nodes_is_told_apart_in_plain_words(
    node: Node,
    kind: Kind,
    target: Callable[[Node], str],
    error: type[EmbedKeepError],
    said: str,
) -> None:
    meant = target(node)
    async with kind(meant, retries=ONCE) as client:
        with pytest.raises(error) as refused:
            await client.info()

    assert str(refused.value).startswith(f"{meant}: ")
    assert str(refused.value).endswith(said)


@pytest.mark.parametrize("kind", [AsyncClient, Threaded])
async def test_certificates_for_grpc_in_plain_text_are_said_to_be_too_much(
    node: Node, kind: Kind, tmp_path: Path
) -> None:
    tls = ClientTls(ca_file=Authority(tmp_path).ca_file)
    async with kind(f"127.0.0.1:{node.port}", retries=ONCE, tls=tls) as client:
        with pytest.raises(Unavailable, match="does not speak TLS: give no certificates"):
            await client.info()
