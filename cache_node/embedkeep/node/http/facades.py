"""All APIs together."""

from aiohttp import web

from embedkeep.config import NodeConfig
from embedkeep.node.cache import Cache
from embedkeep.node.calls import Calls
from embedkeep.node.http import openai
from embedkeep.node.http.asking import Desk
from embedkeep.node.http.connect import Connect
from embedkeep.node.http.document import PATH, document
from embedkeep.node.http.openai import OpenAi
from embedkeep.node.http.routes import Route, Router, json_response
from embedkeep.node.http.tei import Tei
from embedkeep.node.unary import Unary


def router(config: NodeConfig, *, calls: Calls, cache: Cache, unary: Unary) -> Router:
    """Answers every request of this node."""
    desk = Desk(config, calls)
    routes = OpenAi(model=config.model.name, calls=calls, desk=desk).routes()
    routes |= Tei(config=config, calls=calls, cache=cache, desk=desk).routes()
    routes |= Connect(unary, calls=calls, most=config.limits.max_message_bytes).routes()
    said = document()

    async def describe(_request: web.BaseRequest) -> web.Response:
        return json_response(said)

    routes[PATH] = Route(handlers={"GET": describe}, refuse=openai.refuse)
    return Router(routes, refuse=openai.refuse)
