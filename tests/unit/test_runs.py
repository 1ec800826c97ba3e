"""Finding the caches that run on this machine."""

from dataclasses import replace
from pathlib import Path

import pytest

from embedkeep.errors import InvalidConfig
from embedkeep.runs import NodePorts, Ports, Run, find, is_left_over, read_run
from embedkeep_operator.local.state import claimed, write_run

RUN = Run(
    name="quickstart",
    pid=7,
    started_at=1.5,
    file="/x.yaml",
    ports=Ports(
        nodes=(NodePorts(grpc=1, http=2, metrics=3, valkey=4),),
        embedder_grpc=5,
        embedder_metrics=6,
    ),
)


@pytest.mark.parametrize("name", ["../quickstart", "..", "/tmp", "", "Quick", "a b"])  # noqa: S108  # never read
def test_a_name_never_leads_out_of_the_state_folder(tmp_path: Path, name: str) -> None:
    with claimed(tmp_path, "quickstart") as folder:
        write_run(folder, RUN)
        (tmp_path / "inner").mkdir()

        with pytest.raises(InvalidConfig, match="is no cache's name: these are lower-case"):
            find(tmp_path / "inner", name)


def test_a_name_that_does_not_run_brings_up_those_that_do(tmp_path: Path) -> None:
    with claimed(tmp_path, "quickstart") as folder:
        write_run(folder, RUN)

        assert find(tmp_path, None) == find(tmp_path, "quickstart") == [RUN]
        with pytest.raises(InvalidConfig) as caught:
            find(tmp_path, "other")

    assert str(caught.value) == (
        "no cache named other runs here: name quickstart, or start one with `embedkeep up FILE`"
    )


def test_a_run_that_was_killed_is_said_to_be(tmp_path: Path) -> None:
    with claimed(tmp_path, "quickstart") as folder:
        write_run(folder, RUN)

    for name in (None, "quickstart"):
        with pytest.raises(InvalidConfig, match="the last run of quickstart was killed: start one"):
            find(tmp_path, name)


def test_a_run_of_another_version_is_left_over_and_no_crash(tmp_path: Path) -> None:
    old = '{"name": "quickstart", "pid": 7, "ports": {"grpc": 1, "metrics": 2, "valkey": 5}}'
    with claimed(tmp_path, "quickstart") as folder:
        (folder / "run.json").write_text(old)

        assert (read_run(folder), is_left_over(folder)) == (None, False)
        with pytest.raises(InvalidConfig, match="quickstart is just starting, or another version"):
            find(tmp_path, "quickstart")

    assert is_left_over(folder)
    with pytest.raises(InvalidConfig, match="the last run of quickstart was killed: start one"):
        find(tmp_path, None)


def test_several_nodes_are_read_as_they_were_written(tmp_path: Path) -> None:
    node = NodePorts(grpc=1, http=2, metrics=3, valkey=4, bus=5)
    several = replace(RUN, ports=replace(RUN.ports, nodes=(node, node, node)))
    with claimed(tmp_path, "quickstart") as folder:
        write_run(folder, several)

        assert find(tmp_path, None) == [several]
