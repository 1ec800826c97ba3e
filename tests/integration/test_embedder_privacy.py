import os
import subprocess
import sys
from pathlib import Path


def test_importing_the_onnx_backend_leaves_nothing_in_the_users_home(tmp_path: Path) -> None:
    """ONNX Runtime would keep a device id and a log of what ran there."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    env.pop("ORT_DISABLE_TELEMETRY", None)

    subprocess.run(
        [sys.executable, "-c", "import embedkeep.embedder.backends.onnx"],
        env=env | {"HOME": str(tmp_path)},
        check=True,
    )

    assert [str(file) for file in tmp_path.rglob("*") if file.is_file()] == []
