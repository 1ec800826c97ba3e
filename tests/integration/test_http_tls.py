"""HTTPS with the same files as gRPC, renewed without a restart."""

import ssl
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from embedkeep.config import Listen, ServerTls
from embedkeep.errors import InvalidConfig
from embedkeep.node.http.connect import Body, Reply
from embedkeep.node.http.facades import Facades
from embedkeep.node.http.routes import Router
from embedkeep.node.http.server import HttpServer
from embedkeep.tls import server_context
from support.certificates import Authority, Pair


class NoCalls:
    """No path is a call's."""

    paths = frozenset[str]()

    async def answer(self, path: str, said: Mapping[str, str], body: Body) -> Reply:
        raise NotImplementedError


EMPTY = Facades(router=Router({}, refuse=lambda _: web.Response(status=404)), connect=NoCalls())
"""Answer any path with 404, which is an answer."""


def server(tls: ServerTls | None, listen: Listen | None = None) -> HttpServer:
    return HttpServer(listen or Listen(), EMPTY, tls=tls, max_body_bytes=1024, drain_s=1.0)


def trusting(authority: Authority, shown: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    if shown is not None:
        context.load_cert_chain(shown.cert_file, shown.key_file)
    return context


async def asked(port: int, context: ssl.SSLContext) -> int | str:
    """A request on a connection of its own: its status, or the name of its error."""
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"https://127.0.0.1:{port}/", ssl=context) as response,
        ):
            return response.status
    except (aiohttp.ClientError, ssl.SSLError) as error:
        return type(error).__name__


async def test_a_renewed_certificate_is_shown_from_the_next_handshake_on(tmp_path: Path) -> None:
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    pair = old.issue(into="server")
    tls = ServerTls(cert_file=pair.cert_file, key_file=pair.key_file)
    async with server(tls) as http:
        assert await asked(http.port, trusting(old)) == 404

        renewed = new.issue(into="server")
        pair.cert_file.write_bytes(renewed.cert_file.read_bytes())
        half = await asked(http.port, trusting(old))
        pair.key_file.write_bytes(renewed.key_file.read_bytes())

        assert half == 404
        assert await asked(http.port, trusting(new)) == 404
        assert "Error" in str(await asked(http.port, trusting(old)))


async def test_clients_show_a_certificate_of_the_authority_that_is_named_now(
    tmp_path: Path,
) -> None:
    servers = Authority(tmp_path / "servers")
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    pair = servers.issue()
    named = tmp_path / "ca.pem"
    named.write_bytes(old.ca_file.read_bytes())
    tls = ServerTls(cert_file=pair.cert_file, key_file=pair.key_file, client_ca_file=named)
    async with server(tls) as http:
        with_old = trusting(servers, old.issue("one"))
        with_new = trusting(servers, new.issue("two"))
        before = [await asked(http.port, each) for each in (trusting(servers), with_old, with_new)]

        named.write_bytes(new.ca_file.read_bytes())
        after = [await asked(http.port, each) for each in (trusting(servers), with_old, with_new)]

    assert [each == 404 for each in before] == [False, True, False]
    assert [each == 404 for each in after] == [False, False, True]


def test_files_that_are_no_certificate_are_named(tmp_path: Path) -> None:
    pair = Authority(tmp_path / "a").issue()
    other = Authority(tmp_path / "b").issue()

    with pytest.raises(InvalidConfig, match=r"tls\.key_file: .* cannot be read"):
        server_context(ServerTls(cert_file=pair.cert_file, key_file=tmp_path / "none"))
    with pytest.raises(InvalidConfig, match=r"are no certificate and its key"):
        server_context(ServerTls(cert_file=pair.cert_file, key_file=other.key_file))


async def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    pair = Authority(tmp_path / "a").issue()
    async with server(ServerTls(cert_file=pair.cert_file, key_file=pair.key_file)) as first:
        again = server(None, Listen(port=first.port))

        with pytest.raises(InvalidConfig, match=rf"^http: cannot listen on .*:{first.port}: "):
            await again.__aenter__()
