"""`embedkeep up FILE`."""

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypedDict, Unpack

import click
from rich.console import Console, RenderableType
from rich.live import Live

from embedkeep_operator.counts import Counts
from embedkeep_operator.local import view
from embedkeep_operator.local.observe import Sums, rates, read
from embedkeep_operator.local.output import Output
from embedkeep_operator.local.runner import Local, Running
from embedkeep_operator.local.supervisor import Event

LIVE_S: Final = 1.0
PLAIN_S: Final = 5.0
"""Between two looks, seconds: a line in a log is read later, a picture now."""

EPILOG: Final = """
\b
Examples:
  embedkeep up examples/quickstart.yaml
  embedkeep up cache.yaml --plain > cache.log 2>&1
  embedkeep up examples/tenants.yaml --secrets ~/embedkeep-secrets
  EMBEDKEEP_VALKEY=/opt/valkey/bin/valkey-server embedkeep up cache.yaml

Secrets are read from DIR/<secret name>/<key>, as Kubernetes mounts them. What is kept between
runs, and the logs behind the live view, lie in the state folder under the resource's name.

\b
Exit status: 0, stopped by Ctrl-C or SIGTERM; 1, a process could not be started; 2, the file or
something it names is wrong, or asks for what is not built yet; 130, Ctrl-C before it had begun.
"""


class Flags(TypedDict):
    """The command's options."""

    secrets: Path | None
    state_dir: Path | None
    logs: Path | None
    plain: bool
    free_ports: bool


_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command("up", epilog=EPILOG)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--secrets", type=_FOLDER, metavar="DIR", help="Where secrets are read from.")
@click.option(
    "--logs", type=_FOLDER, metavar="DIR", help="Write each process's log to a file in DIR."
)
@click.option("--plain", is_flag=True, help="Plain lines instead of the live view.")
@click.option("--free-ports", is_flag=True, help="Take free ports, whatever FILE says.")
@click.option(
    "--state-dir", type=_FOLDER, metavar="DIR",
    help="Where state is kept.  [default: $XDG_STATE_HOME/embedkeep]",
)  # fmt: skip
def up(file: Path, **flags: Unpack[Flags]) -> None:
    """Run the cache that FILE describes on this machine, until Ctrl-C.

    FILE holds one EmbeddingCache, the same that Kubernetes would get. This starts a Valkey, an
    embedder and a node for it, starts them again when they end, and shows what the cache does. The
    second Ctrl-C kills them.
    """
    asyncio.run(_up(file, flags))


@dataclass(slots=True)
class _Signals:
    """What the user asked for so far."""

    first: asyncio.Event = field(default_factory=asyncio.Event)
    kill: Callable[[], None] | None = None
    """What a second signal does. None: nothing runs yet."""

    def received(self) -> None:
        if self.first.is_set() and self.kill is not None:
            self.kill()
        self.first.set()


async def _up(file: Path, flags: Flags) -> None:
    console = Console()
    live = console.is_terminal and not flags["plain"]
    signals = _Signals()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, signals.received)
    output = Output(None)
    output.start()
    try:
        to_terminal = not live and flags["logs"] is None
        local = Local(
            file,
            state_dir=flags["state_dir"],
            secrets=flags["secrets"],
            logs=flags["logs"],
            free_ports=flags["free_ports"],
            on_line=output.line if to_terminal else None,
            on_event=None if live else _teller(output),
            wait_s=None,
        )
        async with local as running:
            signals.kill = running.supervisor.kill
            if live:
                show = _live(console, local, running)
            else:
                for text in _introduction(running, logs=flags["logs"]):
                    output.line("up", "stdout", text)
                show = _plain(output, running)
            await _until_over(running, signals.first, show)
            output.line("up", "stdout", "stopping")
    finally:
        await output.close()


def _introduction(running: Running, *, logs: Path | None) -> list[str]:
    kept = f"; logs in {logs}" if logs is not None else ""
    where = ", ".join(f"{what} on {where}" for what, where in running.run.places())
    return [*running.notes, f"{running.name}: {where}{kept}"]


async def _until_over(
    running: Running, stop: asyncio.Event, show: Coroutine[None, None, None]
) -> None:
    """Show until a signal comes; raises what a process was given up for."""
    tasks = {
        asyncio.create_task(stop.wait(), name="signals"),
        asyncio.create_task(running.over(), name="failures"),
        asyncio.create_task(show, name="view"),
    }
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _teller(output: Output) -> Callable[[Event], None]:
    def tell(event: Event) -> None:
        output.line(event.process, "stderr" if event.bad else "stdout", f"[up] {event.message}")

    return tell


async def _plain(output: Output, running: Running) -> None:
    """A line every few seconds: what is waited for, then what the cache does."""
    while not await _is_ready(running, PLAIN_S):
        output.line("up", "stdout", f"waiting: {', '.join(running.standing())}")
    output.line("up", "stdout", f"ready: {running.command}")
    async for counts, rate in _looks(running, PLAIN_S):
        output.line("up", "stdout", view.line(counts, rate))


async def _is_ready(running: Running, wait_s: float) -> bool:
    try:
        async with asyncio.timeout(wait_s):
            await running.ready()
    except TimeoutError:
        return False
    return True


async def _live(console: Console, local: Local, running: Running) -> None:
    """A picture, redrawn every second."""
    for note in running.notes:
        console.print(note, highlight=False)
    between = "\n" if len(running.ports.nodes) > 1 else "   "
    title = between.join([f"embedkeep {running.name}", *map(" ".join, running.run.places())])

    def drawn(counts: Counts, rate: dict[str, float]) -> RenderableType:
        forming = running.forming
        apart = "" if forming is None or forming.whole else f"cluster: {forming.standing}\n"
        return view.picture(
            title,
            running.processes.values(),
            counts,
            rate,
            local.events,
            hint=f"{apart}{running.command}\nlogs in {local.logs}   Ctrl-C stops",
            now_s=time.monotonic(),
        )

    with Live(
        drawn(Counts(), {}), console=console, auto_refresh=False, redirect_stdout=False,
        redirect_stderr=False,
    ) as screen:  # fmt: skip
        async for counts, rate in _looks(running, LIVE_S):
            await asyncio.to_thread(screen.update, drawn(counts, rate), refresh=True)


async def _looks(
    running: Running, every_s: float
) -> AsyncGenerator[tuple[Counts, dict[str, float]], None]:
    """Counts since `up` began, over restarts of the processes, and rates, now and again."""
    before, before_s, sums = Counts(), time.monotonic(), Sums()
    while True:
        now = sums.add(await read(running.ports.metrics_urls))
        now_s = time.monotonic()
        yield now, rates(before, now, over_s=max(now_s - before_s, 0.001))
        before, before_s = now, now_s
        await asyncio.sleep(every_s)
