from pathlib import Path

import pytest

from embedkeep.config import ClientTls, ServerTls
from embedkeep.errors import InvalidConfig
from embedkeep.tls import channel_credentials, channel_options, server_credentials
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
