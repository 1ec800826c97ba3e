import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from embedkeep.config import ClientTls, ServerTls
from embedkeep.errors import InvalidConfig
from embedkeep.tls import (
    LOOK_EVERY_S,
    FollowedCredentials,
    channel_credentials,
    channel_options,
    client_context,
    server_credentials,
)
from support.certificates import Authority


@pytest.mark.parametrize("field", ["cert_file", "key_file", "client_ca_file"])
def test_a_servers_missing_file_is_named(tmp_path: Path, field: str) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue()
    files = {
        "cert_file": pair.cert_file,
        "key_file": pair.key_file,
        "client_ca_file": authority.ca_file,
    }
    files[field] = tmp_path / "gone.pem"

    with pytest.raises(InvalidConfig, match=r"gone\.pem cannot be read: No such") as refused:
        server_credentials(ServerTls.model_validate(files))

    assert refused.value.field == f"tls.{field}"


@pytest.mark.parametrize("field", ["ca_file", "cert_file", "key_file"])
def test_a_clients_missing_file_is_named(tmp_path: Path, field: str) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue()
    files = {"ca_file": authority.ca_file, "cert_file": pair.cert_file, "key_file": pair.key_file}
    files[field] = tmp_path / "gone.pem"

    with pytest.raises(InvalidConfig, match=r"gone\.pem cannot be read: No such") as refused:
        channel_credentials(ClientTls.model_validate(files))

    assert refused.value.field == f"tls.{field}"


@pytest.mark.parametrize("make", [channel_credentials, client_context])
@pytest.mark.parametrize("field", ["ca_file", "cert_file"])
def test_a_file_that_is_no_certificate_is_named_before_any_call(
    tmp_path: Path, field: str, make: Callable[[ClientTls], object]
) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue()
    files = {"ca_file": authority.ca_file, "cert_file": pair.cert_file, "key_file": pair.key_file}
    files[field] = tmp_path / "hostname"
    files[field].write_text("a machine's name\n")

    with pytest.raises(InvalidConfig, match="hostname") as refused:
        make(ClientTls.model_validate(files))

    assert refused.value.field == f"tls.{field}"


@pytest.mark.parametrize("field", ["cert_file", "key_file"])
def test_a_certificate_without_its_key_is_refused(tmp_path: Path, field: str) -> None:
    """Such a client would show nothing, and be refused for it without a reason."""
    pair = Authority(tmp_path).issue()

    with pytest.raises(InvalidConfig, match="both cert_file and key_file, or neither"):
        channel_credentials(ClientTls.model_validate({field: pair.cert_file}))


def test_a_client_may_trust_the_usual_authorities_and_show_nothing() -> None:
    assert channel_credentials(ClientTls()) is not None


def test_a_server_may_be_called_otherwise_than_it_is_dialled() -> None:
    assert channel_options(ClientTls(server_name="cache.example")) == [
        ("grpc.ssl_target_name_override", "cache.example")
    ]


@pytest.mark.parametrize("tls", [None, ClientTls()])
def test_a_server_is_called_as_it_is_dialled_by_default(tls: ClientTls | None) -> None:
    assert channel_options(tls) == []


class Renewed:
    """A client's files, and time that stands until it is moved."""

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.authority = Authority(folder)
        self.pair = self.authority.issue(into="client")
        self.tls = ClientTls(
            ca_file=self.authority.ca_file,
            cert_file=self.pair.cert_file,
            key_file=self.pair.key_file,
        )
        self.credentials = FollowedCredentials(
            self.tls, channel_credentials, clock=lambda: self.now
        )

    def renew(self) -> None:
        self.authority.issue(into="client")


def test_a_clients_credentials_stay_the_same_while_their_files_do(tmp_path: Path) -> None:
    given = Renewed(tmp_path)
    before = given.credentials.newest()
    given.now += 10 * LOOK_EVERY_S
    given.credentials.doubt()

    assert given.credentials.newest() is before


def test_a_renewed_file_is_noticed_with_the_next_look_and_not_before(tmp_path: Path) -> None:
    given = Renewed(tmp_path)
    before = given.credentials.newest()
    given.renew()

    given.now += LOOK_EVERY_S - 0.1
    assert given.credentials.newest() is before
    given.now += 0.1
    after = given.credentials.newest()
    assert after is not before
    assert given.credentials.newest() is after


def test_a_call_that_found_nobody_makes_the_next_one_look(tmp_path: Path) -> None:
    given = Renewed(tmp_path)
    before = given.credentials.newest()
    given.renew()

    given.credentials.doubt()

    assert given.credentials.newest() is not before


@pytest.mark.parametrize("harm", ["half a certificate", "another key", "no key", "no authority"])
def test_files_that_do_not_fit_keep_a_clients_last_good_ones(tmp_path: Path, harm: str) -> None:
    given = Renewed(tmp_path)
    before = given.credentials.newest()
    if harm == "half a certificate":
        given.pair.cert_file.write_bytes(given.pair.cert_file.read_bytes()[:200])
    elif harm == "another key":
        shutil.copy(given.authority.issue("other").key_file, given.pair.key_file)
    elif harm == "no key":
        given.pair.key_file.unlink()
    else:
        given.authority.ca_file.write_text("")
    given.credentials.doubt()
    meanwhile = given.credentials.newest()

    Authority(tmp_path).issue(into="client")
    given.credentials.doubt()

    assert meanwhile is before
    assert given.credentials.newest() is not before


def test_a_certificate_too_weak_to_be_shown_over_http_is_named(tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505  # the test
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "weak")])
    now = datetime.now(UTC)
    weak = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert_file.write_bytes(weak.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )

    with pytest.raises(InvalidConfig, match=r"cert\.pem cannot be shown.*KEY_TOO_SMALL"):
        client_context(ClientTls(cert_file=cert_file, key_file=key_file))
