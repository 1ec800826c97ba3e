"""What nodes and the predictor are told of history, plans and warming."""

from pathlib import Path

import pytest

from embedkeep.config import History, PredictorConfig, ValkeyTarget, Warmup, WarmupBudget
from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.render_warming import HISTORY_SHARE, history, predictor_config, warmup

VALKEYS = (ValkeyTarget(host="10.0.0.2", port=6379), ValkeyTarget(host="10.0.0.3", port=6379))
SECRET = Path("/run/secret")


def a_cache(**spec: object) -> EmbeddingCache:
    """The least that is valid, with *spec* over it."""
    least = {"model": {"name": "org/model"}, "embedder": {"managed": {}}}
    return EmbeddingCache.model_validate(
        {
            "apiVersion": "embedkeep.dev/v1alpha1",
            "kind": "EmbeddingCache",
            "metadata": {"name": "docs"},
            "spec": least | spec,
        }
    )


KEPT = {"history": {"enabled": True, "retention": "2d"}}


@pytest.mark.parametrize(
    "spec",
    [{}, {"warmup": {}}, {"warmup": {"history": {}}}, {"warmup": {"history": {"enabled": False}}}],
    ids=["no warm-up", "no history", "an empty one", "one that is off"],
)
def test_no_text_is_kept_unless_that_is_asked_for(spec: dict[str, object]) -> None:
    given = a_cache(**spec)

    assert history(given) is None
    assert predictor_config(given, VALKEYS, cluster_secret_file=SECRET) is None


def test_a_history_that_is_asked_for_has_its_retention() -> None:
    assert history(a_cache(warmup=KEPT)) == History(retention_s=2 * 86_400)


def test_histories_of_all_tenants_together_take_a_small_part_of_valkey() -> None:
    """Even where the slots of all of them are one shard's."""
    tenants = [{"name": f"t{at}", "apiKeySecretRef": {"name": f"k{at}"}} for at in range(100)]
    given = a_cache(
        warmup=KEPT, nodes={"memory": {"valkey": "256Mi"}}, security={"tenants": tenants}
    )

    kept = history(given)

    assert kept is not None
    assert 100 * 16 * kept.max_bytes <= (256 << 20) * HISTORY_SHARE


def test_nodes_share_the_budget_of_the_cache() -> None:
    given = a_cache(nodes={"shards": 3}, warmup={"budget": {"initial": 30, "min": 10, "max": 90}})

    assert warmup(given) == Warmup(budget=WarmupBudget(initial=30, min=10, max=90), shares=3)
    assert warmup(a_cache()) is None


def test_a_predictor_is_told_whose_histories_lie_where() -> None:
    given = a_cache(
        warmup=KEPT, security={"tenants": [{"name": "a", "apiKeySecretRef": {"name": "k"}}]}
    )

    assert predictor_config(given, VALKEYS, cluster_secret_file=SECRET) == PredictorConfig(
        name="docs",
        valkeys=VALKEYS,
        cluster_secret_file=SECRET,
        tenants=("a",),
        history=History(retention_s=2 * 86_400),
    )


def test_many_plans_together_fit_into_a_nodes_memory() -> None:
    tenants = [{"name": f"t{at}", "apiKeySecretRef": {"name": f"k{at}"}} for at in range(1000)]

    told = predictor_config(
        a_cache(warmup=KEPT, security={"tenants": tenants}), VALKEYS, cluster_secret_file=SECRET
    )

    assert told is not None
    assert 1000 * told.max_bytes <= 16 << 20
