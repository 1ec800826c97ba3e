"""Requests to one upstream: connections, TLS, proxies, the key, and time limits."""

import math
import os
import ssl
import time
import urllib.request
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from embedkeep.config import Protocol, Upstream
from embedkeep.embedder.upstream.failures import Failure, Kind, from_status
from embedkeep.embedder.upstream.key import Key
from embedkeep.errors import InvalidConfig

MOST_ERROR_BYTES: Final = 64 << 10
"""Read of an answer that is no success."""

_PIECE_BYTES: Final = 64 << 10
_CONNECT_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer with status 200."""

    headers: CIMultiDictProxy[str]
    body: bytes


class Http:
    """The way to one upstream. Redirects are not followed: the key is for that place alone.

    Args:
        upstream: Where it is.
        key: What to show it.

    Raises:
        InvalidConfig: A certificate cannot be read.
    """

    def __init__(self, upstream: Upstream, key: Key) -> None:
        self.key = key
        self._timeout_s = upstream.timeout_s
        self._concurrent = upstream.max_concurrent_requests
        self._base = base_url(upstream)
        self._tls = _trust(upstream)
        self._proxy, self._proxy_auth = _proxy(self._base)
        self._session: aiohttp.ClientSession | None = None

    @property
    def named(self) -> str:
        """Where it is, for people; a query may hold secrets and is left out."""
        return str(self._base.with_query(None))

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._concurrent + 1, ssl=self._tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"user-agent": "embedkeep"},
        )
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, *, most_bytes: int) -> Reply | Failure:
        """GET a path below the base."""
        return await self._ask("GET", path, None, most_bytes)

    async def post(
        self, path: str, body: bytes, *, most_bytes: int, within_s: float = math.inf
    ) -> Reply | Failure:
        """POST JSON to a path below the base.

        Args:
            most_bytes: An answer that is larger fits no question.
            within_s: How long somebody waits for the answer, seconds.
        """
        return await self._ask("POST", path, body, most_bytes, within_s)

    async def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None,
        most_bytes: int,
        within_s: float = math.inf,
    ) -> Reply | Failure:
        if self._session is None:
            raise RuntimeError("not entered")
        headers = {"accept": "application/json"}
        if body is not None:
            headers["content-type"] = "application/json"
        try:
            if token := self.key.read():
                headers["authorization"] = f"Bearer {token}"
            async with self._session.request(
                method,
                below(self._base, path),
                data=body,
                headers=headers,
                allow_redirects=False,
                proxy=self._proxy,
                proxy_auth=self._proxy_auth,
                timeout=_timeout(min(self._timeout_s, within_s)),
            ) as response:
                return await self._read(response, most_bytes)
        except InvalidConfig as error:
            return Failure(kind=Kind.KEY, said=str(error))
        except TimeoutError:
            return self._timed_out(within_s)
        except aiohttp.ClientConnectorCertificateError as error:
            why = getattr(error.certificate_error, "verify_message", "") or "it is not trusted"
            return Failure(kind=Kind.FAILED, said=f"its certificate is refused: {why}")
        except aiohttp.ClientConnectorError as error:
            # A positive one is the system's; the resolver's own are negative.
            number = error.errno or 0
            known = os.strerror(number) if number > 0 else error.strerror
            return Failure(kind=Kind.FAILED, said=known or "cannot be reached")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Their messages may hold the URL with its query.
            return Failure(kind=Kind.FAILED, said=f"connection lost ({type(error).__name__})")

    def _timed_out(self, within_s: float) -> Failure:
        """Callers with about as much time as an upstream has are no reason to think it well."""
        kind = Kind.FAILED if within_s > self._timeout_s / 2 else Kind.LATE
        return Failure(kind=kind, said=f"no answer in {min(within_s, self._timeout_s):.3g} s")

    async def _read(self, response: aiohttp.ClientResponse, most_bytes: int) -> Reply | Failure:
        success = response.status == 200
        body = bytearray()
        async for piece in response.content.iter_chunked(_PIECE_BYTES):
            body += piece
            if len(body) > (most_bytes if success else MOST_ERROR_BYTES):
                if success:
                    said = f"its answer has more than {most_bytes} bytes"
                    return Failure(kind=Kind.NONSENSE, said=said)
                break
        if success:
            return Reply(headers=response.headers, body=bytes(body))
        return from_status(
            response.status,
            response.headers,
            self.key.hide(bytes(body)),
            now_s=time.time(),
        )


def _timeout(total_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total_s, sock_connect=_CONNECT_S)


def base_url(upstream: Upstream) -> URL:
    """Where paths are appended to.

    Raises:
        InvalidConfig: It is no URL.
    """
    try:
        url = URL(upstream.url)
    except ValueError as error:
        raise InvalidConfig(f"{upstream.url} is no URL: {error}", field="upstream.url") from None
    if not url.host:
        raise InvalidConfig(f"{upstream.url} names no host", field="upstream.url")
    if upstream.protocol is Protocol.OPENAI and url.path in {"", "/"}:
        return url.with_path("/v1").with_query(url.query)
    return url


def below(base: URL, path: str) -> URL:
    """*path* appended to *base*, which keeps its query."""
    return base.with_path(base.path.rstrip("/") + path).with_query(base.query)


def _trust(upstream: Upstream) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if upstream.ca_file is not None:
        try:
            context.load_verify_locations(cafile=upstream.ca_file)
        except OSError as error:  # ssl's own errors are such, too
            raise InvalidConfig(
                f"{upstream.ca_file} holds no certificates that can be read: "
                f"{error.strerror or error}",
                field="upstream.ca_file",
            ) from error
    return context


def _proxy(url: URL) -> tuple[URL | None, aiohttp.BasicAuth | None]:
    """Of HTTPS_PROXY, HTTP_PROXY and NO_PROXY.

    Read here, since aiohttp's own reading of the environment also takes passwords from ~/.netrc,
    and would send these instead of the key.
    """
    if url.host is None or urllib.request.proxy_bypass(f"{url.host}:{url.port}"):
        return None, None
    given = urllib.request.getproxies().get(url.scheme)
    if not given:
        return None, None
    proxy = URL(given if "://" in given else f"http://{given}")
    auth = None
    if proxy.user is not None:
        auth = aiohttp.BasicAuth(proxy.user, proxy.password or "")
    return proxy.with_user(None), auth
