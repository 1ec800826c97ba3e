"""How calls are refused: with one of our errors, also when the request is no valid message.

gRPC decodes before a service sees anything, and reports what cannot be decoded as an unknown
failure of the server. `Decoding` decodes in the service's stead, so that the caller hears
INVALID_ARGUMENT. Used by our servers.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Never

import grpc
from google.protobuf.message import DecodeError, Message

from embedkeep.errors import (
    REASON_KEY,
    RETRY_KEY,
    EmbedKeepError,
    InvalidRequest,
    Retryable,
    status_of,
)

Context = grpc.aio.ServicerContext[Message, Message]
"""Of any call."""


async def refuse(context: Context, error: EmbedKeepError) -> Never:
    """End a call with *error*: its code, its class, and when a retry has a chance."""
    trailers = [(REASON_KEY, error.reason)]
    if isinstance(error, Retryable) and error.retry_after_s is not None:
        trailers.append((RETRY_KEY, str(round(error.retry_after_s * 1000))))
    await context.abort(status_of(error), str(error), tuple(trailers))
    raise AssertionError  # abort raises


def malformed(error: DecodeError) -> InvalidRequest:
    """What to say of bytes that are not the message that they should be."""
    return InvalidRequest(
        f"the request cannot be read: {error}; texts must be valid UTF-8, without lone surrogates"
    )


Handler = Any
"""grpc.RpcMethodHandler; its types know gRPC's threaded functions, not asyncio's."""


class _Malformed:
    """Stands where a message should be."""

    def __init__(self, error: DecodeError) -> None:
        self.error = malformed(error)


Decode = Callable[[bytes], Message]


def _tolerant(decode: Decode) -> Callable[[bytes], Message | _Malformed]:
    def attempt(data: bytes) -> Message | _Malformed:
        try:
            return decode(data)
        except DecodeError as error:
            return _Malformed(error)

    return attempt


class Decoding:
    """Stands for a server while services are added to it, and has them decode in this way.

    What cannot be decoded is refused as the caller's fault. A stream ends at such a message: what
    was asked before it is answered first. Not an interceptor: gRPC asks those for each call.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Nothing: what is registered by method goes first."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Handler]) -> None:
        """Add a service's methods."""
        self._server.add_registered_method_handlers(
            service, {name: _decoding(handler) for name, handler in handlers.items()}
        )


def _decoding(handler: Handler) -> Handler:
    decode = _tolerant(handler.request_deserializer)
    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(
            _unary(handler.unary_unary), decode, handler.response_serializer
        )
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(
            _unary(handler.unary_stream), decode, handler.response_serializer
        )
    return grpc.stream_stream_rpc_method_handler(
        _stream(handler.stream_stream), decode, handler.response_serializer
    )


def _unary(serve: Callable[[Message, Context], Awaitable[Message | None]]) -> Any:
    """Also for a coroutine that writes a stream of answers and returns none."""

    async def checked(request: Message | _Malformed, context: Context) -> Message | None:
        if isinstance(request, _Malformed):
            await refuse(context, request.error)
        return await serve(request, context)

    return checked


def _stream(serve: Callable[[AsyncIterator[Message], Context], Awaitable[None]]) -> Any:
    async def checked(requests: AsyncIterator[Message | _Malformed], context: Context) -> None:
        bad: list[_Malformed] = []

        async def readable() -> AsyncIterator[Message]:
            async for request in requests:
                if isinstance(request, _Malformed):
                    bad.append(request)
                    return
                yield request

        await serve(readable(), context)
        for request in bad:
            await refuse(context, request.error)

    return checked
