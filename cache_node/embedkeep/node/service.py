"""The wire: embedkeep.v1.EmbeddingCache in terms of `cache`, and errors in terms of gRPC."""

import asyncio
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Final

import grpc
import structlog

from embedkeep import views
from embedkeep.config import NodeConfig
from embedkeep.errors import EmbedKeepError, InvalidRequest, Retryable, code_of
from embedkeep.node.agreement import Agreement
from embedkeep.node.cache import Cache
from embedkeep.node.calls import Calls, check_count
from embedkeep.node.exchange import Answer, Request, check
from embedkeep.node.imports import Importer
from embedkeep.node.imports_wire import batch_of, response_of
from embedkeep.node.tenants import Partition
from embedkeep.node.trace import Trace, trace_of
from embedkeep.node.wire import SOURCES, URGENCIES
from embedkeep.refusal import Context, refuse
from embedkeep.v1 import cache_pb2, cache_pb2_grpc

log = structlog.stdlib.get_logger()

MESSAGE_CHARS: Final = 200
"""Longest message of one row's error. A call's own error is never cut."""

_ENCODINGS: Final = {
    cache_pb2.ENCODING_UNSPECIFIED: views.Encoding.FLOAT32,
    cache_pb2.ENCODING_FLOAT32: views.Encoding.FLOAT32,
    cache_pb2.ENCODING_FLOAT16: views.Encoding.FLOAT16,
}
_WIRE_ENCODINGS: Final = {
    views.Encoding.FLOAT32: cache_pb2.ENCODING_FLOAT32,
    views.Encoding.FLOAT16: cache_pb2.ENCODING_FLOAT16,
}


class CacheService(cache_pb2_grpc.EmbeddingCacheServicer):
    """Serves one cache.

    Args:
        config: Names, prompts and limits.
        cache: Answers.
        importer: Takes in what callers bring.
        agreement: What is served; told of invalidations.
        calls: Who may call, and how much.
    """

    def __init__(
        self,
        *,
        config: NodeConfig,
        cache: Cache,
        importer: Importer,
        agreement: Agreement,
        calls: Calls,
    ) -> None:
        self._config = config
        self._cache = cache
        self._importer = importer
        self._agreement = agreement
        self._calls = calls
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Read no further from streams; what they have asked is still answered."""
        self._draining.set()

    async def Embed(  # noqa: N802 - the wire's name
        self, request: cache_pb2.EmbedRequest, context: Context
    ) -> cache_pb2.EmbedResponse:
        """See the .proto file."""
        try:
            metadata = context.invocation_metadata() or ()
            with self._calls.entered(metadata) as tenant:
                asked = self._parse(request, trace=trace_of(metadata))
                return await self._embed(asked, tenant, context.time_remaining())
        except EmbedKeepError as error:
            await refuse(context, error)

    async def EmbedStream(  # type: ignore[override]  # noqa: N802 - gRPC also takes a coroutine that writes
        self, request_iterator: AsyncIterator[cache_pb2.EmbedStreamRequest], context: Context
    ) -> None:
        """See the .proto file."""
        try:
            with self._calls.entered(context.invocation_metadata() or ()):
                await self._stream(request_iterator, context)
        except EmbedKeepError as error:
            await refuse(context, error)

    async def Import(  # noqa: N802 - the wire's name
        self, request: cache_pb2.ImportRequest, context: Context
    ) -> cache_pb2.ImportResponse:
        """See the .proto file."""
        try:
            with self._calls.entered(context.invocation_metadata() or ()) as tenant:
                check_count(len(request.inputs), most=self._calls.max_message_inputs)
                prompt = self._calls.prompt(request.model, request.prompt)
                batch = batch_of(request, prompt=prompt, space=self._cache.serving())
                taken = await self._importer.take(
                    batch, tenant, timeout_s=self._calls.timeout_s(context.time_remaining())
                )
                return response_of(taken)
        except EmbedKeepError as error:
            await refuse(context, error)

    async def Invalidate(  # noqa: N802 - the wire's name
        self, request: cache_pb2.InvalidateRequest, context: Context
    ) -> cache_pb2.InvalidateResponse:
        """See the .proto file."""
        try:
            with self._calls.entered(context.invocation_metadata() or ()) as tenant:
                await self._invalidate(request, tenant)
                return cache_pb2.InvalidateResponse(epoch=tenant.epoch)
        except EmbedKeepError as error:
            await refuse(context, error)

    async def Info(  # noqa: N802 - the wire's name
        self, _request: cache_pb2.InfoRequest, context: Context
    ) -> cache_pb2.InfoResponse:
        """See the .proto file."""
        try:
            tenant = self._calls.caller(context.invocation_metadata() or ())
        except EmbedKeepError as error:
            await refuse(context, error)
        config, space = self._config, self._cache.space
        return cache_pb2.InfoResponse(
            version=version("embedkeep"),
            model=config.model.name,
            aliases=self._calls.aliases,
            prompts=list(config.model.prompts),
            fingerprint=space.fingerprint if space else "",
            dimensions=space.dimensions if space else 0,
            max_tokens=space.max_tokens if space else 0,
            epoch=tenant.epoch,
            max_inputs=self._calls.max_message_inputs,
            max_input_bytes=config.limits.max_input_bytes,
            max_message_bytes=config.limits.max_message_bytes,
            tiers=self._tiers(),
            imports=config.imports,
            min_cosine=space.min_canary_cosine if space else 0.0,
        )

    def _tiers(self) -> list[cache_pb2.Tier]:
        tier, embedder = self._cache.tier, self._agreement.embedder_problem
        tiers = [cache_pb2.Tier(name="l1", serving=self._config.l1_bytes > 0)]
        if tier is not None:
            tiers.append(
                cache_pb2.Tier(name="valkey", serving=tier.open, message=tier.problem or "")
            )
        tiers.append(
            cache_pb2.Tier(name="embedder", serving=embedder is None, message=embedder or "")
        )
        return tiers

    async def _embed(
        self, asked: Request, tenant: Partition, timeout_s: float | None
    ) -> cache_pb2.EmbedResponse:
        answer = await self._calls.answer(asked, tenant, timeout_s=self._calls.timeout_s(timeout_s))
        return render(answer, asked.view)

    async def _stream(
        self, messages: AsyncIterator[cache_pb2.EmbedStreamRequest], context: Context
    ) -> None:
        slots = asyncio.Semaphore(self._config.limits.max_stream_requests)
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
            metadata = context.invocation_metadata() or ()
            tenant = self._calls.caller(metadata)
            asked = self._parse(message.request, trace=trace_of(metadata))
            response = await self._embed(asked, tenant, timeout_s)
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

    async def _invalidate(self, request: cache_pb2.InvalidateRequest, tenant: Partition) -> None:
        prompt = self._calls.prompt(request.model, request.inputs.prompt)
        match request.WhichOneof("scope"):
            case "inputs":
                texts = list(request.inputs.inputs)
                check_count(len(texts), most=self._calls.max_message_inputs)
                for index, text in enumerate(texts):
                    if error := check(text, self._config.limits.max_input_bytes):
                        raise InvalidRequest(f"inputs[{index}]: {error}")
                await self._cache.forget(texts, prompt, tenant)
            case "everything" if request.everything:
                await self._cache.forget_all(tenant)
            case _:
                raise InvalidRequest("scope: give inputs, or everything: true")

    def _parse(self, request: cache_pb2.EmbedRequest, *, trace: Trace | None) -> Request:
        """The request in our terms.

        Raises:
            InvalidRequest: A field is wrong; names it.
        """
        check_count(len(request.inputs), most=self._calls.max_message_inputs)
        control = request.cache_control
        if request.priority not in URGENCIES:
            raise InvalidRequest(f"priority: {request.priority} is none; 0 to {max(URGENCIES)} are")
        if request.view.encoding not in _ENCODINGS:
            raise InvalidRequest(
                f"view.encoding: {request.view.encoding} is none; 0 to {max(_ENCODINGS)} are"
            )
        view = views.View(
            dimensions=request.view.dimensions,
            normalize=request.view.normalize if request.view.HasField("normalize") else None,
            encoding=_ENCODINGS[request.view.encoding],
        )
        return Request(
            texts=list(request.inputs),
            prompt=self._calls.prompt(request.model, request.prompt),
            view=view,
            urgency=URGENCIES[request.priority],
            store=not control.no_store,
            fresh=control.no_cache,
            cached_only=control.only_if_cached,
            trace=trace,
        )


def render(answer: Answer, view: views.View) -> cache_pb2.EmbedResponse:
    """*answer* for the wire, as *view*.

    Raises:
        InvalidRequest: More dimensions than the model has.
    """
    space = answer.space
    view = views.resolve(view, model_dimensions=space.dimensions, model_normalizes=space.normalized)
    statuses = [0] * len(answer.results)
    errors = []
    for index, error in sorted(answer.errors.items()):
        statuses[index] = code_of(error)
        errors.append(
            cache_pb2.InputError(
                index=index,
                code=statuses[index],
                reason=error.reason,
                message=str(error)[:MESSAGE_CHARS],
            )
        )
    return cache_pb2.EmbedResponse(
        vectors=views.apply(view, answer.rows),
        dimensions=view.dimensions,
        encoding=_WIRE_ENCODINGS[view.encoding],
        sources=map(SOURCES.__getitem__, answer.results),
        statuses=statuses,
        tokens=answer.tokens,
        truncated=sorted(answer.truncated),
        imported=sorted(answer.imported),
        errors=errors,
        fingerprint=space.fingerprint,
        epoch=answer.epoch,
        saved_device_seconds=answer.saved_ns / 1e9,
        spent_device_seconds=answer.spent_ns / 1e9,
    )
