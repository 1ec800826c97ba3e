"""Credentials from files, for servers and for channels, with one way of saying what is missing."""

import ssl
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Generic, TypeVar

import grpc

from embedkeep.config import ClientTls, ServerTls
from embedkeep.errors import InvalidConfig

LOOK_EVERY_S: Final = 5.0
"""How often a client looks whether its files have changed. Servers end connections after minutes
only, so an orderly rotation is noticed well before the old certificates are refused."""

CredentialsT = TypeVar("CredentialsT")

Versions = tuple[tuple[int, int, int, int], ...]
"""Of each file: when it was written, when it or who may read it was changed, which file it is, and
its size."""


def server_credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Credentials that follow the files: a renewed certificate is shown from the next handshake on.

    A pair that is half written or wrong keeps the last good one.

    Raises:
        InvalidConfig: A file cannot be read now.
    """
    first = _server_config(tls)
    files = (tls.cert_file, tls.key_file, tls.client_ca_file)
    shown: Versions = ()  # so the first handshake looks again: files may change till then

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        try:
            if (versions := _versions(files)) == shown:
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


def server_context(tls: ServerTls) -> ssl.SSLContext:
    """The same for servers that speak TLS through Python, as the HTTP facades do.

    Raises:
        InvalidConfig: A file cannot be read now, or is not what it should be.
    """
    files = (tls.cert_file, tls.key_file, tls.client_ca_file)
    _server_config(tls)  # says which file cannot be read
    try:
        newest = _server_context(tls)
    except (OSError, ssl.SSLError) as error:
        raise InvalidConfig(
            f"{tls.cert_file} and {tls.key_file} are no certificate and its key in PEM: {error}",
            field="tls.cert_file",
        ) from error
    shown: Versions = ()

    def renew(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called as each handshake begins, whether the client names a host or not."""
        nonlocal newest, shown
        try:
            if (versions := _versions(files)) != shown:
                newest, shown = _server_context(tls), versions
        except (OSError, ssl.SSLError):
            pass  # half written or wrong: the last good ones stay
        connection.context = newest

    first = _server_context(tls)
    first.sni_callback = renew
    return first


def channel_credentials(tls: ClientTls) -> grpc.ChannelCredentials:
    """What a client trusts and shows.

    Raises:
        InvalidConfig: A file cannot be read or is not what it should be, or only one of cert_file
            and key_file is given.
    """
    _check(tls)
    return grpc.ssl_channel_credentials(
        root_certificates=_read(tls.ca_file, "ca_file") if tls.ca_file else None,
        private_key=_read(tls.key_file, "key_file") if tls.key_file else None,
        certificate_chain=_read(tls.cert_file, "cert_file") if tls.cert_file else None,
    )


def client_context(tls: ClientTls) -> ssl.SSLContext:
    """The same for clients that speak TLS through Python.

    Without a `ca_file` the system's authorities are trusted.

    Raises:
        InvalidConfig: As for `channel_credentials`, or the certificate is too weak.
    """
    _check(tls)
    context = ssl.create_default_context(cafile=tls.ca_file)
    context.set_alpn_protocols(["http/1.1"])
    if tls.cert_file is not None:
        try:
            context.load_cert_chain(tls.cert_file, tls.key_file, password="")
        except ssl.SSLError as error:  # Python's rules on what is too weak are stricter than gRPC's
            raise InvalidConfig(
                f"{tls.cert_file} cannot be shown over HTTP: {error.reason}", field="tls.cert_file"
            ) from error
    return context


class FollowedCredentials(Generic[CredentialsT]):
    """A client's credentials, made anew when their files have changed.

    Files that are half written, missing or do not fit keep the last good ones. Thread-safe.

    Args:
        make: `channel_credentials` for gRPC, `client_context` for what speaks TLS through Python.
        clock: Monotonic seconds.

    Raises:
        InvalidConfig: As for *make*.
    """

    def __init__(
        self,
        tls: ClientTls,
        make: Callable[[ClientTls], CredentialsT],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tls = tls
        self._make = make
        self._clock = clock
        self._files = (tls.ca_file, tls.cert_file, tls.key_file)
        # Before they are read, so that a change meanwhile is found by the next look.
        try:
            self._seen = _versions(self._files)
        except OSError:
            self._seen = ()  # reading says which
        self._newest = make(tls)
        self._look_at = clock() + LOOK_EVERY_S

    def newest(self) -> CredentialsT:
        """The same object for as long as nothing has changed. Looks at most every 5 s.

        A look is three calls of stat, so that it may be done on an event loop.
        """
        if (now := self._clock()) >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            self._look()
        return self._newest

    def doubt(self) -> None:
        """A call found nobody: have the next `newest` look."""
        self._look_at = self._clock()

    def _look(self) -> None:
        try:
            if (versions := _versions(self._files)) == self._seen:
                return
            try:
                renewed = self._make(self._tls)
            except InvalidConfig:
                renewed = self._newest
            if versions != _versions(self._files):
                return  # they are being written: the next look finds them whole
        except OSError:
            return
        self._seen = versions  # also of bad ones: they are read once, and not for each look
        self._newest = renewed


def channel_options(tls: ClientTls | None) -> list[tuple[str, str]]:
    """Options that make the server's name match, where it is not the host dialled."""
    if tls is None or tls.server_name is None:
        return []
    return [("grpc.ssl_target_name_override", tls.server_name)]


def _server_config(tls: ServerTls) -> grpc.ServerCertificateConfiguration:
    pair = (_read(tls.key_file, "key_file"), _read(tls.cert_file, "cert_file"))
    authority = _read(tls.client_ca_file, "client_ca_file") if tls.client_ca_file else None
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=authority)


def _server_context(tls: ServerTls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    # Without a password it would ask for one at the terminal.
    context.load_cert_chain(tls.cert_file, tls.key_file, password="")
    if tls.client_ca_file is not None:
        context.load_verify_locations(tls.client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _versions(files: Iterable[Path | None]) -> Versions:
    found = [file.stat() for file in files if file is not None]
    return tuple((each.st_mtime_ns, each.st_ctime_ns, each.st_ino, each.st_size) for each in found)


def _check(tls: ClientTls) -> None:
    """Refuse files that cannot be used: gRPC itself would only make a channel whose calls all fail.

    Raises:
        InvalidConfig: See `channel_credentials`.
    """
    if (tls.cert_file is None) != (tls.key_file is None):
        raise InvalidConfig("give both cert_file and key_file, or neither", field="tls")
    files = {"ca_file": tls.ca_file, "cert_file": tls.cert_file, "key_file": tls.key_file}
    for field, file in files.items():
        if file is not None:
            _read(file, field)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # What is too weak is for the handshake to say, by the rules of gRPC's own library.
    context.set_ciphers("ALL:@SECLEVEL=0")
    try:
        if tls.ca_file is not None:
            context.load_verify_locations(tls.ca_file)
    except ssl.SSLError as error:
        raise InvalidConfig(
            f"{tls.ca_file} holds no certificate in PEM", field="tls.ca_file"
        ) from error
    try:
        if tls.cert_file is not None:
            # Without a password it would ask for one at the terminal.
            context.load_cert_chain(tls.cert_file, tls.key_file, password="")
    except ssl.SSLError as error:
        raise InvalidConfig(
            f"{tls.cert_file} and {tls.key_file} are no certificate and its key in PEM",
            field="tls.cert_file",
        ) from error


def _read(file: Path, field: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidConfig(
            f"{file} cannot be read: {error.strerror}", field=f"tls.{field}"
        ) from error
