"""What is kept on disk about a local cache."""

import os
import stat
from pathlib import Path

import pytest

from embedkeep.errors import InvalidConfig
from embedkeep.runs import NodePorts, Ports, Run, default_root, is_running, read_run
from embedkeep_operator.local.state import (
    claimed,
    kept_secret,
    write_run,
)

RUN = Run(
    name="docs",
    pid=7,
    started_at=1.5,
    file="/x.yaml",
    ports=Ports(
        nodes=(NodePorts(grpc=1, http=2, metrics=3, valkey=4),),
        embedder_grpc=5,
        embedder_metrics=6,
    ),
)


def test_a_name_is_claimed_once(tmp_path: Path) -> None:
    with claimed(tmp_path, "docs") as folder:
        write_run(folder, RUN)
        with (
            pytest.raises(InvalidConfig, match=r"already running as process 7.*/x\.yaml"),
            claimed(tmp_path, "docs"),
        ):
            pytest.fail("claimed twice")
        with claimed(tmp_path, "other"):
            assert is_running(folder)
    with claimed(tmp_path, "docs"):
        pass


def test_a_run_that_was_killed_is_told_from_one_that_runs(tmp_path: Path) -> None:
    """The lock is the truth: a left-over run.json says nothing."""
    with claimed(tmp_path, "docs") as folder:
        write_run(folder, RUN)
        assert is_running(folder)

    assert read_run(folder) == RUN
    assert not is_running(folder)


def test_looking_does_not_claim(tmp_path: Path) -> None:
    assert not is_running(tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": "x", "ports": {}}'])
def test_a_run_file_that_makes_no_sense_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)

    assert read_run(tmp_path) is None


def test_the_cluster_secret_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "cluster-secret"

    first = kept_secret(file)

    assert len(first) == 32
    assert kept_secret(file) == first
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_two_caches_have_two_secrets(tmp_path: Path) -> None:
    assert kept_secret(tmp_path / "a") != kept_secret(tmp_path / "b")


def test_a_damaged_cluster_secret_is_not_replaced_in_silence(tmp_path: Path) -> None:
    file = tmp_path / "cluster-secret"
    file.write_bytes(b"short")

    with pytest.raises(InvalidConfig, match="holds 5 bytes, must hold 32"):
        kept_secret(file)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    with pytest.raises(InvalidConfig, match="--state-dir"), claimed(tmp_path / "x", "docs"):
        pytest.fail("claimed a folder that cannot be made")


def test_a_state_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(InvalidConfig, match="--state-dir"), claimed(tmp_path / "file", "docs"):
        pytest.fail("claimed a file")


def test_the_state_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/x")
    assert default_root() == Path("/x/embedkeep")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_root() == Path.home() / ".local/state/embedkeep"
