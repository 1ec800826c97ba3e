"""gRPC for asyncio: a channel, which is replaced when its certificates are."""

from functools import partial

import grpc

from embedkeep.channels import CLOSED, AsyncLines, Credentials, Lines, lent
from embedkeep.client.dialling import channel_options
from embedkeep.client.exchange import Metadata, Request, Response
from embedkeep.client.wire import error_of
from embedkeep.errors import Unavailable
from embedkeep.v1 import cache_pb2, cache_pb2_grpc


class AsyncGrpcTransport:
    """Sends requests over gRPC, from one event loop. As `GrpcTransport`."""

    def __init__(
        self,
        target: str,
        credentials: Credentials[grpc.ChannelCredentials] | None,
        *,
        server_name: str | None,
    ) -> None:
        self._target = target
        self._lines: AsyncLines[cache_pb2_grpc.EmbeddingCacheAsyncStub] = Lines(
            partial(_dial, target, channel_options(target, server_name)), credentials
        )

    @property
    def closed(self) -> bool:
        """No more requests."""
        return self._lines.closed

    @property
    def dialled(self) -> bool:
        """There is something to close."""
        return self._lines.dialled

    async def call(self, request: Request, metadata: Metadata, *, timeout_s: float) -> Response:
        """Send *request* and wait for its answer.

        Raises:
            EmbedKeepError: There is none.
        """
        try:
            async with lent(self._lines) as stub:
                return await _sent(stub, request, metadata, timeout_s)
        except grpc.RpcError as error:
            if self.closed:
                raise Unavailable(CLOSED) from error
            raise error_of(error, target=self._target) from error

    async def close(self) -> None:
        """Close the channels; calls under way raise Unavailable."""
        for channel in self._lines.close():
            await channel.close()


async def _sent(
    stub: "cache_pb2_grpc.EmbeddingCacheAsyncStub",  # a name for types only
    request: Request,
    metadata: Metadata,
    timeout_s: float,
) -> Response:
    if isinstance(request, cache_pb2.EmbedRequest):
        return await stub.Embed(request, timeout=timeout_s, metadata=metadata)
    if isinstance(request, cache_pb2.ImportRequest):
        return await stub.Import(request, timeout=timeout_s, metadata=metadata)
    if isinstance(request, cache_pb2.InfoRequest):
        return await stub.Info(request, timeout=timeout_s, metadata=metadata)
    return await stub.Invalidate(request, timeout=timeout_s, metadata=metadata)


def _dial(
    target: str, options: list[tuple[str, str | int]], trusted: grpc.ChannelCredentials | None
) -> "tuple[grpc.aio.Channel, cache_pb2_grpc.EmbeddingCacheAsyncStub]":
    channel = (
        grpc.aio.insecure_channel(target, options)
        if trusted is None
        else grpc.aio.secure_channel(target, trusted, options)
    )
    return channel, cache_pb2_grpc.EmbeddingCacheStub(channel)
