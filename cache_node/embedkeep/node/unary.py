"""The service's unary calls, message in and message out, whichever way they came.

gRPC (`service`) and HTTP (`http.connect`) put their own words around it: who sends, what time is
left, how many calls there may be, and how an error is said.
"""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedkeep import views
from embedkeep.config import NodeConfig
from embedkeep.errors import InvalidRequest, code_of
from embedkeep.node.agreement import Agreement
from embedkeep.node.cache import Cache
from embedkeep.node.calls import Calls, check_count
from embedkeep.node.exchange import Answer, Request, check
from embedkeep.node.imports import Importer
from embedkeep.node.imports_wire import batch_of, response_of
from embedkeep.node.tenants import Partition
from embedkeep.node.trace import Trace
from embedkeep.node.wire import SOURCES, URGENCIES
from embedkeep.v1 import cache_pb2

MESSAGE_CHARS: Final = 200
"""Longest message of one row's error. A call's own error is never cut."""

_VECTORS: Final = bytes([cache_pb2.EmbedResponse.VECTORS_FIELD_NUMBER << 3 | 2])
"""What stands before the vectors' length: their field's number, and that it has one."""

_ENCODINGS: Final = {
    cache_pb2.ENCODING_UNSPECIFIED: views.Encoding.FLOAT32,
    cache_pb2.ENCODING_FLOAT32: views.Encoding.FLOAT32,
    cache_pb2.ENCODING_FLOAT16: views.Encoding.FLOAT16,
}
_WIRE_ENCODINGS: Final = {
    views.Encoding.FLOAT32: cache_pb2.ENCODING_FLOAT32,
    views.Encoding.FLOAT16: cache_pb2.ENCODING_FLOAT16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Whose message it is."""

    tenant: Partition
    trace: Trace | None = None
    left_s: float | None = None
    """Of its time, seconds. None: it did not say."""


class Unary:
    """Answers one cache's unary calls.

    Every method takes a message of somebody who was let in, and raises `EmbedKeepError` for what it
    cannot answer.

    Args:
        config: Names, prompts and limits.
        cache: Answers.
        importer: Takes in what callers bring.
        agreement: What is served.
        calls: What a call may ask for.
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

    async def embed(
        self, request: cache_pb2.EmbedRequest, sender: Sender
    ) -> cache_pb2.EmbedResponse:
        """A row for each text."""
        return render(*await self._answer(request, sender))

    async def embed_encoded(self, request: cache_pb2.EmbedRequest, sender: Sender) -> bytes:
        """As `embed`, and serialized."""
        return encode(*await self._answer(request, sender))

    async def import_pairs(
        self, request: cache_pb2.ImportRequest, sender: Sender
    ) -> cache_pb2.ImportResponse:
        """Keep what the caller brings."""
        check_count(len(request.inputs), most=self._calls.max_message_inputs)
        prompt = self._calls.prompt(request.model, request.prompt)
        batch = batch_of(request, prompt=prompt, space=self._cache.serving())
        timeout_s = self._calls.timeout_s(sender.left_s)
        return response_of(await self._importer.take(batch, sender.tenant, timeout_s=timeout_s))

    async def invalidate(
        self, request: cache_pb2.InvalidateRequest, sender: Sender
    ) -> cache_pb2.InvalidateResponse:
        """Forget; it takes the time it takes, since half of it would help nobody."""
        await self._invalidate(request, sender.tenant)
        return cache_pb2.InvalidateResponse(epoch=sender.tenant.epoch)

    async def info(self, request: cache_pb2.InfoRequest, sender: Sender) -> cache_pb2.InfoResponse:
        """What is served."""
        del request
        config, space = self._config, self._cache.space
        return cache_pb2.InfoResponse(
            version=version("embedkeep"),
            model=config.model.name,
            aliases=self._calls.aliases,
            prompts=list(config.model.prompts),
            fingerprint=space.fingerprint if space else "",
            dimensions=space.dimensions if space else 0,
            max_tokens=space.max_tokens if space else 0,
            epoch=sender.tenant.epoch,
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

    async def _answer(
        self, request: cache_pb2.EmbedRequest, sender: Sender
    ) -> tuple[Answer, views.View]:
        asked = self._parse(request, trace=sender.trace)
        timeout_s = self._calls.timeout_s(sender.left_s)
        answer = await self._calls.answer(asked, sender.tenant, timeout_s=timeout_s)
        return answer, asked.view

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
    rows, response = _rendered(answer, view)
    response.vectors = rows.tobytes()
    return response


def encode(answer: Answer, view: views.View) -> bytes:
    """What `render` makes, serialized; the vectors are copied once instead of three times.

    A message is its fields one after the other, in any order.
    Source: protobuf.dev, "Encoding", "Field Order".
    """
    rows, rest = _rendered(answer, view)
    return b"".join((_VECTORS, _varint(rows.nbytes), rows.data, rest.SerializeToString()))


def _varint(number: int) -> bytes:
    """As protobuf writes a length: seven bits a byte, the lowest first."""
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def _rendered(
    answer: Answer, view: views.View
) -> tuple[NDArray[np.floating], cache_pb2.EmbedResponse]:
    """The vectors, and all of the message that is not vectors."""
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
    return views.apply(view, answer.rows), cache_pb2.EmbedResponse(
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
