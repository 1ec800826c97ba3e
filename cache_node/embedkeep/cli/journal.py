"""What a long run leaves on disk, so that another one goes on where it was.

A run appends to files beside its output and notes, in a checkpoint, how much of its input is in
them. However it ends, what was written after the last checkpoint is cut off by the next run, so
that nothing is there twice and nothing is left out. The checkpoint also has a digest of all input
that is done: input that has changed is found out, and input that has only grown is not.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import BinaryIO, Final

from embedkeep.errors import InvalidConfig

EVERY_S: Final = 2.0
"""Between checkpoints: what a killed run does again, at most; each costs a sync of the disk."""
VERSION: Final = 1

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """How far a run has come."""

    task: dict[str, Json]
    """What was asked for; a run that is asked for something else must not go on from here."""
    done: int = 0
    """Items of the input."""
    digest: str = ""
    """Of these."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Of the files, bytes."""
    state: dict[str, Json] = field(default_factory=dict)
    """What the run has counted."""
    version: int = VERSION


def go_on_from(found: Checkpoint, task: Mapping[str, Json], sizes: Mapping[str, int]) -> str | None:
    """Why a run cannot go on from *found*; None: it can.

    Args:
        task: What is asked for now.
        sizes: Of the files as they are, bytes.
    """
    if found.version != VERSION:
        return "it was written by another version"
    for name in sorted(task.keys() | found.task.keys()):
        before, now = found.task.get(name), task.get(name)
        if before != now:
            return f"{name} was {_shown(before)} then and is {_shown(now)} now"
    for name, size in found.sizes.items():
        if sizes.get(name, -1) < size:
            return f"{name} has lost what the checkpoint says was in it"
    return None


def _shown(value: Json) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "not given" if value is None else repr(value)


class Witness:
    """A digest of items, in their order."""

    def __init__(self) -> None:
        self._state = hashlib.blake2b(digest_size=16)

    def add(self, data: bytes) -> None:
        """One more."""
        self._state.update(len(data).to_bytes(8, "little"))
        self._state.update(data)

    @property
    def digest(self) -> str:
        """Of all so far."""
        return self._state.hexdigest()


class Journal:
    """The files of one run. Made by `keeping`.

    Args:
        files: By name; cut back to what *start* says, with their position at the end.
        start: Where to go on from.
    """

    def __init__(self, path: Path, files: Mapping[str, BinaryIO], start: Checkpoint) -> None:
        self._path = path
        self._files = files
        self._saved_at = time.monotonic()
        self.start = start
        self.over = False

    def file(self, name: str) -> BinaryIO:
        """What the run appends to."""
        return self._files[name]

    @property
    def due(self) -> bool:
        """The last checkpoint is old enough."""
        return time.monotonic() - self._saved_at >= EVERY_S

    def save(self, *, done: int, digest: str, state: dict[str, Json]) -> None:
        """Note that so much is done, once all files are on the disk."""
        sizes = {}
        for name, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            sizes[name] = file.tell()
        now = Checkpoint(task=self.start.task, done=done, digest=digest, sizes=sizes, state=state)
        part = self._path.with_name(f"{self._path.name}.new")
        with part.open("w") as written:
            json.dump(asdict(now), written)
            written.flush()
            os.fsync(written.fileno())
        part.replace(self._path)
        _sync_folder(self._path.parent)
        self._saved_at = time.monotonic()

    def finish(self) -> None:
        """The run is over: a next one begins anew."""
        self.over = True
        self._path.unlink(missing_ok=True)
        _sync_folder(self._path.parent)


@contextlib.contextmanager
def keeping(
    base: Path, names: Sequence[str], task: dict[str, Json], *, restart: bool
) -> Iterator[Journal]:
    """The journal of a run: BASE.checkpoint, and a file BASE.NAME for each of *names*.

    Args:
        restart: Throw away what an earlier run has left.

    Raises:
        InvalidConfig: Another run writes them, or an earlier one cannot be gone on from; says what
            to do.
        OSError: They cannot be written.
    """
    path = base.with_name(f"{base.name}.checkpoint")
    owns = {name: base.with_name(f"{base.name}.{name}") for name in names}
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(_locked(own)) for name, own in owns.items()}
        found = None if restart else _read(path)
        if found is not None:
            sizes = {name: os.fstat(file.fileno()).st_size for name, file in files.items()}
            if why := go_on_from(found, task, sizes):
                raise InvalidConfig(
                    f"cannot go on from {path}: {why}; --restart begins anew", field="--restart"
                )
        else:
            path.unlink(missing_ok=True)
        start = found or Checkpoint(task=task)
        for name, file in files.items():
            file.truncate(start.sizes.get(name, 0))
            file.seek(0, os.SEEK_END)
        journal = Journal(path, files, start)
        try:
            yield journal
        finally:
            if not path.exists():  # it is over, or nothing was done yet
                for name, file in files.items():
                    file.flush()
                    if not journal.over or os.fstat(file.fileno()).st_size == 0:
                        owns[name].unlink(missing_ok=True)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block has ended, and is raised then."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    asked = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


def _read(path: Path) -> Checkpoint | None:
    try:
        return Checkpoint(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise InvalidConfig(
            f"{path} is no checkpoint: {error}; --restart begins anew", field="--restart"
        ) from error


def _locked(path: Path) -> BinaryIO:
    """*path*, made where it is not there, for reading and writing by this process alone."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InvalidConfig(f"another run is writing {path}", field="--output") from error
    return file


def _sync_folder(folder: Path) -> None:
    """Make renames in *folder* last."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
