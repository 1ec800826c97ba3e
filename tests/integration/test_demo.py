import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def left_running(mark: str) -> list[str]:
    """Command lines of processes that have *mark* in them."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        if mark in words:
            found.append(words)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_the_demo_ends_by_itself_and_leaves_nothing_running(tmp_path: Path) -> None:
    """The README's first command, as it stands there."""
    ran = subprocess.run(
        [sys.executable, "-m", "embedkeep_operator.local.demo", "--svg", tmp_path / "demo.svg"],
        cwd=ROOT,
        # A proxy that is not there: nothing of this may be asked through one.
        env={
            "http_proxy": "http://127.0.0.1:9",
            "PATH": "",
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path),
            "COLUMNS": "100",
        },
        capture_output=True,
        text=True,
        timeout=115,
        check=False,
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    rows = {
        cells[0]: cells[1:]
        for line in ran.stdout.splitlines()
        if len(cells := [cell.strip() for cell in line.strip("│┃ ").split("│")]) > 1
    }
    computed = int(rows["embedder"][2].replace(",", ""))
    # One for each question; a read from Valkey that a busy machine makes too slow costs another.
    assert 2000 <= computed < 2200
    assert rows["embeddings computed"] == [rows["embedder"][2]]
    assert rows["Valkey"][0] == "0"
    assert int(rows["Valkey"][1]) > 0
    assert "http://www.w3.org/2000/svg" in (tmp_path / "demo.svg").read_text()
    assert left_running(str(tmp_path)) == []
    assert not list(tmp_path.glob("embedkeep-demo-*"))
