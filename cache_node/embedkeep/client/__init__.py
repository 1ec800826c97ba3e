"""The client: what services import. `embedkeep` hands out the same names.

`sync` and `aio` do I/O; what a call sends and makes of the answers is decided, once for both, in
`exchange` (requests, retries, deadline), `embedding` and `importing` (the two calls that are cut
into requests, by `splitting`, and put together again, by `gathering`). Beside them: `core` (what
`sync` and `aio` share), `near` (the near cache), `options` and `results` (what a caller says and
gets), `wire` (messages), and `transports`, which bring requests to nodes over HTTP or gRPC
(`dialling` knows gRPC's targets).

What a node does with a call lives in `embedkeep.node`, the command in `embedkeep.cli`, which calls
this package as any service does. It imports nothing of the node or the embedder, and no engine.
"""

from embedkeep.client.aio import AsyncClient
from embedkeep.client.options import CacheControl, Fallback, NearCache, Options, Priority, Retries
from embedkeep.client.results import (
    CacheInfo,
    ClientStats,
    Embedded,
    Imported,
    InputFailed,
    Source,
    Tier,
)
from embedkeep.client.sync import Client
from embedkeep.views import Encoding

__all__ = [
    "AsyncClient",
    "CacheControl",
    "CacheInfo",
    "Client",
    "ClientStats",
    "Embedded",
    "Encoding",
    "Fallback",
    "Imported",
    "InputFailed",
    "NearCache",
    "Options",
    "Priority",
    "Retries",
    "Source",
    "Tier",
]
