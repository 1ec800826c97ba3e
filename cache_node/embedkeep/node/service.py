"""embedkeep.v1.EmbeddingCache over gRPC: streams, and errors in terms of gRPC.

What a single message is answered with is `unary`'s business.
"""

import asyncio
from collections.abc import AsyncIterator

import grpc
import structlog

from embedkeep.errors import EmbedKeepError, Retryable, code_of
from embedkeep.node.calls import Calls
from embedkeep.node.unary import Metadata, Unary
from embedkeep.refusal import Context, refuse
from embedkeep.v1 import cache_pb2, cache_pb2_grpc

log = structlog.stdlib.get_logger()


class CacheService(cache_pb2_grpc.EmbeddingCacheServicer):
    """Serves one cache.

    Args:
        unary: Answers.
        calls: Streams are counted in as calls.
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
            return await self._unary.embed(request, _metadata(context), context.time_remaining())
        except EmbedKeepError as error:
            await refuse(context, error)

    async def EmbedStream(  # type: ignore[override]  # noqa: N802 - gRPC also takes a coroutine that writes
        self, request_iterator: AsyncIterator[cache_pb2.EmbedStreamRequest], context: Context
    ) -> None:
        """See the .proto file."""
        try:
            with self._calls.entered(_metadata(context)):
                await self._stream(request_iterator, context)
        except EmbedKeepError as error:
            await refuse(context, error)

    async def Import(  # noqa: N802 - the wire's name
        self, request: cache_pb2.ImportRequest, context: Context
    ) -> cache_pb2.ImportResponse:
        """See the .proto file."""
        try:
            return await self._unary.import_pairs(
                request, _metadata(context), context.time_remaining()
            )
        except EmbedKeepError as error:
            await refuse(context, error)

    async def Invalidate(  # noqa: N802 - the wire's name
        self, request: cache_pb2.InvalidateRequest, context: Context
    ) -> cache_pb2.InvalidateResponse:
        """See the .proto file."""
        try:
            return await self._unary.invalidate(
                request, _metadata(context), context.time_remaining()
            )
        except EmbedKeepError as error:
            await refuse(context, error)

    async def Info(  # noqa: N802 - the wire's name
        self, request: cache_pb2.InfoRequest, context: Context
    ) -> cache_pb2.InfoResponse:
        """See the .proto file."""
        try:
            return await self._unary.info(request, _metadata(context), context.time_remaining())
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
            response = await self._unary.embed_in_stream(
                message.request, _metadata(context), timeout_s
            )
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


def _metadata(context: Context) -> Metadata:
    return context.invocation_metadata() or ()
