"""From a request over HTTP to vectors: the same for every API.

Over HTTP one bad input fails the request. What was computed for the others is cached all the same.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from embedkeep import views
from embedkeep.config import NodeConfig
from embedkeep.errors import EmbedKeepError, InvalidInput, InvalidRequest
from embedkeep.node.calls import Calls, check_count
from embedkeep.node.exchange import Answer, Request
from embedkeep.node.http import bodies, headers
from embedkeep.node.http.bodies import BodyT
from embedkeep.node.http.headers import Wishes
from embedkeep.node.tenants import Partition


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whoever made a request that was let in."""

    tenant: Partition
    wishes: Wishes
    ends_s: float
    """When its time is up, on the loop's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """What a request is answered with."""

    rows: NDArray[np.float32]
    """Shape (inputs, dimensions), float32, little-endian: the view that was asked for."""
    answer: Answer
    headers: dict[str, str]


class Desk:
    """Lets requests in and has them answered.

    Args:
        config: The name and the limits.
        calls: What HTTP shares with gRPC.
    """

    def __init__(self, config: NodeConfig, calls: Calls) -> None:
        self._name = config.name
        self._limits = config.limits
        self._calls = calls

    @contextmanager
    def let_in(self, request: web.BaseRequest) -> Iterator[Caller]:
        """Count a request in while the block runs.

        Raises:
            Unauthenticated: No tenant's.
            Overloaded: Too many calls, or too many of that tenant.
            InvalidRequest: A header has no such value.
        """
        with self._calls.entered(headers.credentials(request.headers)) as tenant:
            wishes = headers.read(request.headers)
            ends_s = asyncio.get_running_loop().time() + self._calls.timeout_s(wishes.timeout_s)
            yield Caller(tenant=tenant, wishes=wishes, ends_s=ends_s)

    async def body(self, request: web.BaseRequest, kind: type[BodyT], caller: Caller) -> BodyT:
        """What *caller* sent; see `bodies.read`."""
        return await bodies.read(
            request, kind, most=self._limits.max_message_bytes, ends_s=caller.ends_s
        )

    async def texts(self, given: bodies.Given, *, prompt: str, caller: Caller) -> Sequence[str]:
        """Whatever was given, as texts.

        Raises:
            InvalidRequest: Too many, or token ids that are not beyond doubt the model's.
        """
        texts, rows = bodies.parted(given)
        check_count(len(texts) + len(rows), most=self._limits.max_inputs)
        if not rows:
            return texts
        if prompt:
            raise InvalidRequest(
                "token ids cannot stand behind a prompt: send texts, or name the model without one"
            )
        left_s = self._calls.timeout_s(caller.ends_s - asyncio.get_running_loop().time())
        return await self._calls.texts_of(rows, timeout_s=left_s)

    async def answer(
        self, texts: Sequence[str], *, prompt: str, view: views.View, caller: Caller
    ) -> Vectors:
        """A vector for each text.

        Raises:
            EmbedKeepError: One has none; what the caller must change goes before what may pass.
        """
        wishes = caller.wishes
        request = Request(
            texts=texts,
            prompt=prompt,
            view=view,
            urgency=wishes.urgency,
            store=wishes.store,
            fresh=wishes.fresh,
            cached_only=wishes.cached_only,
            trace=wishes.trace,
        )
        left_s = self._calls.timeout_s(caller.ends_s - asyncio.get_running_loop().time())
        answer = await self._calls.answer(request, caller.tenant, timeout_s=left_s)
        if answer.errors:
            raise _worst(answer.errors)
        space = answer.space
        view = views.resolve(
            view, model_dimensions=space.dimensions, model_normalizes=space.normalized
        )
        rows = views.apply(view, answer.rows).astype("<f4", copy=False)
        said = headers.of(answer, name=self._name, fresh=wishes.fresh)
        return Vectors(rows=rows, answer=answer, headers=said)


def _worst(errors: dict[int, EmbedKeepError]) -> EmbedKeepError:
    index = min(errors, key=lambda each: (not isinstance(errors[each], InvalidRequest), each))
    error = errors[index]
    return InvalidInput(str(error), index=index) if isinstance(error, InvalidInput) else error
