"""Finding the caches that `embedkeep up` runs on this machine.

Each keeps ``<state>/embedkeep/<name>/run.json`` with its process id and ports, where <state> is
XDG_STATE_HOME or ~/.local/state. The file may outlive a process that was killed, so the id counts.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from embedkeep.errors import InvalidConfig


def state_dir(environ: Mapping[str, str]) -> Path:
    """Where local caches keep what they write."""
    home = environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "embedkeep"


def is_alive(pid: int) -> bool:
    """Whether a process of that id runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def running_caches(state: Path, *, alive: Callable[[int], bool] = is_alive) -> dict[str, str]:
    """Addresses of the caches that run here, by name. Files that cannot be read are passed over."""
    found: dict[str, str] = {}
    for file in sorted(state.glob("*/run.json")):
        try:
            said = json.loads(file.read_text())
            pid, port = int(said["pid"]), int(said["ports"]["grpc"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if alive(pid):
            found[file.parent.name] = f"127.0.0.1:{port}"
    return found


def address_of(wanted: str | None, running: Mapping[str, str]) -> str:
    """The gRPC target that *wanted* means.

    Args:
        wanted: An address, the name of a running cache, or None: the only one that runs.

    Raises:
        InvalidConfig: No such cache runs, or it is not clear which is meant.
    """
    names = ", ".join(running)
    if wanted is None:
        if len(running) == 1:
            return next(iter(running.values()))
        problem = f"several caches run here ({names}): name one" if running else (
            "no cache runs here: start one with `embedkeep up FILE`, or give host:port"
        )  # fmt: skip
        raise InvalidConfig(problem, field="--address")
    if ":" in wanted:
        return wanted
    if wanted in running:
        return running[wanted]
    raise InvalidConfig(
        f"no cache named {wanted!r} runs here ({f'there are: {names}' if names else 'none does'}): "
        "give its host:port, or start it with `embedkeep up FILE`",
        field="--address",
    )
