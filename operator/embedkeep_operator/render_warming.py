"""From a resource to what is told of history, plans and warming. Pure; see `render`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from embedkeep.config import History, PredictorConfig, ValkeyTarget, Warmup, WarmupBudget
from embedkeep.history import BUCKETS
from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.api_nodes import Memory, Nodes
from embedkeep_operator.api_policies import Security
from embedkeep_operator.api_policies import WarmupBudget as WantedBudget

HISTORY_SHARE: Final = 1 / 20
"""Of a Valkey's memory, at most, for the history of all tenants: it is there to keep vectors."""
PLANS_BYTES: Final = 16 << 20
"""Of all tenants' plans, which each node holds; about three times as much once they are read."""


def history(resource: EmbeddingCache) -> History | None:
    """What is kept of the texts that are asked for. None: nothing."""
    wanted = resource.spec.warmup.history if resource.spec.warmup is not None else None
    if wanted is None or not wanted.enabled:
        return None
    memory = (resource.spec.nodes or Nodes()).memory or Memory()
    room = int(memory.valkey * HISTORY_SHARE) // (BUCKETS * _partitions(resource))
    most = History(retention_s=wanted.retention)
    return most.model_copy(update={"max_bytes": min(max(room, 1), most.max_bytes)})


def warmup(resource: EmbeddingCache) -> Warmup | None:
    """What nodes may spend on plans. None: nothing."""
    wanted = resource.spec.warmup
    if wanted is None:
        return None
    budget = wanted.budget or WantedBudget()
    return Warmup(
        budget=WarmupBudget(initial=budget.initial, min=budget.min, max=budget.max),
        shares=(resource.spec.nodes or Nodes()).shards,
    )


def predictor_config(
    resource: EmbeddingCache, valkeys: Sequence[ValkeyTarget], *, cluster_secret_file: Path
) -> PredictorConfig | None:
    """What a predictor is told. None: no history is kept, so there is nothing to predict from.

    Args:
        valkeys: All primaries of the cache. Replicas may be among them: they are passed over.
    """
    if (kept := history(resource)) is None:
        return None
    tenants = (resource.spec.security or Security()).tenants
    asked = PredictorConfig(
        name=resource.metadata.name,
        valkeys=tuple(valkeys),
        cluster_secret_file=cluster_secret_file,
        tenants=tuple(tenant.name for tenant in tenants),
        history=kept,
    )
    room = PLANS_BYTES // _partitions(resource)
    return asked.model_copy(update={"max_bytes": min(room, asked.max_bytes)})


def _partitions(resource: EmbeddingCache) -> int:
    """Of the cache: one for each tenant, or one for all callers."""
    return max(1, len((resource.spec.security or Security()).tenants))
