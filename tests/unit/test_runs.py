"""Finding the caches that run on this machine."""

from pathlib import Path

import pytest

from embedkeep.errors import InvalidConfig
from embedkeep.runs import Ports, Run, find
from embedkeep_operator.local.state import claimed, write_run

RUN = Run(
    name="quickstart",
    pid=7,
    started_at=1.5,
    file="/x.yaml",
    ports=Ports(grpc=1, http=6, metrics=2, embedder_grpc=3, embedder_metrics=4, valkey=5),
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
