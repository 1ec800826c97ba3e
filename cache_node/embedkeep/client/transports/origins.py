"""Targets of HTTP: where nodes are, and under which path. Pure."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from embedkeep.errors import InvalidConfig

SCHEMES: Final = ("http://", "https://")
_PORTS: Final = {"http": 80, "https": 443}
_PATH: Final = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """One of a target's URLs."""

    secure: bool
    host: str
    """A name, or an IP address without brackets."""
    port: int
    path: str = ""
    """Put before the service's path: of a gateway that has others below it."""

    @property
    def literal(self) -> bool:
        """The host is an IP address, and no name."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    @property
    def authority(self) -> str:
        """For the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def is_http(target: str | Sequence[str]) -> bool:
    """Whether any of *target* is a URL, so that all must be."""
    return any(each.lower().startswith(SCHEMES) for each in _each(target))


def origins_of(target: str | Sequence[str], *, tls: bool) -> tuple[Origin, ...]:
    """The URLs of *target*.

    Args:
        target: One, several, or several as one text with commas between them.
        tls: Certificates were given.

    Raises:
        InvalidConfig: One is no such URL, or they are not alike; says which and why.
    """
    origins = tuple(map(_origin, _each(target)))
    if len({(origin.secure, origin.path) for origin in origins}) != 1:
        raise InvalidConfig(
            f"{_shown(target)}: several addresses must have the same scheme and path",
            field="target",
        )
    if tls and not origins[0].secure:
        raise InvalidConfig(
            f"{_shown(target)} is plain text, but certificates were given: write https://",
            field="target",
        )
    return origins


def _each(target: str | Sequence[str]) -> list[str]:
    return target.split(",") if isinstance(target, str) else list(target)


def _shown(target: str | Sequence[str]) -> str:
    return repr(target if isinstance(target, str) else list(target))


def _origin(url: str) -> Origin:
    def wrong(why: str) -> InvalidConfig:
        return InvalidConfig(
            f"{url!r} {why}: write http://host:port or https://host:port", field="target"
        )

    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise wrong("is no URL") from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise wrong("is no URL of HTTP")
    if parts.username is not None or parts.query or parts.fragment:
        raise wrong("has more than a host, a port and a path")
    path = parts.path.rstrip("/")
    if (
        not (url.isascii() and url.isprintable() and " " not in url and _PATH.fullmatch(path))
        or port == 0
    ):
        raise wrong("is no URL")
    return Origin(
        secure=parts.scheme == "https",
        host=parts.hostname,
        port=port or _PORTS[parts.scheme],
        path=path,
    )
