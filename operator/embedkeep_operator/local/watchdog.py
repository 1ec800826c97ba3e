"""Holds one child process, and sees to it that nothing of it outlives `embedkeep up`.

Run as a script with the standard library alone, so that it starts in a few hundredths of a second:

    python -I -S watchdog.py PID_FILE GRACE_S COMMAND...

Its standard input is a pipe whose other end only `embedkeep up` holds: T asks the child to stop
(SIGTERM), K kills it and all it started. When the pipe closes, because `embedkeep up` was killed,
it does the same by itself: T, then K after GRACE_S seconds. The child is a process group of its
own; on Linux what leaves the group is found too (this process adopts it), and the child dies with
this process. Exits with the child's code, or with 128 + the signal that ended it.
"""

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36
ON_LINUX: Final = sys.platform == "linux"


def main(arguments: list[str]) -> int:
    """Start the child, obey the pipe, clean up."""
    pid_file, grace_s, command = Path(arguments[0]), float(arguments[1]), arguments[2:]
    ended_read, ended_write = os.pipe()
    os.set_blocking(ended_write, False)  # the standard library's signature
    signal.set_wakeup_fd(ended_write, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # they only wake the loop below
    set_death_signal = _prctl_calls()
    try:
        child = subprocess.Popen(  # one thread, and the call was looked up before
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=set_death_signal,  # noqa: PLW1509  # this process has one thread
        )
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error.strerror}\n")
        return 127
    _write_whole(pid_file, str(child.pid))
    try:
        _obey(child, ended_read, grace_s)
    finally:
        _kill_all(child)
    code = child.wait()
    return 128 - code if code < 0 else code


def _obey(child: "subprocess.Popen[bytes]", woken: int, grace_s: float) -> None:
    """Return when the child has ended, or is to be killed."""
    kill_at: float | None = None
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while child.poll() is None:
            left = None if kill_at is None else kill_at - time.monotonic()
            if left is not None and left <= 0:
                return
            for key, _ in selector.select(left):
                said = os.read(int(key.fd), 4096)
                if key.fd == woken:
                    said = b"T" if said.strip(bytes([signal.SIGCHLD])) else b""
                elif not said:
                    selector.unregister(0)
                    kill_at = time.monotonic() + grace_s
                    said = b"T"
                if b"K" in said:
                    return
                if b"T" in said:
                    _signal_group(child.pid, signal.SIGTERM)


def _kill_all(child: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of the group, then whatever this process has adopted, until none is."""
    _signal_group(child.pid, signal.SIGKILL)
    child.wait()
    while ON_LINUX:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> Iterator[int]:
    """Process ids of this process's children, adopted ones too. Linux."""
    me = os.getpid()
    try:
        yield from map(int, Path(f"/proc/{me}/task/{me}/children").read_text().split())
    except OSError:  # a kernel without that file
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(stat.read_text().rpartition(")")[2].split()[1]) == me:
                    yield int(stat.parent.name)


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, or all zombies (macOS)
        os.killpg(group, number)


def _prctl_calls() -> Callable[[], None] | None:
    """Adopt orphaned descendants, and give what the child calls to die with this process."""
    if not ON_LINUX:
        return None
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    parent = os.getpid()

    def in_child() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it died before the call above
            os._exit(1)

    return in_child


def _write_whole(file: Path, text: str) -> None:
    part = file.with_suffix(".part")
    part.write_text(text)
    part.replace(file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
