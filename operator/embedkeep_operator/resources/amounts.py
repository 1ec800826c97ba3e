"""Compute resources of the containers, worked out from the resource, and written as the API does.

The API server rewrites an amount to its own shortest form. What is built has that form already,
so that what is wanted can be compared with what is there.
"""

import math
from decimal import Decimal
from typing import Final

from lightkube.models.core_v1 import ResourceRequirements

from embedkeep_operator.api_embedder import Gpu
from embedkeep_operator.api_nodes import Memory
from embedkeep_operator.api_pods import Resources

MIB: Final = 1 << 20
VALKEY_SHARE: Final = 0.7
"""Of its container's memory that Valkey may fill: the rest is for replication, clients and the
allocator's losses."""
VALKEY_LEAST: Final = 64 * MIB
"""Beside maxmemory, where that is small: the server itself, and a replica's buffer."""
NODE_RESTING: Final = 192 * MIB
"""Of a node beside its L1 (docs/benchmarks.md: 140 MiB at most, in a flood)."""
NODE_BUSY: Final = 512 * MIB
"""What else the bounded queues, and requests and answers in flight may take."""
EMBEDDER_MEMORY: Final = 1024 * MIB
"""Asked for by an embedder whose model's size is not known yet. There is no limit for the same
reason."""
UPSTREAM_MEMORY: Final = 192 * MIB
"""Of one that only asks somebody else's."""

_BINARY: Final = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_DECIMAL: Final = ("m", "", "k", "M", "G", "T", "P", "E")


def canonical(given: str) -> str:
    """An amount as the API server writes it: 1000m is 1, 1024Mi is 1Gi, 0.5 is 500m."""
    number = given.rstrip("mkKMGTPEi")
    suffix = given[len(number) :]
    if suffix in _BINARY[1:]:
        return _binary(Decimal(number) * (1 << (10 * _BINARY.index(suffix))))
    return _decimal(Decimal(number) * Decimal(10) ** (3 * (_DECIMAL.index(suffix) - 1)))


def _binary(value: Decimal) -> str:
    """Whole and binary; what is less than a unit of the first kind is written as a decimal."""
    if value != value.to_integral_value() or (value and value < 1024):
        return _decimal(value)
    number, power = int(value), 0
    while number and number % 1024 == 0 and power < len(_BINARY) - 1:
        number, power = number // 1024, power + 1
    return f"{number}{_BINARY[power]}"


def _decimal(value: Decimal) -> str:
    """With the largest unit that leaves no fraction. Less than a thousandth is rounded up."""
    number = math.ceil(value * 1000)
    power = 0
    while number and number % 1000 == 0 and power < len(_DECIMAL) - 1:
        number, power = number // 1000, power + 1
    return f"{number}{_DECIMAL[power]}" if number else "0"


def written(nbytes: int) -> str:
    """Bytes, in binary units."""
    return _binary(Decimal(nbytes))


def node_resources(memory: Memory, asked: Resources | None) -> ResourceRequirements:
    """Of a node's container. No limit on CPU: one that is throttled answers late for no reason."""
    full = memory.l1 + NODE_RESTING
    return _over(
        asked,
        requests={"cpu": "500m", "memory": written(full)},
        limits={"memory": written(_whole_mib(memory.l1 * 1.05) + NODE_BUSY)},
    )


def valkey_resources(memory: Memory, asked: Resources | None) -> ResourceRequirements:
    """Of Valkey's container: what it may fill is at most `VALKEY_SHARE` of it."""
    limit = valkey_limit(memory)
    return _over(
        asked,
        requests={"cpu": "250m", "memory": written(limit)},
        limits={"memory": written(limit)},
    )


def valkey_limit(memory: Memory) -> int:
    """Memory of Valkey's container, bytes."""
    return _whole_mib(max(memory.valkey / VALKEY_SHARE, memory.valkey + VALKEY_LEAST))


def embedder_resources(gpu: Gpu | None, asked: Resources | None) -> ResourceRequirements:
    """Of an embedder's container. An accelerator is always asked for and limited alike."""
    devices = {gpu.resource: str(gpu.count)} if gpu is not None else {}
    found = _over(asked, requests={"cpu": "1", "memory": written(EMBEDDER_MEMORY)}, limits={})
    return ResourceRequirements(
        requests={**(found.requests or {}), **devices},
        limits={**(found.limits or {}), **devices} or None,
    )


def upstream_resources() -> ResourceRequirements:
    """Of an embedder that only asks somebody else's."""
    memory = written(UPSTREAM_MEMORY)
    return ResourceRequirements(
        requests={"cpu": "100m", "memory": memory}, limits={"memory": written(NODE_BUSY)}
    )


def predictor_resources() -> ResourceRequirements:
    """Of a predictor, which holds one tenant's history at a time."""
    return ResourceRequirements(
        requests={"cpu": "100m", "memory": written(256 * MIB)},
        limits={"memory": written(1024 * MIB)},
    )


def _over(
    asked: Resources | None, *, requests: dict[str, str], limits: dict[str, str]
) -> ResourceRequirements:
    """What was asked for, in place of what was worked out.

    A limit below what was worked out as request lowers that, or the API server would refuse it.
    """
    given = asked or Resources()
    wanted_limits = {**limits, **_canonical(given.limits)}
    wanted_requests = {**requests, **_canonical(given.requests)}
    for name, limit in wanted_limits.items():
        request = wanted_requests.get(name)
        if request is None or name in given.requests:
            continue
        if _value(request) > _value(limit):
            wanted_requests[name] = limit
    for name in limits.keys() & wanted_requests.keys() - given.limits.keys():
        if _value(limits[name]) < _value(wanted_requests[name]):
            wanted_limits[name] = wanted_requests[name]
    return ResourceRequirements(requests=wanted_requests, limits=wanted_limits or None)


def _canonical(amounts: dict[str, str]) -> dict[str, str]:
    return {name: canonical(amount) for name, amount in amounts.items()}


def _value(amount: str) -> Decimal:
    number = amount.rstrip("mkKMGTPEi")
    suffix = amount[len(number) :]
    if suffix in _BINARY[1:]:
        return Decimal(number) * (1 << (10 * _BINARY.index(suffix)))
    return Decimal(number) * Decimal(10) ** (3 * (_DECIMAL.index(suffix) - 1))


def _whole_mib(nbytes: float) -> int:
    return math.ceil(nbytes / MIB) * MIB
