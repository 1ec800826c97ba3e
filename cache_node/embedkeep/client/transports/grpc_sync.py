"""gRPC for threads: a channel, which is replaced when its certificates are."""

from collections.abc import Callable
from functools import partial
from typing import Protocol, cast

import grpc

from embedkeep.channels import CLOSED, Credentials, Line, Lines
from embedkeep.client.dialling import channel_options
from embedkeep.client.exchange import Metadata, Request, Response
from embedkeep.client.wire import error_of
from embedkeep.errors import EmbedKeepError, Unavailable
from embedkeep.v1 import cache_pb2, cache_pb2_grpc


class _Pending(Protocol):
    """What is used of a gRPC future, whose own type takes no parameter at run time."""

    def add_done_callback(self, fn: Callable[[object], None]) -> None: ...
    def cancel(self) -> bool: ...
    def exception(self) -> Exception | None: ...
    def result(self) -> Response: ...


class _Method(Protocol):
    """One of the stub's methods; each is only given the request it is for."""

    def __call__(self, request: Request, *, timeout: float, metadata: Metadata) -> Response: ...
    def future(self, request: Request, *, timeout: float, metadata: Metadata) -> _Pending: ...


_Line = Line[grpc.Channel, cache_pb2_grpc.EmbeddingCacheStub]


class _Flight:
    """A request under way."""

    def __init__(self, pending: _Pending, line: _Line, transport: "GrpcTransport") -> None:
        self._pending = pending
        self._line = line
        self._transport = transport

    def result(self) -> Response:
        """Once it has landed."""
        try:
            error = self._pending.exception()
        except grpc.FutureCancelledError as cancelled:
            if self._transport.closed:
                raise Unavailable(CLOSED) from cancelled
            raise
        finally:
            self._transport.give_back(self._line)
        if isinstance(error, grpc.RpcError):
            raise self._transport.error_of(error) from error
        if error is not None:
            raise error
        return self._pending.result()

    def cancel(self) -> None:
        """Let it end soon; nobody wants its answer."""
        self._pending.cancel()
        self._transport.give_back(self._line)


class GrpcTransport:
    """Sends requests over gRPC. Thread-safe; does not survive a fork.

    Args:
        target: As `dialling.target_of` returns it.
        credentials: None: plain text.
        server_name: In the node's certificate. None: the host in the target.
    """

    def __init__(
        self,
        target: str,
        credentials: Credentials[grpc.ChannelCredentials] | None,
        *,
        server_name: str | None,
    ) -> None:
        self._target = target
        self._lines = Lines(
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

    def call(self, request: Request, metadata: Metadata, *, timeout_s: float) -> Response:
        """Send *request* and wait for its answer.

        Raises:
            EmbedKeepError: There is none.
        """
        line = self._lines.take()
        try:
            return _method(line.stub, request)(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise self.error_of(error) from error
        except ValueError as error:  # how gRPC says that a channel was closed
            if self.closed:
                raise Unavailable(CLOSED) from error
            raise
        finally:
            self.give_back(line)

    def begin(
        self,
        request: Request,
        metadata: Metadata,
        *,
        timeout_s: float,
        landed: Callable[[], None],
    ) -> _Flight:
        """Send *request*.

        Args:
            landed: Called, in any thread, once the answer or the error is there.
        """
        line = self._lines.take()
        try:
            call = _method(line.stub, request).future(request, timeout=timeout_s, metadata=metadata)
        except BaseException as error:
            self.give_back(line)
            if isinstance(error, ValueError) and self.closed:
                raise Unavailable(CLOSED) from error
            raise
        call.add_done_callback(lambda _: landed())
        return _Flight(call, line, self)

    def close(self) -> None:
        """Close the channels; calls under way raise Unavailable."""
        for channel in self._lines.close():
            channel.close()

    def error_of(self, error: grpc.RpcError) -> EmbedKeepError:
        """*error* as ours. Where nobody was found, certificates may have changed."""
        if self.closed:
            return Unavailable(CLOSED)
        ours = error_of(error, target=self._target)
        if isinstance(ours, Unavailable):
            self._lines.doubt()
        return ours

    def give_back(self, line: _Line) -> None:
        """A request is over."""
        for channel in self._lines.give_back(line):
            channel.close()


def _dial(
    target: str, options: list[tuple[str, str | int]], trusted: grpc.ChannelCredentials | None
) -> tuple[grpc.Channel, cache_pb2_grpc.EmbeddingCacheStub]:
    channel = (
        grpc.insecure_channel(target, options)
        if trusted is None
        else grpc.secure_channel(target, trusted, options)
    )
    return channel, cache_pb2_grpc.EmbeddingCacheStub(channel)


def _method(stub: cache_pb2_grpc.EmbeddingCacheStub, request: Request) -> _Method:
    if isinstance(request, cache_pb2.EmbedRequest):
        return cast("_Method", stub.Embed)
    if isinstance(request, cache_pb2.ImportRequest):
        return cast("_Method", stub.Import)
    if isinstance(request, cache_pb2.InfoRequest):
        return cast("_Method", stub.Info)
    return cast("_Method", stub.Invalidate)
