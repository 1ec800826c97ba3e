"""Which handler answers what, and how each API says that it cannot."""

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

import structlog
from aiohttp import web

from embedkeep.errors import EmbedKeepError, Internal, InvalidRequest, Retryable
from embedkeep.node.http.headers import REASON, trace
from embedkeep.node.trace import PARENT

log = structlog.stdlib.get_logger()

Handler = Callable[[web.BaseRequest], Awaitable[web.Response]]
Refuse = Callable[[EmbedKeepError], web.Response]
"""Puts an error into the shape of an API."""

SERVER: Final = f"embedkeep/{version('embedkeep')}"
BELOW: Final = "/*"
"""At the end of a path: whatever stands there instead of the star, at least one character."""


class Misdirected(InvalidRequest):
    """What only HTTP can get wrong: a path, a method, a content type, a body's size.

    Args:
        status: Of HTTP.
        headers: That belong to it.
    """

    def __init__(
        self, message: str, *, status: int, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


def json_response(
    body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """JSON that is already encoded."""
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


def hints(error: EmbedKeepError, status: int) -> dict[str, str]:
    """Headers that say of *error* what a program wants to know, whichever API it is."""
    said = {REASON: error.reason}
    if isinstance(error, Misdirected):
        said |= error.headers
    if isinstance(error, Retryable):
        if error.retry_after_s is not None:
            # Whole seconds are all that HTTP has; OpenAI's clients look for the other one first.
            said["retry-after"] = str(math.ceil(error.retry_after_s))
            said["retry-after-ms"] = str(round(error.retry_after_s * 1000))
    elif status >= 500:
        said["x-should-retry"] = "false"  # OpenAI's clients would
    return said


def ours(error: Exception, path: str) -> EmbedKeepError:
    """*error*, or where it is a bug, which is logged, what a caller is told of it."""
    if isinstance(error, EmbedKeepError):
        return error
    log.error("an HTTP request failed", path=path, exc_info=error)
    return Internal("the node failed; its log says why")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One path."""

    handlers: Mapping[str, Handler]
    """By method. HEAD is answered as GET, without the body."""
    refuse: Refuse
    """In the shape of the API that the path belongs to."""


class Router:
    """Answers every request; errors come in the shape of the API that was asked.

    Args:
        routes: By path; one that ends in `BELOW` is asked after all others.
        refuse: For paths that no API has.
    """

    def __init__(self, routes: Mapping[str, Route], *, refuse: Refuse) -> None:
        self._routes = routes
        self._below = {
            path.removesuffix("*"): route for path, route in routes.items() if path.endswith(BELOW)
        }
        self._refuse = refuse

    async def __call__(self, request: web.BaseRequest) -> web.Response:
        """Answer. Never raises but for a cancellation."""
        response = await self._answer(request)
        response.headers["server"] = SERVER
        if (found := trace(request.headers)) is not None:
            response.headers[PARENT] = found.parent
        return response

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        if (route := self._find(request.path)) is None:
            return self._refuse(self._nowhere(request.path))
        try:
            return await _handler(route, request.method)(request)
        except Exception as error:  # noqa: BLE001  # the outermost edge, which logs it
            return route.refuse(ours(error, request.path))

    def _nowhere(self, path: str) -> Misdirected:
        """Say what was meant: a base URL lacks its /v1, or has a path that nobody serves."""
        known = [each for each in self._routes if not each.endswith(BELOW)]
        meant = next((each for each in known if each != "/" and _alike(each, path)), None)
        hint = f"did you mean {meant}?" if meant else f"there are {', '.join(known)}"
        return Misdirected(f"{path}: there is no such path; {hint}", status=404)

    def _find(self, path: str) -> Route | None:
        if (route := self._routes.get(path)) is not None:
            return route
        for prefix, below in self._below.items():
            if path.startswith(prefix) and len(path) > len(prefix):
                return below
        return None


def _alike(known: str, path: str) -> bool:
    return known.endswith(path) or path.endswith(known)


def _handler(route: Route, method: str) -> Handler:
    if (found := route.handlers.get("GET" if method == "HEAD" else method)) is not None:
        return found
    allowed = [*route.handlers, *(["HEAD"] if "GET" in route.handlers else [])]
    raise Misdirected(
        f"{method} is not what this path answers; {', '.join(allowed)} is",
        status=405,
        headers={"allow": ", ".join(allowed)},
    )
