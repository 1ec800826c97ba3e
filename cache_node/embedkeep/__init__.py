"""embedkeep's data plane and client: an embedding cache that answers repeats bit for bit.

What most services import is here: `Client`, `AsyncClient` and the errors they raise. Below it live
the client (`client`), what fits it into frameworks (`adapters`), the node (`node`), the embedder
(`embedder`), the predictor (`predictor`), the wire (`v1`) and the command (`cli`).

What several of these share lies beside them: `errors`, one tree for all; `config`, what a node, an
embedder and a predictor are told; `keys`, `records` and `views`, what an entry is called, how it is
kept and how it is handed out; `history` and `plans`, how the texts that were asked for lie in
Valkey, and what the predictor makes of them; `pairs`, what an imported vector must be; `channels`,
`tls`, `refusal` and `serving`, what every gRPC client or server here does alike; `probing`, a
process's port for metrics and for whoever watches it; `smoothing`, means of what was measured;
`runs`, where `embedkeep up` says what it runs. What reads resources and runs caches is
`embedkeep_operator`, which nothing here imports.

The names are loaded when they are first used (PEP 562): a node has no use for the client, and
a command's help none for gRPC and numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embedkeep.client import (
        AsyncClient,
        CacheControl,
        CacheInfo,
        Client,
        ClientStats,
        Embedded,
        Encoding,
        Fallback,
        Imported,
        InputFailed,
        NearCache,
        Options,
        Priority,
        Retries,
        Source,
        Tier,
    )
    from embedkeep.config import ClientTls
    from embedkeep.errors import EmbedKeepError

_CLIENT = frozenset(
    {
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
    }
)
_ELSEWHERE = {"ClientTls": "embedkeep.config", "EmbedKeepError": "embedkeep.errors"}

__all__ = [
    "AsyncClient",
    "CacheControl",
    "CacheInfo",
    "Client",
    "ClientStats",
    "ClientTls",
    "EmbedKeepError",
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


if not TYPE_CHECKING:  # a type checker would take any name for one that is here

    def __getattr__(name: str) -> object:
        home = "embedkeep.client" if name in _CLIENT else _ELSEWHERE.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
