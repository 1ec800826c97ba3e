"""Runs one cache on this machine while a block runs; `embedkeep up`, the demo and tests use it.

    async with Local(Path("examples/quickstart.yaml")) as running:
        ...  # AsyncClient(running.url) ...

Nothing outlives the block, nor this process.
"""

import asyncio
import errno
import os
import shlex
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn

from embedkeep.config import ClientTls
from embedkeep.errors import InvalidConfig, Unavailable
from embedkeep.runs import Ports, Run, default_root, is_left_over
from embedkeep_operator import cron, manifest
from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.local.backoff import Backoff
from embedkeep_operator.local.forming import Forming
from embedkeep_operator.local.output import Output
from embedkeep_operator.local.predicting import Predicting
from embedkeep_operator.local.prepare import Prepared, prepare
from embedkeep_operator.local.programs import environment
from embedkeep_operator.local.state import claimed, write_run
from embedkeep_operator.local.supervisor import Board, Child, Event, Supervisor
from embedkeep_operator.render_warming import history
from embedkeep_operator.unbuilt import kubernetes_only, refuse_unbuilt

KEPT_EVENTS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A cache that runs on this machine."""

    resource: EmbeddingCache
    folder: Path
    """Its state: configs, logs, pids."""
    run: Run
    """What others read of it: ports and addresses."""
    tls: ClientTls | None
    """How to reach the nodes. None: plain text."""
    notes: tuple[str, ...]
    """What the resource says that means nothing on one machine."""
    supervisor: Supervisor
    forming: Forming | None
    """Makes one cluster of the Valkeys. None: there is one."""
    predicting: Predicting | None
    """Plans by the resource's schedule. None: no history is kept."""

    @property
    def name(self) -> str:
        """The resource's."""
        return self.run.name

    @property
    def ports(self) -> Ports:
        """Where everything listens."""
        return self.run.ports

    @property
    def url(self) -> str:
        """Client's target over HTTP: the node, or all of them."""
        return self.run.url

    @property
    def address(self) -> str:
        """The same over gRPC."""
        return self.run.address

    @property
    def processes(self) -> dict[str, Child]:
        """Valkeys, embedder and nodes by name: state, pid, starts, last lines."""
        return self.supervisor.children

    @property
    def command(self) -> str:
        """A line for a shell that asks this cache something."""
        words = ["embedkeep", "embed", "--address", self.url]
        tls = self.tls or ClientTls()
        for flag, value in (
            ("--tls-ca", tls.ca_file),
            ("--tls-cert", tls.cert_file),
            ("--tls-key", tls.key_file),
            ("--tls-name", tls.server_name),
            ("--api-key-file", self.run.api_key_file),
        ):
            words += [flag, str(value)] if value is not None else []
        return shlex.join([*words, "TEXT"])

    def pid(self, name: str) -> int:
        """Of the process itself, for example to disturb it in a test.

        Raises:
            Unavailable: It does not run now.
        """
        if (pid := self.processes[name].pid) is None:
            raise Unavailable(f"{name} does not run now")
        return pid

    async def ready(self, timeout_s: float | None = None) -> None:
        """Wait until every process is ready, and several Valkeys are one cluster.

        Raises:
            InvalidConfig: One can never start as the resource tells it.
            Unavailable: One was given up, or the time is over; says which and why.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self.supervisor.ready(lambda: self.forming is None or self.forming.whole)
        except TimeoutError:
            states = "; ".join(self.standing())
            raise Unavailable(f"not ready within {timeout_s:g} s: {states}") from None

    def standing(self) -> list[str]:
        """Where each process stands, and the Valkeys together, for people."""
        said = [
            f"{child.name} is {child.state}" + (f" ({child.reason})" if child.reason else "")
            for child in self.processes.values()
        ]
        if self.forming is not None and not self.forming.whole:
            said.append(f"the Valkeys are no cluster yet: {self.forming.standing}")
        return said

    async def over(self) -> NoReturn:
        """Wait for what ends a cache against its user's will, and raise it."""
        await self.supervisor.board.until(
            lambda: self.supervisor.lost() or (self.forming is not None and self.forming.ended())
        )
        raise self.supervisor.failure()


class Local:
    """Starts what a resource asks for, and stops it at the end of the block.

    Args:
        file: The resource.
        state_dir: Where state is kept, one folder a name. None: the user's state folder.
        secrets: Laid out as <name>/<key>. None: for a resource that names none.
        logs: Folder for log files. None: to *on_line*, or else into the state folder.
        on_line: Gets each line of output: process, stream, text. Must not block.
        on_event: Gets what is worth telling. Must not block.
        free_ports: Take free ports, whatever the resource says.
        wait_s: How long to wait until all is ready before the block begins, seconds. None: begin
            at once.
        policy: When processes that ended are started again.
    """

    def __init__(  # noqa: PLR0913  # each is an option of `embedkeep up`
        self,
        file: Path,
        *,
        state_dir: Path | None = None,
        secrets: Path | None = None,
        logs: Path | None = None,
        free_ports: bool = False,
        on_line: Callable[[str, str, str], None] | None = None,
        on_event: Callable[[Event], None] | None = None,
        wait_s: float | None = 120.0,
        policy: Backoff = Backoff(),  # noqa: B008  # frozen
    ) -> None:
        self._file = file
        self._root = state_dir if state_dir is not None else default_root()
        self._secrets = secrets
        self.logs = logs
        """Folder of log files; None: none yet, or lines go to *on_line*."""
        self._free_ports = free_ports
        self._on_line = on_line
        self._on_event = on_event
        self._wait_s = wait_s
        self._policy = policy
        self._stack = AsyncExitStack()
        self.events: deque[Event] = deque(maxlen=KEPT_EVENTS)
        """What was told, oldest first."""

    async def __aenter__(self) -> Running:
        """Check the resource, start its processes, and wait for them.

        Raises:
            InvalidConfig: The file or something on this machine is wrong.
            NotBuilt: It asks for what this version cannot do.
            Unavailable: A process cannot be started, or not in time.
        """
        async with AsyncExitStack() as stack:
            running = await self._start(stack)
            if self._wait_s is not None:
                await running.ready(self._wait_s)
            self._stack = stack.pop_all()
        return running

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the processes, the nodes first."""
        await self._stack.aclose()

    async def _start(self, stack: AsyncExitStack) -> Running:
        resource = await asyncio.to_thread(manifest.load, self._file)
        refuse_unbuilt(resource)
        name = resource.metadata.name
        stale = await asyncio.to_thread(is_left_over, self._root / name)
        folder = await asyncio.to_thread(stack.enter_context, claimed(self._root.absolute(), name))
        # Until the new one is written there is none: the lock would vouch for the old one.
        (folder / "run.json").unlink(missing_ok=True)
        prepared = await asyncio.to_thread(
            prepare,
            resource,
            folder,
            secrets=self._secrets,
            patient=stale,
            free_ports=self._free_ports,
        )
        if stale:
            self._tell(Event(at=time.time(), process="up", message="the last run was killed"))
        on_line = await self._outlet(stack, folder)
        supervisor = Supervisor(
            prepared.programs,
            pids=folder / "pids",
            on_line=on_line,
            on_event=self._tell,
            policy=self._policy,
        )
        forming = self._forming(prepared, supervisor.board)
        running = Running(
            resource=resource,
            folder=folder,
            run=self._run(name, prepared),
            tls=prepared.node_tls,
            notes=tuple(_notes(resource)),
            supervisor=supervisor,
            forming=forming,
            predicting=self._predicting(resource, prepared, folder, on_line),
        )
        write_run(folder, running.run)
        stack.callback((folder / "run.json").unlink, missing_ok=True)
        stack.push_async_callback(_stopped, supervisor)
        supervisor.start()
        if forming is not None:
            forming.start()
            stack.push_async_callback(forming.stop)
        if running.predicting is not None:
            running.predicting.start()
            stack.push_async_callback(running.predicting.stop)
        return running

    def _forming(self, prepared: Prepared, board: Board) -> Forming | None:
        if not prepared.valkeys:
            return None
        return Forming(
            prepared.valkeys, prepared.password, on_change=board.changed, on_event=self._tell
        )

    def _predicting(
        self,
        resource: EmbeddingCache,
        prepared: Prepared,
        folder: Path,
        on_line: Callable[[str, str, str], None],
    ) -> Predicting | None:
        if not prepared.predicts or resource.spec.warmup is None:
            return None
        return Predicting(
            folder,
            cron.parse(resource.spec.warmup.schedule).after,
            env=environment(),
            on_line=on_line,
            on_event=self._tell,
        )

    async def _outlet(
        self, stack: AsyncExitStack, folder: Path
    ) -> Callable[[str, str, str], None]:  # fmt: skip
        if self._on_line is not None:
            return self._on_line
        if self.logs is None:
            self.logs = folder / "logs"
        await asyncio.to_thread(_check_logs, self.logs)
        output = Output(self.logs)
        output.start()
        stack.push_async_callback(output.close)
        return output.line

    def _run(self, name: str, prepared: Prepared) -> Run:
        tls, key = prepared.node_tls, prepared.api_key_file
        return Run(
            name=name,
            pid=os.getpid(),
            started_at=time.time(),
            file=str(self._file.absolute()),
            ports=prepared.ports,
            tls=tls is not None,
            client_tls=tls.model_dump(mode="json") if tls is not None else None,
            api_key_file=str(key.absolute()) if key is not None else None,
        )

    def _tell(self, event: Event) -> None:
        self.events.append(event)
        if self._on_event is not None:
            self._on_event(event)


def _notes(resource: EmbeddingCache) -> Iterator[str]:
    """What the resource says that means nothing here."""
    for path in kubernetes_only(resource):
        yield f"only used on Kubernetes: {path}"
    if resource.spec.warmup is not None and history(resource) is None:
        yield "spec.warmup: nothing is warmed, because history.enabled is false: no text is kept"


def _check_logs(folder: Path) -> None:
    """Make the folder.

    Raises:
        InvalidConfig: Nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise InvalidConfig(
            f"{folder} cannot be written: {error.strerror}", field="--logs"
        ) from error


async def _stopped(supervisor: Supervisor) -> None:
    """Stop all, even if whoever waits for it is cancelled again."""
    stopping = asyncio.create_task(supervisor.stop(), name="stop")
    cancelled = None
    while not stopping.done():
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError as error:
            supervisor.kill()
            cancelled = error
    stopping.result()
    if cancelled is not None:
        raise cancelled
