"""Which name a node's certificate is dialled by, and files that do not fit."""

from pathlib import Path

import pytest

from embedkeep.config import ClientTls, ServerTls
from embedkeep.errors import InvalidConfig
from embedkeep_operator.local.certificate import _dialled, way_in
from support.certificates import Authority


def a_secret(folder: Path, *, host: str = "localhost", with_ca: bool = True) -> ServerTls:
    """A folder laid out as a kubernetes.io/tls Secret."""
    folder.mkdir()
    authority = Authority(folder / "authority")
    pair = authority.issue(host)
    pair.cert_file.rename(folder / "tls.crt")
    pair.key_file.rename(folder / "tls.key")
    if with_ca:
        authority.ca_file.rename(folder / "ca.crt")
    return ServerTls(cert_file=folder / "tls.crt", key_file=folder / "tls.key")


def test_the_authority_is_trusted_and_the_loopback_name_taken(tmp_path: Path) -> None:
    tls = a_secret(tmp_path / "a")

    assert way_in(tls) == ClientTls(ca_file=tmp_path / "a" / "ca.crt", server_name="localhost")


def test_without_an_authority_the_certificate_itself_is_trusted(tmp_path: Path) -> None:
    tls = a_secret(tmp_path / "a", with_ca=False)

    assert way_in(tls).ca_file == tls.cert_file


def test_a_node_that_wants_a_certificate_is_shown_its_own(tmp_path: Path) -> None:
    tls = a_secret(tmp_path / "a").model_copy(update={"client_ca_file": tmp_path / "a" / "ca.crt"})

    found = way_in(tls)

    assert (found.cert_file, found.key_file) == (tls.cert_file, tls.key_file)


@pytest.mark.parametrize(
    ("names", "dialled"),
    [
        (["docs.search.svc", "localhost"], "localhost"),
        (["docs.search.svc", "127.0.0.1"], "127.0.0.1"),
        (["docs.search.svc", "docs"], "docs.search.svc"),
        (["*.docs.search.svc"], "node.docs.search.svc"),
    ],
)
def test_a_name_of_this_machine_is_preferred(names: list[str], dialled: str) -> None:
    assert _dialled(names) == dialled


@pytest.mark.parametrize("wrong", ["tls.key", "ca.crt"])
def test_files_of_two_secrets_do_not_fit(tmp_path: Path, wrong: str) -> None:
    tls = a_secret(tmp_path / "a")
    a_secret(tmp_path / "b")
    (tmp_path / "b" / wrong).replace(tmp_path / "a" / wrong)

    with pytest.raises(InvalidConfig, match=r"spec\.security\.tls\.secretName: .* do not fit"):
        way_in(tls)


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    tls = a_secret(tmp_path / "a")
    tls.cert_file.write_text("nothing")

    with pytest.raises(InvalidConfig, match="do not fit"):
        way_in(tls)
