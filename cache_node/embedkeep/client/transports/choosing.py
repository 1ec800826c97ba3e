"""Which transport a target asks for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedkeep.client.dialling import credentials, target_of
from embedkeep.client.transports.grpc_aio import AsyncGrpcTransport
from embedkeep.client.transports.grpc_sync import GrpcTransport
from embedkeep.client.transports.http_aio import AsyncHttpTransport
from embedkeep.client.transports.http_sync import HttpTransport
from embedkeep.client.transports.origins import Origin, is_http, origins_of

if TYPE_CHECKING:
    import ssl

    from embedkeep.channels import Credentials
    from embedkeep.config import ClientTls  # see options

Transport = GrpcTransport | HttpTransport
AsyncTransport = AsyncGrpcTransport | AsyncHttpTransport


def transport_to(target: str | Sequence[str], tls: "ClientTls | None") -> Transport:
    """For threads.

    Raises:
        InvalidConfig: The target is no address, or a certificate cannot be read.
    """
    name = None if tls is None else tls.server_name
    if is_http(target):
        return HttpTransport(shown(target), *_over_http(target, tls), server_name=name)
    return GrpcTransport(target_of(target), credentials(tls), server_name=name)


def async_transport_to(target: str | Sequence[str], tls: "ClientTls | None") -> AsyncTransport:
    """For asyncio; as `transport_to`."""
    name = None if tls is None else tls.server_name
    if is_http(target):
        return AsyncHttpTransport(shown(target), *_over_http(target, tls), server_name=name)
    return AsyncGrpcTransport(target_of(target), credentials(tls), server_name=name)


def shown(target: str | Sequence[str]) -> str:
    """*target* as one text.

    Raises:
        InvalidConfig: It is no address.
    """
    if not is_http(target):
        return target_of(target)
    origins_of(target, tls=False)
    return target if isinstance(target, str) else ",".join(target)


def _over_http(
    target: str | Sequence[str], tls: "ClientTls | None"
) -> "tuple[tuple[Origin, ...], Credentials[ssl.SSLContext] | None]":
    origins = origins_of(target, tls=tls is not None)
    if not origins[0].secure:
        return origins, None
    # pydantic only where it is used
    from embedkeep.config import ClientTls  # noqa: PLC0415
    from embedkeep.tls import FollowedCredentials, client_context  # noqa: PLC0415

    return origins, FollowedCredentials(tls or ClientTls(), client_context)
