"""From a resource to Valkey's config file. Pure; see `render`."""

import json
from pathlib import Path
from typing import Final

from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.api_nodes import Memory, Nodes
from embedkeep_operator.topology import Endpoint

CLUSTER_FILE: Final = "nodes.conf"
"""Where a Valkey of a cluster keeps its id and whom it knows, in its working folder."""
NODE_TIMEOUT_MS: Final = 5000
"""Silence after which the others call a Valkey failed. Nothing takes over here, so it only bounds
how soon a lost handshake is tried again; a machine may well be too busy for a second or two."""


def valkey_config(  # noqa: PLR0913  # where it runs, and with whom
    resource: EmbeddingCache,
    *,
    host: str,
    port: int,
    password: str,
    folder: Path,
    cluster: Endpoint | None = None,
) -> str:
    """Valkey's config file. The password stands here, because arguments can be seen by all.

    Args:
        host: Address to bind.
        password: Of the default user; must hold no white space.
        folder: Valkey's working folder.
        cluster: Where the other shards' Valkeys find it. None: there is one shard, and it is no
            cluster.
    """
    memory = (resource.spec.nodes or Nodes()).memory or Memory()
    return "\n".join(
        (
            f"bind {host}",
            f"port {port}",
            "protected-mode yes",
            f"requirepass {password}",
            f"maxmemory {memory.valkey}",
            "maxmemory-policy allkeys-lfu",
            'save ""',  # memory only: what is lost is computed again
            "appendonly no",
            "daemonize no",
            f"dir {json.dumps(str(folder), ensure_ascii=False)}",
            *(_clustered(cluster) if cluster is not None else ()),
            "",
        )
    )


def _clustered(at: Endpoint) -> tuple[str, ...]:
    return (
        "cluster-enabled yes",
        f"cluster-config-file {CLUSTER_FILE}",
        f"cluster-port {at.bus_port}",
        f"cluster-announce-ip {at.host}",
        f"cluster-announce-port {at.port}",
        f"cluster-announce-bus-port {at.bus_port}",
        f"cluster-node-timeout {NODE_TIMEOUT_MS}",
        # A shard that is gone costs its own entries and nobody else's.
        "cluster-require-full-coverage no",
        "cluster-allow-reads-when-down yes",
    )
