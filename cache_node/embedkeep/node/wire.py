"""Names of the wire in the node's own terms, for all services that speak them."""

from types import MappingProxyType
from typing import Final

from embedkeep.node.admission import Urgency
from embedkeep.node.metrics import Result
from embedkeep.v1 import cache_pb2

SERVICE: Final = cache_pb2.DESCRIPTOR.services_by_name["EmbeddingCache"].full_name
"""In paths, and where health is asked for."""

SOURCES: Final = MappingProxyType(
    {
        Result.L1: cache_pb2.SOURCE_L1,
        Result.VALKEY: cache_pb2.SOURCE_VALKEY,
        Result.PEER: cache_pb2.SOURCE_PEER,
        Result.EMBEDDER: cache_pb2.SOURCE_EMBEDDER,
        Result.COALESCED: cache_pb2.SOURCE_COALESCED,
        Result.NOT_CACHED: cache_pb2.SOURCE_UNSPECIFIED,
        Result.ERROR: cache_pb2.SOURCE_UNSPECIFIED,
    }
)
URGENCIES: Final = MappingProxyType(
    {
        cache_pb2.PRIORITY_UNSPECIFIED: Urgency.DEMAND,
        cache_pb2.PRIORITY_INTERACTIVE: Urgency.DEMAND,
        cache_pb2.PRIORITY_BULK: Urgency.BULK,
        cache_pb2.PRIORITY_BACKGROUND: Urgency.BACKGROUND,
    }
)
PRIORITIES: Final = MappingProxyType(
    {
        Urgency.DEMAND: cache_pb2.PRIORITY_INTERACTIVE,
        Urgency.BULK: cache_pb2.PRIORITY_BULK,
        Urgency.BACKGROUND: cache_pb2.PRIORITY_BACKGROUND,
    }
)
