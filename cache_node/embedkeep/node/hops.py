"""What is asked of a peer and what it answers, in terms of flights. Pure."""

from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Final

from embedkeep.errors import (
    DeadlineExceeded,
    InvalidResponse,
    ModelDrift,
    Retryable,
    from_wire,
)
from embedkeep.keys import Key
from embedkeep.node.embedders import Outcome
from embedkeep.node.exchange import Asked
from embedkeep.node.flights import Flight, Origin
from embedkeep.node.wire import PRIORITIES
from embedkeep.records import CorruptRecord, decode
from embedkeep.v1 import cache_pb2, peers_pb2

_ORIGINS: Final = MappingProxyType(
    {
        cache_pb2.SOURCE_L1: Origin.PEER,
        cache_pb2.SOURCE_VALKEY: Origin.PEER,
        cache_pb2.SOURCE_EMBEDDER: Origin.EMBEDDER,
        cache_pb2.SOURCE_COALESCED: Origin.COALESCED,
    }
)
_NOT_THE_INPUTS: Final = (Retryable, ModelDrift, DeadlineExceeded)
"""Failures of the peer's own: another node may well succeed."""


def request_of(
    asked: Asked, flights: Sequence[Flight], *, patience_ms: int
) -> peers_pb2.CarryRequest:
    """Have a peer carry *flights*.

    Args:
        patience_ms: See `embedkeep.node.embedders.patience_ms`.
    """
    request = asked.request
    return peers_pb2.CarryRequest(
        inputs=[flight.text for flight in flights],
        prompt=request.prompt,
        tenant=asked.tenant.tag,
        epoch=asked.epoch,
        forgotten=asked.tenant.forgotten,
        fingerprint=asked.space.fingerprint,
        priority=PRIORITIES[request.urgency],
        cache_control=cache_pb2.CacheControl(no_store=not request.store, no_cache=request.fresh),
        patience_ms=patience_ms,
    )


def outcomes_of(
    carried: peers_pb2.Carried, keys: Sequence[Key], *, dimensions: int, imports: bool
) -> Iterator[tuple[Outcome, Origin] | None]:
    """What a peer answered for each of *keys*, in order. None: this node must see to it itself.

    Args:
        dimensions: What the model has.
        imports: What callers have brought may be answered.

    Raises:
        InvalidResponse: The answer does not fit the question.
    """
    if not len(keys) == len(carried.records) == len(carried.sources):
        raise InvalidResponse(
            f"a peer answered {len(carried.records)} records and {len(carried.sources)} sources "
            f"for {len(keys)} inputs"
        )
    failed = {error.index: error for error in carried.errors}
    for index, (key, record, source) in enumerate(
        zip(keys, carried.records, carried.sources, strict=True)
    ):
        if (wire := failed.get(index)) is not None:
            error = from_wire(wire.code, wire.reason, wire.message)
            yield None if isinstance(error, _NOT_THE_INPUTS) else (error, Origin.EMBEDDER)
            continue
        try:
            entry = decode(key, record, dimensions=dimensions)
        except CorruptRecord:
            yield None
        else:
            allowed = imports or not entry.imported
            yield (entry, _ORIGINS.get(source, Origin.PEER)) if allowed else None
