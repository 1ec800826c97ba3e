"""How a client reaches nodes: targets, credentials and channel options, for both shells."""

import ipaddress
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from embedkeep.channels import Credentials
from embedkeep.client.transports.messages import MAX_RECEIVE_BYTES
from embedkeep.errors import InvalidConfig

if TYPE_CHECKING:
    import grpc

    from embedkeep.config import ClientTls  # see options

_SCHEME: Final = re.compile(r"^(dns|ipv4|ipv6):")
_SCHEMES: Final = ("dns:", "unix:", "ipv4:", "ipv6:", "xds:")
"""A target with a scheme has its own grammar, which gRPC checks."""
_HOST_PORT: Final = re.compile(r"(?:[^\s:/\[\]]+|\[[^\s/\[\]]+\]):([0-9]{1,5})")
"""Of an IPv6 address in brackets, as in a URL."""
_SERVICE: Final = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})

_OPTIONS: Final[tuple[tuple[str, str | int], ...]] = (
    ("grpc.service_config", _SERVICE),
    ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
    ("grpc.max_send_message_length", -1),  # the node's Info bounds requests
    # A node that vanished without a word is noticed within 40 s, also between calls.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC's own second between attempts would outlast our retries while a node restarts.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
)


def target_of(target: str | Sequence[str]) -> str:
    """A gRPC target. Several addresses become one that is balanced over all of them.

    Args:
        target: One, several, or several as one text with commas between them.

    Raises:
        InvalidConfig: Empty, without a port, or one of several is no IP address.
    """
    if isinstance(target, str):
        several = "," in target and not target.startswith(_SCHEMES)
        return target_of(target.split(",")) if several else _checked(target)
    if len(target) == 1:
        return _checked(target[0])
    versions = {_ip_version(address) for address in target}
    if len(versions) != 1:
        raise InvalidConfig(
            f"{list(target)!r}: give one address, several of IPv4, or several of IPv6",
            field="target",
        )
    return f"ipv{versions.pop()}:{','.join(target)}"


def channel_options(target: str, server_name: str | None) -> list[tuple[str, str | int]]:
    """For a sync or an asyncio channel to *target*, as `target_of` returns it."""
    options = list(_OPTIONS)
    if _is_here(target):
        # A proxy that http_proxy names would look for the node on its own machine.
        options.append(("grpc.enable_http_proxy", 0))
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    return options


def credentials(tls: "ClientTls | None") -> "Credentials[grpc.ChannelCredentials] | None":
    """What to trust and to show; None: plain text.

    Raises:
        InvalidConfig: A file cannot be read.
    """
    if tls is None:
        return None
    # pydantic only where it is used
    from embedkeep.tls import FollowedCredentials, channel_credentials  # noqa: PLC0415

    return FollowedCredentials(tls, channel_credentials)


def _checked(target: str) -> str:
    if not target.startswith(_SCHEMES) and not _is_host_port(target):
        scheme, found, _ = target.partition("://")
        why = f"has an unknown scheme, {scheme}://" if found else "is no address"
        raise InvalidConfig(
            f"{target!r} {why}: write http://host:port, https://host:port, host:port for gRPC, "
            "or dns:///name:port for gRPC to several nodes behind one name",
            field="target",
        )
    return target


def _is_host_port(target: str) -> bool:
    found = _HOST_PORT.fullmatch(target)
    return found is not None and 0 < int(found[1]) < 65536


def _is_here(target: str) -> bool:
    """All addresses of *target* are loopback ones."""
    hosts = (
        address.rpartition(":")[0].strip("[]")
        for address in _SCHEME.sub("", target).rpartition("/")[2].split(",")
    )
    return all(host == "localhost" or _is_loopback(host) for host in hosts)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _ip_version(address: str) -> int:
    host, _, _ = _checked(address).rpartition(":")
    try:
        return ipaddress.ip_address(host.strip("[]")).version
    except ValueError as error:
        raise InvalidConfig(
            f"{address!r}: of several addresses each must be an IP address with a port; for a "
            "name write dns:///name:port",
            field="target",
        ) from error
