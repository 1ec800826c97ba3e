"""The caches that `embedkeep up` runs on this machine, as others find them.

<root>/<name>/ holds lock and run.json beside what `up` keeps for itself. The lock is the truth:
the kernel gives it back however a process ends, so a run.json without a locked lock is left over.
`embedkeep_operator.local` writes them; it, `embedkeep embed` and `embedkeep status` read them here.
"""

import contextlib
import fcntl
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from embedkeep.config import ClientTls
from embedkeep.errors import InvalidConfig

NAME: Final = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""A cache's name, and that of its folder."""
NAME_RULE: Final = "lower-case letters, digits and -, beginning with a letter, not ending with -"
"""NAME for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePorts:
    """Where a node and the Valkey beside it listen."""

    grpc: int
    """For services."""
    http: int
    """For services, and OpenAI's and TEI's APIs."""
    metrics: int
    """/metrics."""
    valkey: int
    bus: int | None = None
    """For the other Valkeys. None: there is one."""
    shard: int = 0
    """Whose keys the Valkey holds, as primary or as replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where everything of one cache listens, on loopback."""

    nodes: tuple[NodePorts, ...]
    """Shard by shard."""
    embedder_grpc: int
    embedder_metrics: int

    @property
    def address(self) -> str:
        """GRPC target: the node, or all of them for a client that balances over them."""
        several = "ipv4:" if len(self.nodes) > 1 else ""
        return several + ",".join(f"127.0.0.1:{node.grpc}" for node in self.nodes)

    @property
    def metrics_urls(self) -> dict[str, str]:
        """Of each node and the embedder, by the process's name."""
        ports = dict(zip(numbered("node", len(self.nodes)), self.nodes, strict=True))
        found = {name: f"http://127.0.0.1:{node.metrics}/metrics" for name, node in ports.items()}
        return {**found, "embedder": f"http://127.0.0.1:{self.embedder_metrics}/metrics"}


def numbered(kind: str, count: int) -> tuple[str, ...]:
    """Names of processes of one kind: node, or node-0, node-1 ... of several, shard by shard."""
    return (kind,) if count == 1 else tuple(f"{kind}-{number}" for number in range(count))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of `embedkeep up`, as written to run.json."""

    name: str
    pid: int
    started_at: float
    """Seconds since the epoch."""
    file: str
    """The resource's file."""
    ports: Ports
    tls: bool = False
    """The node speaks TLS."""
    client_tls: dict[str, str | None] | None = None
    """How this machine's own processes reach it: fields of ClientTls. None: plain text."""
    api_key_file: str | None = None
    """Holds API keys, one a line, of the first tenant. None: everybody may call."""

    @property
    def address(self) -> str:
        """As `Ports.address`."""
        return self.ports.address

    @property
    def url(self) -> str:
        """Client's target over HTTP: the node, or all of them with commas between them."""
        return ",".join(self._urls)

    @property
    def _urls(self) -> list[str]:
        scheme = "https" if self.tls else "http"
        return [f"{scheme}://127.0.0.1:{node.http}" for node in self.ports.nodes]

    def places(self) -> tuple[tuple[str, str], ...]:
        """What is served where, for people."""
        nodes = self.ports.nodes
        return (
            ("HTTP", " ".join(self._urls)),
            ("gRPC", f"{self.address}{' (TLS)' if self.tls else ''}"),
            ("metrics", " ".join(f"http://127.0.0.1:{node.metrics}/metrics" for node in nodes)),
        )

    @property
    def way_in(self) -> ClientTls | None:
        """How to reach the node from this machine. None: plain text."""
        return ClientTls.model_validate(self.client_tls) if self.client_tls is not None else None


def default_root() -> Path:
    """$XDG_STATE_HOME/embedkeep, or ~/.local/state/embedkeep."""
    home = os.environ.get("XDG_STATE_HOME", "")
    base = Path(home) if os.path.isabs(home) else Path.home() / ".local" / "state"  # noqa: PTH117  # an empty text is no path
    return base / "embedkeep"


def read_run(folder: Path) -> Run | None:
    """What run.json says; None: there is none, or another version wrote it."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        data = json.loads(_file(folder).read_text())
        nodes = tuple(NodePorts(**node) for node in data["ports"]["nodes"])
        return Run(**{**data, "ports": Ports(**{**data["ports"], "nodes": nodes})})
    return None


def is_left_over(folder: Path) -> bool:
    """A run wrote its run.json here and was killed."""
    return _file(folder).exists() and not is_running(folder)


def _file(folder: Path) -> Path:
    return folder / "run.json"


def is_running(folder: Path) -> bool:
    """A process holds the lock of this folder now."""
    try:
        with (folder / "lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def find(root: Path, name: str | None) -> list[Run]:
    """The runs under *root* that are going on, by name.

    Args:
        name: Only this one. None: all.

    Raises:
        InvalidConfig: There is none; says which was killed, and which there are.
    """
    if name is not None and not re.search(NAME, name):
        raise InvalidConfig(f"{name!r} is no cache's name: these are {NAME_RULE}")
    folders = [root / name] if name is not None else sorted(root.glob("*/"))
    if runs := _going_on(folders):
        return runs
    killed = [folder.name for folder in folders if is_left_over(folder)]
    others = [run.name for run in _going_on(sorted(root.glob("*/")))]
    said = f"no cache named {name} runs here" if name is not None else "no cache runs here"
    if killed:
        said += f"; the last run of {', '.join(killed)} was killed"
    unread = [each.name for each in folders if is_running(each) and read_run(each) is None]
    if unread:
        said += f"; {', '.join(unread)} is just starting, or another version of embedkeep runs it"
    advice = f"name {' or '.join(others)}, or start" if others else "start"
    raise InvalidConfig(f"{said}: {advice} one with `embedkeep up FILE`")


def _going_on(folders: list[Path]) -> list[Run]:
    return [run for folder in folders if is_running(folder) and (run := read_run(folder))]
