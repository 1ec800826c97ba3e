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
class Ports:
    """Where everything of one cache listens, on loopback."""

    grpc: int
    """The node, for services."""
    http: int
    """The node's OpenAI and TEI APIs."""
    metrics: int
    """The node's /metrics."""
    embedder_grpc: int
    embedder_metrics: int
    valkey: int


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

    @property
    def address(self) -> str:
        """GRPC target of the node."""
        return f"127.0.0.1:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        """Of the node: what OpenAI's clients call the base URL, less its /v1."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.ports.http}"

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
    """What run.json says; None: there is none, or it cannot be read."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        data = json.loads((folder / "run.json").read_text())
        return Run(**{**data, "ports": Ports(**data["ports"])})
    return None


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
    killed = [folder.name for folder in folders if read_run(folder) is not None]
    others = [run.name for run in _going_on(sorted(root.glob("*/")))]
    said = f"no cache named {name} runs here" if name is not None else "no cache runs here"
    if killed:
        said += f"; the last run of {', '.join(killed)} was killed"
    advice = f"name {' or '.join(others)}, or start" if others else "start"
    raise InvalidConfig(f"{said}: {advice} one with `embedkeep up FILE`")


def _going_on(folders: list[Path]) -> list[Run]:
    return [run for folder in folders if is_running(folder) and (run := read_run(folder))]
