"""What `embedkeep up` keeps on disk about one cache; how others read it stands in `embedkeep.runs`.

<state dir>/<name>/: lock, run.json, cluster-secret, valkey-password, configs, pids/, logs/.
"""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

from embedkeep.errors import InvalidConfig
from embedkeep.runs import Run, read_run

SECRET_BYTES: Final = 32
LOCK_TRIES: Final = 5
LOCK_PAUSE_S: Final = 0.05
"""`embedkeep status` holds the lock for an instant to look at it."""


def write_run(folder: Path, run: Run) -> None:
    """Write run.json, whole or not at all."""
    write_private(folder / "run.json", json.dumps(asdict(run), indent=1).encode())


@contextmanager
def claimed(root: Path, name: str) -> Iterator[Path]:
    """The folder of *name*, for this process alone while the block runs.

    Raises:
        InvalidConfig: Another process has it, or it cannot be written.
    """
    folder = root / name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in ("pids", "logs"):
            (folder / part).mkdir(mode=0o700, exist_ok=True)
        lock = (folder / "lock").open("a")
    except OSError as error:
        raise InvalidConfig(
            f"{error.filename or folder}: {error.strerror}", field="--state-dir"
        ) from error
    with lock:
        _lock(lock.fileno(), folder, name)
        yield folder


def _lock(descriptor: int, folder: Path, name: str) -> None:
    for left in reversed(range(LOCK_TRIES)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if left:
                time.sleep(LOCK_PAUSE_S)
                continue
            run = read_run(folder)
            who = f" as process {run.pid}, started from {run.file}" if run is not None else ""
            raise InvalidConfig(
                f"{name} is already running{who}; stop it first, or give the resource"
                " another metadata.name",
                field="metadata.name",
            ) from None
        return


def kept_secret(file: Path) -> bytes:
    """32 random bytes, made once and then kept: keys of stored entries are derived from them.

    Raises:
        InvalidConfig: The file is there and holds less.
    """
    if not file.exists():
        write_private(file, secrets.token_bytes(SECRET_BYTES))
    held = file.read_bytes()
    if len(held) < SECRET_BYTES:
        raise InvalidConfig(
            f"holds {len(held)} bytes, must hold {SECRET_BYTES}: remove it to make a new one"
            " (entries that are stored under the old one are then lost)",
            source=str(file),
        )
    return held


def write_private(file: Path, data: bytes) -> None:
    """Write *file* for its owner alone; readers see all of it or nothing."""
    part = file.with_name(f"{file.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as writer:
        writer.write(data)
    part.replace(file)
