"""embedkeep.v1.EmbeddingCache over gRPC: streams, and errors in terms of gRPC.

What a single message is answered with is `unary`'s business.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace

import grpc
import structlog

from embedkeep.errors import EmbedKeepError, Retryable, code_of
from embedkeep.node.calls import Calls
from embedkeep.node.trace import trace_of
from embedkeep.node.unary import Sender, Unary
from embedkeep.refusal import Context, refuse
from embedkeep.v1 import cache_pb2, cache_pb2_grpc

log = structlog.stdlib.get_logger()


class CacheService(cache_pb2_grpc.EmbeddingCacheServicer):
    """Serves one cache.

    Args:
        unary: Answers.
        calls: Who may call, and how many there may be.
        max_stream_requests: Of one stream, answered at once.
    """

    def __init__(self, unary: Unary, *, calls: Calls, max_stream_requests: int) -> None:
        self._unary = unary
        self._calls = calls
        self._max_stream_requests = max_stream_requests
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Read no further from streams; what they have asked is still answered."""
        self._draining.set()

    async def Embed(  # noqa: N802 - the wire's name
        self, request: cache_pb2.EmbedRequest, context: Context
    ) -> cache_pb2.EmbedResponse:
        """See the .proto file."""
        try:
            with self._let_in(context) as sender:
                return await self._unary.embed(request, sender)
        except EmbedKeepError as error:
            await refuse(context, error)

    async def EmbedStream(  # type: ignore[override]  # noqa: N802 - gRPC also takes a coroutine that writes
        self, request_iterator: AsyncIterator[cache_pb2.EmbedStreamRequest], context: Context
    ) -> None:
        """See the .proto file."""
        try:
            with self._let_in(context):
                await self._stream(request_iterator, context)
        except EmbedKeepError as error:
            await refuse(context, error)

    async def Import(  # noqa: N802 - the wire's name
        self, request: cache_pb2.ImportRequest, context: Context
    ) -> cache_pb2.ImportResponse:
        """See the .proto file."""
        try:
            with self._let_in(context) as sender:
                return await self._unary.import_pairs(request, sender)
        except EmbedKeepError as error:
            await refuse(context, error)

    async def Invalidate(  # noqa: N802 - the wire's name
        self, request: cache_pb2.InvalidateRequest, context: Context
    ) -> cache_pb2.InvalidateResponse:
        """See the .proto file."""
        try:
            with self._let_in(context) as sender:
                return await self._unary.invalidate(request, sender)
        except EmbedKeepError as error:
            await refuse(context, error)

    async def Info(  # noqa: N802 - the wire's name
        self, request: cache_pb2.InfoRequest, context: Context
    ) -> cache_pb2.InfoResponse:
        """See the .proto file."""
        try:
            # Not counted in: a full node still says what it is.
            return await self._unary.info(request, self._sender(context))
        except EmbedKeepError as error:
            await refuse(context, error)

    async def _stream(
        self, messages: AsyncIterator[cache_pb2.EmbedStreamRequest], context: Context
    ) -> None:
        slots = asyncio.Semaphore(self._max_stream_requests)
        writing = asyncio.Lock()

        async def answer(message: cache_pb2.EmbedStreamRequest) -> None:
            try:
                response = await self._in_band(message, context)
                async with writing:
                    await context.write(response)
            finally:
                slots.release()

        try:
            async with asyncio.TaskGroup() as answers:
                async for message in self._until_draining(messages):
                    await slots.acquire()
                    answers.create_task(answer(message), name=f"stream request {message.id}")
        except* grpc.aio.BaseError:  # the caller has left while it was written to
            log.debug("a stream was left")

    async def _in_band(
        self, message: cache_pb2.EmbedStreamRequest, context: Context
    ) -> cache_pb2.EmbedStreamResponse:
        timeout_s = message.timeout_ms / 1000 if message.timeout_ms else None
        try:
            # Each time: a key may be withdrawn while its stream lasts.
            sender = replace(self._sender(context), left_s=timeout_s)
            response = await self._unary.embed(message.request, sender)
        except EmbedKeepError as error:
            after_s = error.retry_after_s if isinstance(error, Retryable) else None
            return cache_pb2.EmbedStreamResponse(
                id=message.id,
                error=cache_pb2.StreamError(
                    code=code_of(error),
                    reason=error.reason,
                    message=str(error),
                    retry_after_ms=round((after_s or 0) * 1000),
                ),
            )
        return cache_pb2.EmbedStreamResponse(id=message.id, response=response)

    async def _until_draining(
        self, messages: AsyncIterator[cache_pb2.EmbedStreamRequest]
    ) -> AsyncIterator[cache_pb2.EmbedStreamRequest]:
        draining = asyncio.create_task(self._draining.wait(), name="stream drain")
        read: asyncio.Future[cache_pb2.EmbedStreamRequest] | None = None
        try:
            while True:
                read = asyncio.ensure_future(anext(messages))
                await asyncio.wait({read, draining}, return_when=asyncio.FIRST_COMPLETED)
                if not read.done():
                    return
                try:
                    yield read.result()
                except StopAsyncIteration:
                    return
        finally:
            draining.cancel()
            if read is not None:
                read.cancel()

    @contextmanager
    def _let_in(self, context: Context) -> Iterator[Sender]:
        """Count a call in while the block runs."""
        metadata = context.invocation_metadata() or ()
        with self._calls.entered(metadata) as tenant:
            yield Sender(tenant=tenant, trace=trace_of(metadata), left_s=context.time_remaining())

    def _sender(self, context: Context) -> Sender:
        """Whose a message is, without counting."""
        metadata = context.invocation_metadata() or ()
        return Sender(tenant=self._calls.caller(metadata), trace=trace_of(metadata))
