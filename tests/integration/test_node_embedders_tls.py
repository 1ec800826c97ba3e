"""The way from a node to its embedder, where both show certificates that are rotated."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from embedkeep.config import ClientTls, EmbedderTarget, ServerTls
from embedkeep.errors import EmbedderUnavailable
from embedkeep.node.embedders import Embedders
from embedkeep.tls import server_credentials
from embedkeep.v1 import embedder_pb2_grpc
from support.certificates import Authority
from support.node import until
from support.tap import Tap
from support.valkey import free_port


@asynccontextmanager
async def tap_of(authority: Authority, *, port: int) -> AsyncIterator[None]:
    """A tap that shows a certificate of *authority*, to those who show one."""
    pair = authority.issue("embedder")
    tls = ServerTls(
        cert_file=pair.cert_file, key_file=pair.key_file, client_ca_file=authority.ca_file
    )
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    embedder_pb2_grpc.add_EmbedderServicer_to_server(Tap(), server)
    server.add_secure_port(f"127.0.0.1:{port}", server_credentials(tls))
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


def mount(authority: Authority, folder: Path) -> ClientTls:
    """What a node has of *authority*, where it always stands."""
    pair = authority.issue("node")
    folder.mkdir(exist_ok=True)
    for file, name in (
        (authority.ca_file, "ca"), (pair.cert_file, "cert"), (pair.key_file, "key"),
    ):  # fmt: skip
        shutil.copy(file, folder / name)
    return ClientTls(ca_file=folder / "ca", cert_file=folder / "cert", key_file=folder / "key")


async def test_an_authority_rotated_on_both_sides_is_followed(tmp_path: Path) -> None:
    before, after = Authority(tmp_path / "before", "before"), Authority(tmp_path / "after", "after")
    port, mounted = free_port(), tmp_path / "mounted"
    target = EmbedderTarget(address=f"127.0.0.1:{port}", tls=mount(before, mounted))
    async with Embedders(target, on_drift=lambda _: None) as embedders:

        async def described() -> bool:
            try:
                await embedders.describe()
            except EmbedderUnavailable:
                return False
            return True

        async with tap_of(before, port=port):
            await until(described)
        async with tap_of(after, port=port):
            with pytest.raises(EmbedderUnavailable):
                await embedders.describe()
            mount(after, mounted)
            await until(described)
