"""Keeping processes running: order, restarts, endings. The processes are small and real."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from embedkeep.errors import InvalidConfig, Unavailable
from embedkeep_operator.local.backoff import Backoff
from embedkeep_operator.local.endings import ended_how
from embedkeep_operator.local.supervisor import Event, Program, State, Supervisor
from support.endings import until_gone

TESTS = Path(__file__).parents[1]
QUICK = Backoff(first_s=0.01, most_s=0.05, first_tries=3)

READY = """
import pathlib, signal, sys, time
pathlib.Path(sys.argv[1]).touch()
print("up", flush=True)
"""
WELL_BEHAVED = READY + "signal.pause()\n"
STUBBORN = READY.replace("pathlib.Path", "signal.signal(15, signal.SIG_IGN); pathlib.Path") + (
    "while True: signal.pause()\n"
)
ENDS_AT_ONCE = "import sys; print('cannot find the model', file=sys.stderr); sys.exit(3)"
# Asked to end, it says so in a file of its own and waits for the file of another.
ENDS_TOGETHER = """
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path(sys.argv[1]).with_suffix(".ending").touch()
    while not pathlib.Path(sys.argv[2]).exists():
        time.sleep(0.005)
    sys.exit(print("ended", flush=True))
signal.signal(15, end)
pathlib.Path(sys.argv[1]).touch()
while True:
    signal.pause()
"""
NEVER_READY = "import signal; signal.pause()"
# A grandchild in the group, and one that left it; their ids stand in the file.
WITH_OFFSPRING = """
import os, pathlib, signal, subprocess, sys
sleeper = [sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN)\\n"
           "while True: signal.pause()"]
pids = [subprocess.Popen(sleeper).pid, subprocess.Popen(sleeper, start_new_session=True).pid]
part = pathlib.Path(sys.argv[1] + ".part")
part.write_text(" ".join(map(str, [os.getpid(), *pids])))
part.rename(sys.argv[1])
signal.pause()
"""


@dataclass
class Stage:
    """A folder for programs, and what was heard of them."""

    folder: Path
    events: list[Event] = field(default_factory=list)
    lines: list[tuple[str, str, str]] = field(default_factory=list)

    def program(
        self, name: str, code: str, *, after: tuple[str, ...] = (), grace_s: float = 10
    ) -> Program:
        """One that is ready while its file is there."""
        file = self.folder / f"{name}.ready"

        async def probe() -> str | None:
            return None if file.exists() else "no file yet"

        command = (sys.executable, "-c", code, str(file))
        return Program(name=name, command=command, probe=probe, after=after, stop_grace_s=grace_s)

    def offspring(self, name: str) -> list[int]:
        """The process ids that a program WITH_OFFSPRING wrote down."""
        return [*map(int, (self.folder / f"{name}.ready").read_text().split())]

    @asynccontextmanager
    async def running(
        self, *programs: Program, policy: Backoff = QUICK
    ) -> AsyncIterator[Supervisor]:
        """A supervisor of *programs*, stopped at the end."""
        supervisor = Supervisor(
            programs,
            pids=self.folder,
            on_line=lambda *line: self.lines.append(line),
            on_event=self.events.append,
            policy=policy,
        )
        supervisor.start()
        try:
            yield supervisor
        finally:
            await supervisor.stop()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


async def test_a_program_waits_for_those_that_it_needs(stage: Stage) -> None:
    first = stage.program("first", NEVER_READY)
    second = stage.program("second", WELL_BEHAVED, after=("first",))
    async with stage.running(first, second) as supervisor:
        await supervisor.board.until(lambda: supervisor.children["first"].state is State.STARTING)
        assert supervisor.children["second"].state is State.WAITING

        (stage.folder / "first.ready").touch()
        await supervisor.ready()

        assert supervisor.children["second"].starts == 1


async def test_a_program_that_refuses_what_it_is_told_is_tried_once(stage: Stage) -> None:
    code = "import sys; print('loading'); print('error: model.size: 9 is too much'); sys.exit(2)"
    program = replace(
        stage.program("embedder", code),
        refusal_codes=frozenset({2}),
        told_by={"model.size": "spec.model.size"},
    )
    async with stage.running(program) as supervisor:
        with pytest.raises(InvalidConfig) as caught:
            await supervisor.ready()

        assert str(caught.value) == "spec.model.size: 9 is too much"
        assert supervisor.children["embedder"].starts == 1


async def test_a_refusal_after_it_was_ready_may_pass(stage: Stage) -> None:
    """What it read at its first start is there: a folder that is away for a while comes back."""
    program = replace(stage.program("node", WELL_BEHAVED), refusal_codes=frozenset({128 + 9}))
    async with stage.running(program) as supervisor:
        await supervisor.ready()
        child = supervisor.children["node"]
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        await supervisor.board.until(lambda: child.starts == 2)
        await supervisor.ready()


async def test_programs_stop_rank_by_rank_and_those_of_one_rank_together(stage: Stage) -> None:
    """The nodes wait for each other's end here: stopped one by one, the first would be killed."""
    ends = "import signal, sys\n" + WELL_BEHAVED.replace(
        "print(", "signal.signal(15, lambda *_: sys.exit(print('ended', flush=True)))\nprint("
    )
    partners = {"node-0": "node-1", "node-1": "node-0"}
    programs = [
        replace(
            stage.program(name, ENDS_TOGETHER if name in partners else ends, grace_s=20),
            stop_rank=rank,
        )
        for name, rank in (("valkey", 0), ("embedder", 1), ("node-0", 2), ("node-1", 2))
    ]
    for place, program in enumerate(programs):
        if program.name in partners:
            ending = str(stage.folder / f"{partners[program.name]}.ending")
            programs[place] = replace(program, command=(*program.command, ending))
    async with stage.running(*programs) as supervisor:
        await supervisor.ready()

    ended = [name for name, _, text in stage.lines if text == "ended"]
    assert {*ended[:2]} == {"node-0", "node-1"}
    assert ended[2:] == ["embedder", "valkey"]
    assert {child.state for child in supervisor.children.values()} == {State.STOPPED}


async def test_a_program_that_dies_is_started_again(stage: Stage) -> None:
    async with stage.running(stage.program("one", WELL_BEHAVED)) as supervisor:
        await supervisor.ready()
        child = supervisor.children["one"]
        first = child.pid
        assert first is not None

        os.kill(first, signal.SIGKILL)
        await supervisor.board.until(lambda: child.starts == 2)
        await supervisor.ready()

        assert child.pid not in {None, first}
    assert any("ended by SIGKILL; starting it again" in event.message for event in stage.events)


async def test_a_program_that_never_starts_is_given_up_with_its_last_words(stage: Stage) -> None:
    async with stage.running(stage.program("embedder", ENDS_AT_ONCE)) as supervisor:
        with pytest.raises(Unavailable) as caught:
            await supervisor.ready()

    assert str(caught.value) == (
        "embedder could not be started in 3 tries: ended with exit code 3; it said last:"
        "\n    cannot find the model"
    )


async def test_a_program_that_does_not_exist_is_given_up(stage: Stage) -> None:
    missing = stage.program("one", "")
    missing = Program(name="one", command=("/no/such/program",), probe=missing.probe)
    async with stage.running(missing) as supervisor:
        await supervisor.board.until(supervisor.lost)
        reason = supervisor.failure()

    assert "cannot start /no/such/program: No such file or directory" in str(reason)


async def test_a_stubborn_program_is_killed_when_its_grace_is_over(stage: Stage) -> None:
    async with stage.running(stage.program("one", STUBBORN, grace_s=0.1)) as supervisor:
        await supervisor.ready()
        pid = supervisor.children["one"].pid
        assert pid is not None

    await until_gone([pid])
    assert [event.message for event in stage.events][-1] == "did not stop in time: killed"


async def test_a_second_wish_to_stop_kills_at_once(stage: Stage) -> None:
    """The grace is longer than the test may take: only the kill can end it."""
    async with stage.running(stage.program("one", STUBBORN, grace_s=3600)) as supervisor:
        await supervisor.ready()
        stopping = asyncio.create_task(supervisor.stop())
        await supervisor.board.until(lambda: supervisor.children["one"].state is State.STOPPING)

        supervisor.kill()

        await stopping


async def test_what_a_program_started_ends_with_it(stage: Stage) -> None:
    async with stage.running(stage.program("one", WITH_OFFSPRING)) as supervisor:
        await supervisor.ready()
        pids = stage.offspring("one")
        assert len(pids) == 3

    await until_gone(pids if sys.platform == "linux" else pids[:2])


async def test_a_killed_watchdog_takes_its_program_along(stage: Stage) -> None:
    async with stage.running(stage.program("one", WELL_BEHAVED)) as supervisor:
        await supervisor.ready()
        child = supervisor.children["one"]
        pid, process = child.pid, child._process
        assert pid is not None
        assert process is not None

        os.kill(process.pid, signal.SIGKILL)

        await until_gone([pid])
        await supervisor.board.until(lambda: child.starts == 2)
        await supervisor.ready()


async def test_a_program_that_stops_answering_is_shown_and_not_restarted(stage: Stage) -> None:
    async with stage.running(stage.program("one", WELL_BEHAVED)) as supervisor:
        await supervisor.ready()
        child = supervisor.children["one"]

        (stage.folder / "one.ready").unlink()
        await supervisor.board.until(lambda: child.state is State.SILENT)
        (stage.folder / "one.ready").touch()
        await supervisor.ready()

        assert child.starts == 1


async def test_output_is_passed_on_line_by_line_whatever_it_holds(stage: Stage) -> None:
    code = (
        "import sys\n"
        "sys.stdout.buffer.write(b'x' * 100_000 + b'\\n\\xff\\xfe\\r\\nlast without an end')\n"
        "sys.stdout.flush()\n" + WELL_BEHAVED
    )
    async with stage.running(stage.program("one", code)) as supervisor:
        await supervisor.ready()

    texts = [text for _, stream, text in stage.lines if stream == "stdout"]
    assert "".join(texts).count("x") == 100_000
    assert max(map(len, texts)) <= 1 << 15
    assert "\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}" in texts
    assert "last without an endup" in texts


async def test_stopping_while_a_program_waits_or_pauses_is_quick(stage: Stage) -> None:
    slow = Backoff(first_s=3600, first_tries=3)
    dying = stage.program("dying", ENDS_AT_ONCE)
    waiting = stage.program("waiting", WELL_BEHAVED, after=("dying",))
    async with stage.running(dying, waiting, policy=slow) as supervisor:
        await supervisor.board.until(lambda: supervisor.children["dying"].state is State.PAUSING)

    assert supervisor.children["waiting"].starts == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_nothing_outlives_a_killed_parent(tmp_path: Path, number: signal.Signals) -> None:
    """It has no chance to clean up; the grandchildren ignore SIGTERM, and one left the group."""
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, str(tmp_path)),
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [TESTS, *sys.path]))},
    )
    try:
        assert parent.stdout is not None
        assert await parent.stdout.readline() == b"ready\n"
        pids = Stage(tmp_path).offspring("one")
        watchdog = int((tmp_path / "watchdog").read_text())

        parent.send_signal(number)

        await until_gone([*(pids if sys.platform == "linux" else pids[:2]), watchdog])
    finally:
        with contextlib.suppress(ProcessLookupError):
            parent.kill()
        await parent.communicate()


@pytest.mark.parametrize(
    ("code", "said"),
    [(0, "ended with exit code 0"), (3, "ended with exit code 3"), (137, "ended by SIGKILL"),
     (-15, "ended by SIGTERM"), (255, "ended with exit code 255")],
)  # fmt: skip
def test_an_ending_is_said_in_words(code: int, said: str) -> None:
    assert ended_how(code) == said


async def _be_the_parent(folder: Path) -> None:
    """For the test above: keep a program until somebody kills this process."""
    stage = Stage(folder)
    async with stage.running(stage.program("one", WITH_OFFSPRING)) as supervisor:
        await supervisor.ready()
        process = supervisor.children["one"]._process
        assert process is not None
        (folder / "watchdog").write_text(str(process.pid))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_be_the_parent(Path(sys.argv[1])))
