import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from embedkeep.cli.journal import Checkpoint, Json, Witness, go_on_from, keeping, uninterrupted
from embedkeep.cli.longrun import passed
from embedkeep.cli.reading import Line
from embedkeep.errors import InvalidConfig

TASK: dict[str, Json] = {"do": "embed", "prompt": None}
FOUND = Checkpoint(task=TASK, done=3, digest="d", sizes={"part": 10})


def test_a_run_goes_on_where_files_hold_at_least_what_they_should() -> None:
    assert go_on_from(FOUND, TASK, {"part": 10}) is None
    assert go_on_from(FOUND, TASK, {"part": 11}) is None  # written after the checkpoint


@pytest.mark.parametrize(
    ("found", "task", "sizes", "why"),
    [
        (FOUND, TASK, {"part": 9}, "part has lost"),
        (FOUND, TASK, {}, "part has lost"),
        (
            FOUND,
            TASK | {"prompt": "query"},
            {"part": 10},
            "prompt was not given then and is 'query' now",
        ),
        (FOUND, {"do": "embed"} | {"new": 1}, {"part": 10}, "new was not given then and is 1 now"),
        (FOUND, TASK | {"text": True}, {"part": 10}, "text was not given then and is on now"),
        (replace(FOUND, version=99), TASK, {"part": 10}, "another version"),
    ],
)
def test_a_run_that_would_mix_two_says_why_not(
    found: Checkpoint, task: dict[str, Json], sizes: dict[str, int], why: str
) -> None:
    assert why in (go_on_from(found, task, sizes) or "")


def test_what_was_written_after_the_checkpoint_is_cut_off(tmp_path: Path) -> None:
    base = tmp_path / "out"
    with keeping(base, ["part"], TASK, restart=False) as journal:
        journal.file("part").write(b"whole")
        journal.save(done=1, digest="d", state={"seen": 1})
        journal.file("part").write(b" and half a li")

    with keeping(base, ["part"], TASK, restart=False) as journal:
        assert (journal.start.done, journal.start.state) == (1, {"seen": 1})
        journal.file("part").write(b" next")

    assert (tmp_path / "out.part").read_bytes() == b"whole next"


def test_a_restart_throws_away_what_is_there(tmp_path: Path) -> None:
    with keeping(tmp_path / "out", ["part"], TASK, restart=False) as journal:
        journal.file("part").write(b"old")
        journal.save(done=1, digest="d", state={})

    with keeping(tmp_path / "out", ["part"], TASK, restart=True) as journal:
        assert journal.start.done == 0
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_has_done_nothing_leaves_nothing(tmp_path: Path) -> None:
    with keeping(tmp_path / "out", ["part"], TASK, restart=False) as journal:
        journal.file("part").write(b"a schema, or half a row")

    assert list(tmp_path.iterdir()) == []


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    with (
        keeping(tmp_path / "out", ["part"], TASK, restart=False),
        pytest.raises(InvalidConfig, match="another run is writing"),
        keeping(tmp_path / "out", ["part"], TASK, restart=True),
    ):
        pass


def test_a_checkpoint_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "out.checkpoint").write_text("{")

    with (
        pytest.raises(InvalidConfig, match=r"out\.checkpoint is no checkpoint.*--restart"),
        keeping(tmp_path / "out", ["part"], TASK, restart=False),
    ):
        pass


def lines(*texts: str) -> list[Line]:
    return [Line(number=number, text=text) for number, text in enumerate(texts, start=1)]


def digest_of(*texts: str) -> str:
    witness = Witness()
    for line in lines(*texts):
        witness.add(line.evidence)
    return witness.digest


def test_input_that_has_only_grown_is_gone_on_with() -> None:
    rest = iter(lines("a", "b", "c"))

    witness = passed(rest, Checkpoint(task=TASK, done=2, digest=digest_of("a", "b")))

    assert [line.text for line in rest] == ["c"]
    assert witness.digest == digest_of("a", "b")


@pytest.mark.parametrize("texts", [("a", "x"), ("ab", ""), ("a",), ("b", "a")])
def test_input_that_has_changed_is_refused(texts: tuple[str, ...]) -> None:
    start = Checkpoint(task=TASK, done=2, digest=digest_of("a", "b"))

    with pytest.raises(InvalidConfig, match=r"first 2 items.*--restart begins anew"):
        passed(iter(lines(*texts)), start)


def test_ctrl_c_waits_for_what_must_be_whole() -> None:
    steps: list[str] = []

    def interrupted() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            steps.append("whole")

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert steps == ["whole"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
