"""Ctrl-C at any time: no traceback, and the status that shells know."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LOADING = "import signal\nprint('loading', flush=True)\nsignal.pause()\n"


@pytest.mark.parametrize(
    ("module", "status"),
    [("click", -signal.SIGINT), ("rich", 130)],
    ids=["while the command's frame is loaded", "while one command is loaded"],
)
def test_ctrl_c_while_it_loads_is_no_traceback(tmp_path: Path, module: str, status: int) -> None:
    (tmp_path / f"{module}.py").write_text(LOADING)
    before = os.environ.get("PYTHONPATH", "")
    with subprocess.Popen(
        [sys.executable, "-m", "embedkeep", "up", "none.yaml"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), before]))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"loading\n"

        process.send_signal(signal.SIGINT)
        _, err = process.communicate()

    assert (process.returncode, err.strip()) == (status, b"")


def test_who_wants_it_ignored_is_obeyed(tmp_path: Path) -> None:
    """As with nohup, and behind `&` in a script."""
    (tmp_path / "click.py").write_text(
        "import signal, sys\nsys.exit(signal.getsignal(signal.SIGINT) is not signal.SIG_IGN)\n"
    )
    before = os.environ.get("PYTHONPATH", "")

    ran = subprocess.run(
        ["/bin/sh", "-c", f"trap '' INT; exec {sys.executable} -m embedkeep"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), before]))},
        check=False,
    )

    assert ran.returncode == 0
