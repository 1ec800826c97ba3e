"""Both clients against a real node that speaks TLS and wants to see a certificate."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from embedkeep import ClientTls, Retries
from embedkeep.config import NodeConfig
from embedkeep.errors import InvalidConfig, Unavailable
from support.clients import KINDS, At, Kind
from support.node import Node, node_config, running
from support.tap import Tap, serve_tap
from support.valkey import free_port

pytestmark = pytest.mark.parametrize("kind", KINDS)

PATIENT = Retries(max_attempts=100, max_pause_s=0.1)
ONCE = Retries(max_attempts=1)


def write_certificates(folder: Path) -> None:
    """An authority, and under it a certificate for loopback that servers and clients may show."""
    now = datetime.now(UTC)
    authority_key, leaf_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])

    def begun(name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(authority)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
        )

    root = begun(authority, authority_key).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    leaf = begun(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")]), leaf_key
    ).add_extension(
        x509.SubjectAlternativeName(
            [x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("docs.test")]
        ),
        critical=False,
    )
    pem = serialization.Encoding.PEM
    for file, builder in (("ca.pem", root), ("leaf.pem", leaf)):
        signed = builder.sign(authority_key, hashes.SHA256())
        (folder / file).write_bytes(signed.public_bytes(pem))
    (folder / "leaf.key").write_bytes(
        leaf_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@pytest.fixture
async def address(tap: Tap, tmp_path: Path) -> AsyncIterator[At]:
    """A node that speaks only TLS, to those who show a certificate of its authority."""
    write_certificates(tmp_path)
    tls = {
        "cert_file": str(tmp_path / "leaf.pem"),
        "key_file": str(tmp_path / "leaf.key"),
        "client_ca_file": str(tmp_path / "ca.pem"),
    }
    async with serve_tap(tap) as port:
        node: Node
        async with running(node_config(tmp_path, port, tls=tls), ready=False) as node:
            yield At(f"127.0.0.1:{node.port}", http=f"https://127.0.0.1:{node.http_port}")


def certificates(folder: Path, *, server_name: str | None = None) -> ClientTls:
    return ClientTls(
        ca_file=folder / "ca.pem",
        cert_file=folder / "leaf.pem",
        key_file=folder / "leaf.key",
        server_name=server_name,
    )


async def test_who_shows_a_certificate_is_answered(
    kind: Kind, tap: Tap, address: str, tmp_path: Path
) -> None:
    for name in (None, "docs.test"):
        tls = certificates(tmp_path, server_name=name)
        async with kind(address, tls=tls, retries=PATIENT, timeout_s=30) as client:
            vectors = await client.embed("a")

        assert vectors.tobytes() == tap.computed["a"][0]


async def test_who_shows_none_or_expects_another_name_is_not(
    kind: Kind, address: str, tmp_path: Path
) -> None:
    silent = ClientTls(ca_file=tmp_path / "ca.pem")
    misled = certificates(tmp_path, server_name="other.test")
    for tls in (None, silent, misled):
        async with kind(address, tls=tls, retries=ONCE) as client:
            with pytest.raises(Unavailable):
                await client.info()


async def test_a_certificate_without_its_key_is_refused(kind: Kind, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="both cert_file and key_file"):
        kind("localhost:1", tls=ClientTls(cert_file=tmp_path / "leaf.pem"))


def on_tls(folder: Path, embedder_port: int) -> tuple[NodeConfig, At]:
    tls = {
        "cert_file": str(folder / "leaf.pem"),
        "key_file": str(folder / "leaf.key"),
        "client_ca_file": str(folder / "ca.pem"),
    }
    grpc, http = free_port(), free_port()
    config = node_config(folder, embedder_port, tls=tls, grpc={"port": grpc}, http={"port": http})
    return config, At(f"127.0.0.1:{grpc}", http=f"https://127.0.0.1:{http}")


async def test_a_rotated_authority_is_followed_without_a_restart(
    kind: Kind, tap: Tap, tmp_path: Path
) -> None:
    write_certificates(tmp_path)
    async with serve_tap(tap) as embedder_port:
        config, address = on_tls(tmp_path, embedder_port)
        tls = certificates(tmp_path)
        async with kind(address, tls=tls, retries=PATIENT, timeout_s=30) as client:
            async with running(config, ready=False):
                await client.embed("a")
            write_certificates(tmp_path)
            async with running(config, ready=False):
                vectors = await client.embed("b")

    assert vectors.tobytes() == tap.computed["b"][0]


async def test_a_rotation_ends_no_call_that_is_under_way(
    kind: Kind, tap: Tap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedkeep.tls.LOOK_EVERY_S", 0.0)
    write_certificates(tmp_path)
    async with serve_tap(tap) as embedder_port:
        config, address = on_tls(tmp_path, embedder_port)
        tls = certificates(tmp_path)
        async with (
            running(config, ready=False),
            kind(address, tls=tls, retries=PATIENT, timeout_s=30) as client,
        ):
            await client.embed("kept")
            tap.gate.clear()
            under_way = asyncio.create_task(client.embed("slow"), name="under way")
            while (await tap.entered.get()).texts != ["slow"]:
                pass
            write_certificates(tmp_path)
            await client.embed("kept")
            tap.gate.set()
            vectors = await under_way

    assert vectors.tobytes() == tap.computed["slow"][0]
    assert client.stats.retries == 0
