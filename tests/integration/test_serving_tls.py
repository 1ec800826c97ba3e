import asyncio
import shutil
import socket
import ssl
from pathlib import Path

import grpc
import pytest

from embedkeep.config import ClientTls, ServerTls
from embedkeep.errors import InvalidConfig
from support.certificates import Authority, Pair
from support.served import (
    WAIT_S,
    channel_to,
    endpoint,
    health_of,
    listening,
)


def server_tls(pair: Pair, *, client_ca_file: Path | None = None) -> ServerTls:
    return ServerTls(
        cert_file=pair.cert_file, key_file=pair.key_file, client_ca_file=client_ca_file
    )


def client_tls(authority: Authority, pair: Pair | None = None) -> ClientTls:
    return ClientTls(
        ca_file=authority.ca_file,
        cert_file=pair.cert_file if pair else None,
        key_file=pair.key_file if pair else None,
    )


async def is_reached(port: int, tls: ClientTls | None) -> bool:
    """A call over a new connection is answered; any failure but to connect is an error."""
    async with channel_to(port, tls) as channel:
        try:
            await health_of(channel)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
        return True


def shown(port: int, authority: Authority) -> bytes:
    """The certificate that the server shows to a new connection."""
    context = ssl.create_default_context(cafile=authority.ca_file)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as link,
    ):
        certificate = link.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate


async def test_with_tls_only_who_trusts_the_authority_connects(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    async with listening(endpoint(tls=server_tls(authority.issue()))) as served:
        reached = [
            await is_reached(served.port, tls)
            for tls in (client_tls(authority), client_tls(other), None)
        ]

    assert reached == [True, False, False]


async def test_a_server_is_believed_only_under_a_name_in_its_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    trusting = client_tls(authority)
    async with listening(endpoint(tls=server_tls(authority.issue("cache.example")))) as served:
        reached = {
            name: await is_reached(served.port, trusting.model_copy(update={"server_name": name}))
            for name in ("cache.example", "other.example")
        }

    assert reached == {"cache.example": True, "other.example": False}


async def test_with_a_client_authority_only_who_shows_its_certificate_connects(
    tmp_path: Path,
) -> None:
    authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    tls = server_tls(authority.issue(), client_ca_file=authority.ca_file)
    async with listening(endpoint(tls=tls)) as served:
        reached = [
            await is_reached(served.port, client_tls(authority, pair))
            for pair in (authority.issue("node"), None, other.issue("node"))
        ]

    assert reached == [True, False, False]


async def test_a_renewed_certificate_is_shown_without_a_restart(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = server_tls(authority.issue(into="server"))
    async with (
        listening(endpoint(tls=tls)) as served,
        channel_to(served.port, client_tls(authority)) as open_before,
    ):
        await health_of(open_before)
        before = await asyncio.to_thread(shown, served.port, authority)
        unchanged = await asyncio.to_thread(shown, served.port, authority)

        authority.issue(into="server")
        after = await asyncio.to_thread(shown, served.port, authority)
        await health_of(open_before)

    assert before == unchanged
    assert after == ssl.PEM_cert_to_DER_cert(tls.cert_file.read_text()) != before


@pytest.mark.parametrize("harm", ["half a certificate", "another key", "no key"])
async def test_a_pair_that_does_not_fit_keeps_the_last_good_one(tmp_path: Path, harm: str) -> None:
    authority = Authority(tmp_path)
    tls, other = server_tls(authority.issue(into="server")), authority.issue("other")
    async with listening(endpoint(tls=tls)) as served:
        before = await asyncio.to_thread(shown, served.port, authority)
        if harm == "half a certificate":
            tls.cert_file.write_bytes(tls.cert_file.read_bytes()[:200])
        elif harm == "another key":
            shutil.copy(other.key_file, tls.key_file)
        else:
            tls.key_file.unlink()
        meanwhile = [await asyncio.to_thread(shown, served.port, authority) for _ in range(2)]

        authority.issue(into="server")
        after = await asyncio.to_thread(shown, served.port, authority)

    assert meanwhile == [before, before]
    assert after != before


async def test_a_missing_certificate_is_a_wrong_config_that_names_it(tmp_path: Path) -> None:
    tls = ServerTls(cert_file=tmp_path / "gone.pem", key_file=tmp_path / "gone.key")

    with pytest.raises(InvalidConfig, match=r"tls\.key_file: .*gone\.key cannot be read: No such"):
        async with listening(endpoint(tls=tls)):
            pass


async def test_a_certificate_that_is_none_is_a_wrong_config(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")

    with pytest.raises(InvalidConfig, match="does the key fit the certificate"):
        async with listening(endpoint(tls=ServerTls(cert_file=garbage, key_file=garbage))):
            pass
