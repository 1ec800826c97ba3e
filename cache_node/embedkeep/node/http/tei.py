"""The API of text-embeddings-inference: `POST /embed`, `GET /info` and `/health`.

Fields, shapes and statuses are those of its own server, version 1.7 (router/src/http), with one
difference that /info shows as `auto_truncate`: what is longer than the model reads is cut unless
the caller says `truncate: false`.
"""

from importlib.metadata import version
from typing import Annotated, Final, Literal

from aiohttp import web
from pydantic import BaseModel, Field, JsonValue

from embedkeep import views
from embedkeep.config import NodeConfig
from embedkeep.errors import EmbedderUnavailable, EmbedKeepError, InvalidInput, over_http
from embedkeep.node.cache import Cache
from embedkeep.node.calls import Calls
from embedkeep.node.http import bodies, headers
from embedkeep.node.http.asking import Desk
from embedkeep.node.http.bodies import Body
from embedkeep.node.http.routes import Misdirected, Route, hints, json_response

EMBED: Final = "/embed"
ROOT: Final = "/"
"""TEI answers here as at /embed; huggingface_hub asks here where it is given a host alone."""
INFO: Final = "/info"
HEALTH: Final = "/health"


class EmbedRequest(Body):
    """What `POST /embed` takes."""

    inputs: bodies.Inputs
    """What to embed: a string or a list of strings; or token ids of the model's own tokenizer, with
    its special tokens."""
    truncate: bool | None = None
    """False: an input that is longer than the model reads is an error. Null: it is cut."""
    truncation_direction: Literal["Right", "right"] = "Right"
    """Which end is cut. There is no other."""
    prompt_name: str | None = None
    """Name of one of the resource's prompts. Null: none."""
    normalize: bool | None = True
    """Scale to length 1."""
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Keep the first so many components (Matryoshka models): cut, then scaled. Null: all."""


class Embedded(BaseModel):
    """What is known of the embedding model."""

    embedding: dict[str, JsonValue]


class Info(BaseModel):
    """What `GET /info` answers."""

    model_id: str
    model_sha: str | None
    """The revision that the resource asks for."""
    model_dtype: str
    """Of what is handed out."""
    model_type: Embedded
    max_concurrent_requests: int
    max_input_length: int | None
    """Tokens. Null: no embedder was ever seen."""
    max_client_batch_size: int
    auto_truncate: bool
    version: str
    """Of embedkeep."""
    fingerprint: str | None
    """Of the model's vectors; see docs/http.md. Null: as above."""
    dimensions: int | None


class TeiError(BaseModel):
    """What is answered where something went wrong."""

    error: str
    error_type: str


class Tei:
    """The API.

    Args:
        config: The model and the limits.
        calls: Names of prompts.
        cache: What is served.
        desk: Answers.
    """

    def __init__(self, *, config: NodeConfig, calls: Calls, cache: Cache, desk: Desk) -> None:
        self._config = config
        self._calls = calls
        self._cache = cache
        self._desk = desk

    def routes(self) -> dict[str, Route]:
        """What is answered."""
        return {
            EMBED: Route(handlers={"POST": self.embed}, refuse=refuse),
            ROOT: Route(handlers={"POST": self.embed}, refuse=refuse),
            INFO: Route(handlers={"GET": self.info}, refuse=refuse),
            HEALTH: Route(handlers={"GET": self.health}, refuse=refuse),
        }

    async def embed(self, request: web.BaseRequest) -> web.Response:
        """Embed."""
        with self._desk.let_in(request) as caller:
            asked = await self._desk.body(request, EmbedRequest, caller)
            prompt = self._calls.prompt("", asked.prompt_name or "")
            found = await self._desk.answer(
                await self._desk.texts(asked.inputs, prompt=prompt, caller=caller),
                prompt=prompt,
                view=views.View(
                    dimensions=asked.dimensions or 0, normalize=asked.normalize is not False
                ),
                caller=caller,
            )
            if asked.truncate is False and found.answer.truncated:
                raise _too_long(min(found.answer.truncated), found.answer.space.max_tokens)
            rows = await bodies.encoded(found.rows, bodies.decimals)
        return json_response(b"[%b]" % b",".join(rows), headers=found.headers)

    async def info(self, request: web.BaseRequest) -> web.Response:
        """Say what is served."""
        self._calls.caller(headers.credentials(request.headers))
        config, space = self._config, self._cache.space
        said = Info(
            model_id=config.model.name,
            model_sha=config.model.revision,
            model_dtype="float32",
            model_type=Embedded(embedding={}),
            max_concurrent_requests=config.limits.max_concurrent_calls,
            max_input_length=space.max_tokens if space else None,
            max_client_batch_size=config.limits.max_inputs,
            auto_truncate=True,
            version=version("embedkeep"),
            fingerprint=space.fingerprint if space else None,
            dimensions=space.dimensions if space else None,
        )
        return json_response(said.model_dump_json().encode())

    async def health(self, _request: web.BaseRequest) -> web.Response:
        """Whether this node can answer: as `grpc.health.v1` says it."""
        if self._cache.space is None:
            raise EmbedderUnavailable("no embedder was seen yet", retry_after_s=1.0)
        return web.Response()


def _too_long(index: int, most: int) -> InvalidInput:
    return InvalidInput(
        f"the input is longer than the {most} tokens that the model reads: shorten it, or leave "
        "truncate out",
        index=index,
    )


def refuse(error: EmbedKeepError) -> web.Response:
    """*error* as TEI says it."""
    status, kind = over_http(error).tei
    if isinstance(error, Misdirected):
        status = error.status
    at = error.index if isinstance(error, InvalidInput) else None
    said = str(error) if at is None else f"inputs[{at}]: {error}"
    body = TeiError(error=said, error_type=kind)
    return json_response(
        body.model_dump_json().encode(), status=status, headers=hints(error, status)
    )
