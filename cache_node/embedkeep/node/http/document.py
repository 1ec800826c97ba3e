"""The OpenAPI document at `GET /openapi.json`.

Made from the types that read requests and from the table of errors, so that it says what is done.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

from pydantic import BaseModel, RootModel
from pydantic.json_schema import models_json_schema

from embedkeep.errors import HTTP
from embedkeep.node.http import headers, openai, tei
from embedkeep.node.http.bodies import JSON
from embedkeep.node.http.openai import EmbeddingsRequest, EmbeddingsResponse, OpenAiError
from embedkeep.node.http.tei import EmbedRequest, TeiError
from embedkeep.node.trace import PARENT, STATE

PATH: Final = "/openapi.json"
REF: Final = "#/components/schemas/{model}"

Json = dict[str, object]


class Embeddings(RootModel[list[list[float]]]):
    """What `POST /embed` answers: a vector for each input."""


_OPENAI: Final = sorted({said.openai[0] for said in HTTP.values()} | {413, 415})
_TEI: Final = sorted({said.tei[0] for said in HTTP.values()} | {415})

_REASONS: Final = {
    400: "A field cannot be used; param names it",
    401: "No tenant's API key",
    404: "No such model",
    413: "Too large",
    415: "No JSON by its type",
    422: "A field cannot be used",
    424: "The model failed",
    429: "Too much waits; Retry-After says when to come again",
    500: "The node failed",
    502: "The model answered what cannot be used",
    503: "Not now",
    504: "Time was up, or it is not cached and only-if-cached was asked for",
}

_ASKED: Final = (
    (headers.TIMEOUT, "Longest answer, milliseconds. Absent: the node's default.",
     {"type": "integer", "minimum": 1, "maximum": headers.MAX_TIMEOUT_MS}),
    (headers.PRIORITY, "Who waits.", {"type": "string", "enum": [*headers.PRIORITIES]}),
    (headers.CACHE_CONTROL, "As in HTTP: no-store, no-cache, only-if-cached.", {"type": "string"}),
    (PARENT, "W3C's Trace Context; passed on to the embedder, and back.", {"type": "string"}),
    (STATE, "The same; passed on to the embedder.", {"type": "string"}),
)  # fmt: skip
_SAID: Final = (
    (headers.SOURCES, "Inputs by where they were answered: l1=3, embedder=1."),
    (headers.CACHE_STATUS, "The same for all inputs together, by RFC 9211."),
    (headers.SAVED, "Device time that what was cached had cost."),
    (headers.SPENT, "Device time that this request has cost."),
    (headers.FINGERPRINT, "Of the model that made the vectors."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    path: str
    summary: str
    method: str = "get"
    reads: type[BaseModel] | None = None
    answers: type[BaseModel] | None
    error: type[BaseModel]
    statuses: Iterable[int] = ()


_OPERATIONS: Final = (
    _Operation(
        path=openai.EMBEDDINGS, method="post", summary="Embed, as OpenAI's API does",
        reads=EmbeddingsRequest, answers=EmbeddingsResponse, error=OpenAiError, statuses=_OPENAI,
    ),
    _Operation(
        path=openai.MODELS, summary="What model may say", answers=openai.ModelList,
        error=OpenAiError, statuses=(401,),
    ),
    _Operation(
        path=f"{openai.MODELS}/{{model}}", summary="Whether model may say this",
        answers=openai.Model, error=OpenAiError, statuses=(401, 404),
    ),
    _Operation(
        path=tei.EMBED, method="post", summary="Embed, as text-embeddings-inference does",
        reads=EmbedRequest, answers=Embeddings, error=TeiError, statuses=_TEI,
    ),
    _Operation(
        path=tei.ROOT, method="post", summary="The same as /embed",
        reads=EmbedRequest, answers=Embeddings, error=TeiError, statuses=_TEI,
    ),
    _Operation(
        path=tei.INFO, summary="What is served", answers=tei.Info, error=TeiError, statuses=(401,)
    ),
    _Operation(
        path=tei.HEALTH, summary="Whether this node can answer", answers=None, error=TeiError,
        statuses=(503,),
    ),
)  # fmt: skip


def document() -> bytes:
    """The whole document, as JSON."""
    kinds = {
        kind
        for each in _OPERATIONS
        for kind in (each.reads, each.answers, each.error)
        if kind is not None
    }
    ordered = sorted(kinds, key=lambda kind: kind.__name__)
    _, shared = models_json_schema([(kind, "validation") for kind in ordered], ref_template=REF)
    paths: dict[str, Json] = {}
    for each in _OPERATIONS:
        paths.setdefault(each.path, {})[each.method] = _described(each)
    return json.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "embedkeep",
                "version": version("embedkeep"),
                "description": "An embedding cache that speaks two APIs; see docs/http.md.",
            },
            "paths": paths,
            "components": {
                "schemas": shared["$defs"],
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
            # An API key only where the cache has tenants.
            "security": [{}, {"key": []}],
        }
    ).encode()


def _described(operation: _Operation) -> Json:
    said: Json = {
        "summary": operation.summary,
        "operationId": f"{operation.method} {operation.path}",
        "responses": {
            "200": _response("Done", operation.answers, named=_SAID if operation.reads else ()),
            **{
                str(status): _response(_REASONS[status], operation.error)
                for status in operation.statuses
            },
        },
    }
    if operation.reads is not None:
        said["requestBody"] = {"required": True, "content": _content(operation.reads)}
        said["parameters"] = [
            {"name": name, "in": "header", "required": False, "description": text, "schema": schema}
            for name, text, schema in _ASKED
        ]
    elif "{model}" in operation.path:
        said["parameters"] = [
            {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    return said


def _response(
    text: str, kind: type[BaseModel] | None, *, named: Iterable[tuple[str, str]] = ()
) -> Json:
    said: Json = {"description": text}
    if kind is not None:
        said["content"] = _content(kind)
    if found := {
        name: {"description": text, "required": True, "schema": {"type": "string"}}
        for name, text in named
    }:
        said["headers"] = found
    return said


def _content(kind: type[BaseModel]) -> Json:
    return {JSON: {"schema": {"$ref": REF.format(model=kind.__name__)}}}
