"""OpenAI's embeddings API: `POST /v1/embeddings`, `GET /v1/models` and `/v1/models/{id}`."""

import json
from typing import Annotated, Final, Literal

from aiohttp import web
from pydantic import BaseModel, Field

from embedkeep import views
from embedkeep.errors import EmbedKeepError, InvalidInput, UnknownModel, over_http
from embedkeep.node.calls import Calls
from embedkeep.node.http import bodies, headers
from embedkeep.node.http.asking import Desk
from embedkeep.node.http.bodies import Body, WrongField
from embedkeep.node.http.routes import BELOW, Misdirected, Route, hints, json_response

EMBEDDINGS: Final = "/v1/embeddings"
MODELS: Final = "/v1/models"


class EmbeddingsRequest(Body):
    """What `POST /v1/embeddings` takes."""

    input: bodies.Inputs
    """What to embed: a string or a list of strings; or token ids of the model's own tokenizer, with
    its special tokens."""
    model: str = ""
    """The cache's name, `name:prompt`, or the model's full name. Empty: the only model served."""
    encoding_format: Literal["float", "base64"] = "float"
    """base64: the float32 of a vector, little-endian."""
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Keep the first so many components (Matryoshka models): cut, then scaled. Null: all."""
    user: str | None = None
    """Taken and not used."""


class Embedding(BaseModel):
    """One vector."""

    object: Literal["embedding"]
    index: int
    """Of its input."""
    embedding: list[float] | str
    """Numbers, or base64."""


class Usage(BaseModel):
    """Tokens as the model counts them, after truncation, with its special tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """What `POST /v1/embeddings` answers."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Model(BaseModel):
    """A name that `model` may say."""

    id: str
    object: Literal["model"]
    created: int
    """0: it is not known."""
    owned_by: str


class ModelList(BaseModel):
    """What `GET /v1/models` answers."""

    object: Literal["list"]
    data: list[Model]


class Error(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    """The field at fault: `input[3]`."""
    code: str | None


class OpenAiError(BaseModel):
    """What is answered where something went wrong."""

    error: Error


class OpenAi:
    """The API.

    Args:
        calls: Names of the model.
        desk: Answers.
    """

    def __init__(self, *, model: str, calls: Calls, desk: Desk) -> None:
        self._model = model
        self._calls = calls
        self._desk = desk

    def routes(self) -> dict[str, Route]:
        """What is answered."""
        return {
            EMBEDDINGS: Route(handlers={"POST": self.embeddings}, refuse=refuse),
            MODELS: Route(handlers={"GET": self.models}, refuse=refuse),
            MODELS + BELOW: Route(handlers={"GET": self.model}, refuse=refuse),
        }

    async def embeddings(self, request: web.BaseRequest) -> web.Response:
        """Embed."""
        with self._desk.let_in(request) as caller:
            asked = await self._desk.body(request, EmbeddingsRequest, caller)
            prompt = self._calls.prompt(asked.model, "")
            found = await self._desk.answer(
                await self._desk.texts(asked.input, prompt=prompt, caller=caller),
                prompt=prompt,
                view=views.View(dimensions=asked.dimensions or 0),
                caller=caller,
            )
            encode = bodies.base64 if asked.encoding_format == "base64" else bodies.decimals
            rows = await bodies.encoded(found.rows, encode)
        data = b",".join(
            b'{"object":"embedding","index":%d,"embedding":%b}' % row for row in enumerate(rows)
        )
        model = json.dumps(asked.model or self._model).encode()
        tokens = sum(found.answer.tokens)
        usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (tokens, tokens)
        return json_response(
            b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (data, model, usage),
            headers=found.headers,
        )

    async def models(self, request: web.BaseRequest) -> web.Response:
        """All names."""
        self._calls.caller(headers.credentials(request.headers))
        listed = ModelList(object="list", data=[_model(name) for name in self._names()])
        return json_response(listed.model_dump_json().encode())

    async def model(self, request: web.BaseRequest) -> web.Response:
        """One of them."""
        self._calls.caller(headers.credentials(request.headers))
        name = request.path.removeprefix(f"{MODELS}/")
        if name not in self._names():
            raise UnknownModel(
                f"model: {name!r} is not served here; {', '.join(self._names())} are"
            )
        return json_response(_model(name).model_dump_json().encode())

    def _names(self) -> list[str]:
        return [*self._calls.aliases, self._model]


def _model(name: str) -> Model:
    return Model(id=name, object="model", created=0, owned_by="embedkeep")


def refuse(error: EmbedKeepError) -> web.Response:
    """*error* as OpenAI's servers say it."""
    status, kind, code = over_http(error).openai
    if isinstance(error, Misdirected):
        status = error.status
    param = None
    if isinstance(error, WrongField):
        param = error.param
    elif isinstance(error, UnknownModel):
        param = "model"
    elif isinstance(error, views.TooManyDimensions):
        param = "dimensions"
    elif isinstance(error, InvalidInput):
        param = "input" if error.index is None else f"input[{error.index}]"
    body = OpenAiError(error=Error(message=str(error), type=kind, param=param, code=code))
    return json_response(
        body.model_dump_json().encode(), status=status, headers=hints(error, status)
    )
