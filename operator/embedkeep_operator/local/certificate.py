"""Looks at the node's certificate before anything is started. Standard library alone.

A handshake in memory tells what a client would see: that key and certificate fit, that ca.crt
signed it, and which name to dial it by.
"""

import ssl
from pathlib import Path
from typing import Final

from embedkeep.config import ClientTls, ServerTls
from embedkeep.errors import InvalidConfig

FIELD: Final = "spec.security.tls.secretName"
LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1")


def way_in(tls: ServerTls) -> ClientTls:
    """How this machine's own processes reach the node.

    They trust ca.crt, or the certificate itself where there is none; a node that wants a
    certificate from its clients is shown its own.

    Raises:
        InvalidConfig: The files do not fit one another, or the certificate carries no name.
    """
    authority = tls.cert_file.with_name("ca.crt")
    trusted = authority if authority.is_file() else tls.cert_file
    try:
        names = _names(tls.cert_file, tls.key_file, trusted)
    except (ssl.SSLError, OSError) as error:
        raise InvalidConfig(
            f"{tls.cert_file.parent}: tls.crt, tls.key and ca.crt do not fit: {error}", field=FIELD
        ) from error
    if not names:
        raise InvalidConfig(f"{tls.cert_file} carries no name (SAN)", field=FIELD)
    shown = tls.client_ca_file is not None
    return ClientTls(
        ca_file=trusted,
        cert_file=tls.cert_file if shown else None,
        key_file=tls.key_file if shown else None,
        server_name=_dialled(names),
    )


def _dialled(names: list[str]) -> str:
    for name in LOOPBACK_NAMES:
        if name in names:
            return name
    return names[0].replace("*", "node", 1)


def _names(cert: Path, key: Path, trusted: Path) -> list[str]:
    """The DNS names and addresses that a client reads from the certificate."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(cert, key)
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.check_hostname = False  # the name is what is looked for
    asking.load_verify_locations(trusted)
    asking.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as gRPC does
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = asking.wrap_bio(down, up)
    server = serving.wrap_bio(up, down, server_side=True)
    done = [False, False]
    while not all(done):
        done = [_step(client), _step(server)]
    peer = client.getpeercert() or {}
    pairs = peer.get("subjectAltName", ())
    return [str(pair[1]) for pair in pairs if pair[0] in {"DNS", "IP Address"}]


def _step(side: ssl.SSLObject) -> bool:
    """Go on with a handshake; whether this side is done."""
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
