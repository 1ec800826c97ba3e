"""Credentials from files, for servers and for channels, with one way of saying what is missing."""

from pathlib import Path

import grpc

from embedkeep.config import ClientTls, ServerTls
from embedkeep.errors import InvalidConfig


def server_credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Credentials that follow the files: a renewed certificate is shown from the next handshake on.

    A pair that is half written or wrong keeps the last good one.

    Raises:
        InvalidConfig: A file cannot be read now.
    """
    first = _server_config(tls)
    shown: tuple[int, ...] = ()  # so the first handshake looks again: files may change till then

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        try:
            if (versions := _versions(tls)) == shown:
                return None
            config = _server_config(tls)
        except (OSError, InvalidConfig):
            return None
        shown = versions
        return config

    return grpc.dynamic_ssl_server_credentials(
        first,
        renewed,  # type: ignore[arg-type]  # None keeps what is shown: gRPC's docs allow it
        require_client_authentication=tls.client_ca_file is not None,
    )


def channel_credentials(tls: ClientTls) -> grpc.ChannelCredentials:
    """What a client trusts and shows.

    Raises:
        InvalidConfig: A file cannot be read, or only one of cert_file and key_file is given.
    """
    if (tls.cert_file is None) != (tls.key_file is None):
        raise InvalidConfig("give both cert_file and key_file, or neither", field="tls")
    return grpc.ssl_channel_credentials(
        root_certificates=_read(tls.ca_file, "ca_file") if tls.ca_file else None,
        private_key=_read(tls.key_file, "key_file") if tls.key_file else None,
        certificate_chain=_read(tls.cert_file, "cert_file") if tls.cert_file else None,
    )


def channel_options(tls: ClientTls | None) -> list[tuple[str, str]]:
    """Options that make the server's name match, where it is not the host dialled."""
    if tls is None or tls.server_name is None:
        return []
    return [("grpc.ssl_target_name_override", tls.server_name)]


def _server_config(tls: ServerTls) -> grpc.ServerCertificateConfiguration:
    pair = (_read(tls.key_file, "key_file"), _read(tls.cert_file, "cert_file"))
    authority = _read(tls.client_ca_file, "client_ca_file") if tls.client_ca_file else None
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=authority)


def _versions(tls: ServerTls) -> tuple[int, ...]:
    files = (tls.cert_file, tls.key_file, tls.client_ca_file)
    return tuple(file.stat().st_mtime_ns for file in files if file is not None)


def _read(file: Path, field: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidConfig(
            f"{file} cannot be read: {error.strerror}", field=f"tls.{field}"
        ) from error
