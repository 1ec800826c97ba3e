"""All APIs together."""

from embedkeep.config import NodeConfig
from embedkeep.node.cache import Cache
from embedkeep.node.calls import Calls
from embedkeep.node.http import openai
from embedkeep.node.http.asking import Desk
from embedkeep.node.http.openai import OpenAi
from embedkeep.node.http.routes import Router
from embedkeep.node.http.tei import Tei


def router(config: NodeConfig, calls: Calls, cache: Cache) -> Router:
    """Answers every request of this node."""
    desk = Desk(config, calls)
    routes = OpenAi(model=config.model.name, calls=calls, desk=desk).routes()
    routes |= Tei(config=config, calls=calls, cache=cache, desk=desk).routes()
    return Router(routes, refuse=openai.refuse)
