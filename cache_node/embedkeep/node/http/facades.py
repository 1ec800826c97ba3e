"""All APIs together."""

from dataclasses import dataclass

from aiohttp import web

from embedkeep.config import NodeConfig
from embedkeep.node.cache import Cache
from embedkeep.node.calls import Calls
from embedkeep.node.http import openai
from embedkeep.node.http.asking import Desk
from embedkeep.node.http.connect import Connect
from embedkeep.node.http.document import PATH, document
from embedkeep.node.http.entrance import Answering
from embedkeep.node.http.openai import OpenAi
from embedkeep.node.http.routes import Route, Router, json_response
from embedkeep.node.http.tei import Tei
from embedkeep.node.unary import Unary


@dataclass(frozen=True, slots=True, kw_only=True)
class Facades:
    """What this node answers over HTTP."""

    router: Router
    """Every request."""
    connect: Answering
    """Calls of the service; those that are plain never become requests of aiohttp."""


def facades(config: NodeConfig, *, calls: Calls, cache: Cache, unary: Unary) -> Facades:
    """All of this node's."""
    desk, connect = Desk(config, calls), Connect(unary, calls=calls)
    routes = OpenAi(model=config.model.name, calls=calls, desk=desk).routes()
    routes |= Tei(config=config, calls=calls, cache=cache, desk=desk).routes()
    routes |= connect.routes(most=config.limits.max_message_bytes)
    said = document()

    async def describe(_request: web.BaseRequest) -> web.Response:
        return json_response(said)

    routes[PATH] = Route(handlers={"GET": describe}, refuse=openai.refuse)
    return Facades(router=Router(routes, refuse=openai.refuse), connect=connect)
