"""From a resource to Valkey's config file: the whole file, so that a line that is lost shows."""

from pathlib import Path

from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.render_valkey import valkey_config
from embedkeep_operator.topology import Endpoint

CACHE = EmbeddingCache.model_validate(
    {
        "apiVersion": "embedkeep.dev/v1alpha1",
        "kind": "EmbeddingCache",
        "metadata": {"name": "docs"},
        "spec": {
            "model": {"name": "org/model"},
            "nodes": {"memory": {"valkey": "500M"}},
            "embedder": {"managed": {}},
        },
    }
)
ALONE = [
    "bind 127.0.0.1",
    "port 6379",
    "protected-mode yes",
    "requirepass s3cret",
    "maxmemory 500000000",
    "maxmemory-policy allkeys-lfu",
    'save ""',
    "appendonly no",
    "daemonize no",
    'dir "/state/a \\"b\\""',
]


def rendered(cluster: Endpoint | None) -> list[str]:
    return valkey_config(
        CACHE,
        host="127.0.0.1",
        port=6379,
        password="s3cret",
        folder=Path('/state/a "b"'),
        cluster=cluster,
    ).splitlines()


def test_valkey_forgets_the_least_used_and_keeps_nothing_on_disk() -> None:
    assert rendered(None) == ALONE


def test_one_of_several_answers_for_its_slots_whatever_becomes_of_the_others() -> None:
    assert rendered(Endpoint(host="127.0.0.1", port=6379, bus_port=7000)) == [
        *ALONE,
        "cluster-enabled yes",
        "cluster-config-file nodes.conf",
        "cluster-port 7000",
        "cluster-announce-ip 127.0.0.1",
        "cluster-announce-port 6379",
        "cluster-announce-bus-port 7000",
        "cluster-node-timeout 5000",
        "cluster-require-full-coverage no",
        "cluster-allow-reads-when-down yes",
    ]
