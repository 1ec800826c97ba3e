"""Runs all benchmarks in order and draws the charts: `make bench`, about half an hour on two cores.

    EMBEDKEEP_DATA=<folder> .venv-peers/bin/python benchmarks/all.py [--quick] [--only NAME ...]

One that fails or takes too long is ended, and the others go on; what it had measured before stays.
Exits with 1 where any failed. --quick runs those that can be short, and keeps nothing.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
TORCH: Final = HERE.parent / ".venv" / "torch"
"""There once `make test-torch` has installed it."""
LIMIT_S: Final = 15 * 60.0
"""No benchmark should take a third of it."""


@dataclass(frozen=True, slots=True)
class Script:
    """One benchmark."""

    name: str
    quick: bool = True
    """It can be short."""
    torch: bool = False
    """It has rows of torch, where that is installed beside."""


SCRIPTS: Final = (
    Script("peers"),
    Script("http_peers"),
    Script("stampede"),
    Script("bytes"),
    Script("end_to_end"),
    Script("curves"),
    Script("overload"),
    Script("upstream_answers"),
    Script("node_cpu", quick=False),
    Script("miss", quick=False),
    Script("warming"),
    Script("embedder", quick=False, torch=True),
    Script("int8", quick=False, torch=True),
    Script("bulk", quick=False),
    Script("memory", quick=False),
    Script("starting", quick=False),
    Script("eviction", quick=False),
    Script("charts"),
)


def run(script: Script, *, quick: bool) -> str | None:
    """Run one. Returns what was wrong; None: nothing."""
    python = TORCH.parent / "bin" / "python" if script.torch and TORCH.exists() else sys.executable
    command = [python, HERE / f"{script.name}.py", *(["--quick"] if quick else [])]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"took more than {LIMIT_S / 60:g} minutes"
    finally:
        _end(process)
    return None if code == 0 else f"exited with {code}"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End it and what it started: first as Ctrl-C does, so that it can clean up."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                continue


def main() -> None:
    """Run all that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="short, and not to be believed")
    names = [script.name for script in SCRIPTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the script that runs ends too
    if given.quick:
        shutil.rmtree(HERE.parent / ".bench", ignore_errors=True)
    failed: dict[str, str] = {}
    for script in SCRIPTS:
        if script.name not in given.only or (given.quick and not script.quick):
            continue
        print(f"== {script.name}", flush=True)
        began = time.monotonic()
        if (wrong := run(script, quick=given.quick)) is not None:
            failed[script.name] = wrong
        print(
            f"== {script.name}: {wrong or 'done'} in {time.monotonic() - began:.0f} s", flush=True
        )
    for name, wrong in failed.items():
        print(f"failed: {name} {wrong}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
