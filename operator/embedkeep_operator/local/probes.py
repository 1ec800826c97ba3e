"""Asks a process whether it is ready. Each answers within its own time, and never raises."""

import asyncio
import contextlib
from typing import Final

import grpc
from grpc_health.v1 import health_pb2

from embedkeep.config import ClientTls
from embedkeep.errors import InvalidConfig
from embedkeep.tls import channel_credentials, channel_options

PROBE_TIMEOUT_S: Final = 2.0
LOOPBACK_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.enable_http_proxy", 0),  # what is asked is on this machine
    ("grpc.use_local_subchannel_pool", 1),  # else a refused connection is not tried again soon
)


def loopback_channel(port: int, tls: ClientTls | None) -> grpc.aio.Channel:
    """A channel to a process on this machine.

    Raises:
        InvalidConfig: A certificate cannot be read.
    """
    address = f"127.0.0.1:{port}"
    options = [*LOOPBACK_OPTIONS, *channel_options(tls)]
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, channel_credentials(tls), options=options)


async def grpc_health(port: int, tls: ClientTls | None = None) -> str | None:
    """None when grpc.health.v1 says SERVING, else why not."""
    try:
        async with loopback_channel(port, tls) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            answer = await check(health_pb2.HealthCheckRequest(), timeout=PROBE_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name.lower().replace('_', ' ')}: {error.details()}"
    except InvalidConfig as error:
        return str(error)
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return None
    return "it says that it is not serving"


async def valkey_ping(port: int, password: str) -> str | None:
    """None when Valkey answers PING after AUTH, else why not."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"AUTH {password}\r\nPING\r\n".encode())
            answers = [(await reader.readline()).decode(errors="replace").strip() for _ in "ap"]
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return error.strerror or str(error)
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    return None if answers == ["+OK", "+PONG"] else f"it answers {answers}"
