"""From a resource to Valkey's config. Pure; see `render`.

All Valkeys of a cache have one config (`valkey_config`), which holds no secret. What only one of
them is told, its password among it, are a few lines behind it (`own_lines`): `embedkeep up` writes
both into one private file, and in a pod a script (`start_script`) hands the lines to the server
over its standard input, so that they stand in no argument, no environment and no file.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.api_nodes import Memory, Nodes

CLUSTER_FILE: Final = "nodes.conf"
"""Where a Valkey of a cluster keeps its id and whom it knows, in its working folder."""
NODE_TIMEOUT_MS: Final = 5000
"""Silence after which the others call a Valkey failed, and a replica asks for their votes. A
machine may well be too busy for a second or two."""
CERT_FILE: Final = "tls.crt"
KEY_FILE: Final = "tls.key"
CA_FILE: Final = "ca.crt"


def valkey_config(  # noqa: PLR0913  # where it runs, and with whom
    resource: EmbeddingCache,
    *,
    host: str,
    port: int,
    folder: Path,
    bus_port: int | None = None,
    tls: Path | None = None,
) -> str:
    """What all Valkeys of a cache are told.

    Args:
        host: Address to bind; `*` for all.
        port: For clients, with TLS or without.
        folder: Valkey's working folder.
        bus_port: For the other Valkeys. None: there is one, and it is no cluster.
        tls: Folder laid out as a kubernetes.io/tls Secret with a ca.crt. Clients, replicas and the
            bus then all speak TLS. On the bus each side shows its certificate to the other, so it
            must be good for servers and for clients. None: plain TCP.
    """
    memory = (resource.spec.nodes or Nodes()).memory or Memory()
    return "\n".join(
        (
            f"bind {host}",
            *((f"port {port}",) if tls is None else _encrypted(tls, port)),
            "protected-mode yes",
            f"maxmemory {memory.valkey}",
            "maxmemory-policy allkeys-lfu",
            'save ""',  # memory only: what is lost is computed again
            "appendonly no",
            "daemonize no",
            f"dir {_quoted(folder)}",
            *(_clustered(bus_port) if bus_port is not None else ()),
            "",
        )
    )


def own_lines(
    *, passwords: Sequence[str], address: str | None = None, hostname: str | None = None
) -> str:
    """What one Valkey alone is told, to stand behind `valkey_config`.

    Args:
        passwords: Of the default user, the first of which is shown to a primary; see `rotation`.
            They must hold no white space.
        address: IP address at which the others find it. None: it is no member of a cluster.
        hostname: A name that stays while addresses change. None: it has none.
    """
    accepted = " ".join(f">{password}" for password in passwords)
    return "\n".join(
        (
            # One that has just started gives nobody a copy of what it holds, which may be nothing:
            # a replica would throw away what it has. `topology` says when it may.
            f"user default on {accepted} ~* &* +@all -psync -sync",
            f"masterauth {passwords[0]}",
            *((f"cluster-announce-ip {address}",) if address is not None else ()),
            *((f"cluster-announce-hostname {hostname}",) if hostname is not None else ()),
            "",
        )
    )


def start_script(*, config: Path, password_file: Path, clustered: bool) -> str:
    """For sh in a pod, whose environment names POD_IP and POD_HOSTNAME, its own DNS name.

    Needs a Valkey 9 where there is a cluster: on SIGTERM a primary hands over to a replica first.

    Args:
        config: With `valkey_config` in it.
        password_file: Mounted. One password a line: all are accepted, the first is shown.
        clustered: It is a member of a cluster.
    """
    lines = own_lines(
        passwords=("${first}",),
        address="${POD_IP}" if clustered else None,
        hostname="${POD_HOSTNAME}" if clustered else None,
    ).replace(" >${first}", "${allowed}")
    if clustered:
        lines += "shutdown-on-sigterm failover\n"
    return (
        "set -eu\n"
        "first= allowed=\n"
        'while read -r line || [ -n "$line" ]; do\n'
        '  first="${first:-$line}" allowed="$allowed >$line"\n'
        f"done < {password_file}\n"
        f"exec valkey-server {config} - <<OWN\n{lines}OWN\n"
    )


def _encrypted(folder: Path, port: int) -> tuple[str, ...]:
    return (
        "port 0",
        f"tls-port {port}",
        "tls-replication yes",
        "tls-cluster yes",
        "tls-auth-clients no",  # the password tells who they are; on the bus certificates do
        f"tls-cert-file {_quoted(folder / CERT_FILE)}",
        f"tls-key-file {_quoted(folder / KEY_FILE)}",
        f"tls-ca-cert-file {_quoted(folder / CA_FILE)}",
    )


def _clustered(bus_port: int) -> tuple[str, ...]:
    return (
        "cluster-enabled yes",
        f"cluster-config-file {CLUSTER_FILE}",
        f"cluster-port {bus_port}",
        f"cluster-node-timeout {NODE_TIMEOUT_MS}",
        # A shard that is gone costs its own entries and nobody else's.
        "cluster-require-full-coverage no",
        "cluster-allow-reads-when-down yes",
        # A copy that is old is better than none: entries do not age, and an invalidation that
        # succeeded has reached every copy.
        "cluster-replica-validity-factor 0",
        # Which shard a Valkey belongs to is said by its name.
        "cluster-allow-replica-migration no",
        "repl-diskless-sync-delay 0",  # there are few replicas to wait for
    )


def _quoted(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)
