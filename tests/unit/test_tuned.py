"""Values that are re-read while a node runs."""

import json
from pathlib import Path

import pytest

from embedkeep.config import WarmupBudget
from embedkeep.node.tuned import Tuned

BOUNDS = {"warmup_budget": WarmupBudget(initial=60, min=10, max=100)}


def told(folder: Path, text: str) -> Path:
    """A file that says *text*; each is another file, as a kubelet swaps them."""
    file = folder / "tuned.json"
    part = folder / "part"
    part.write_text(text)
    part.replace(file)
    return file


@pytest.mark.parametrize(
    ("value", "taken"), [(42, 42), (5, 10), (1e9, 100), (10.5, 10.5)],
    ids=["within", "below", "above", "no whole number"],
)  # fmt: skip
def test_a_value_is_kept_within_its_bounds(tmp_path: Path, value: float, taken: float) -> None:
    tuned = Tuned(tmp_path / "tuned.json", BOUNDS)
    tuned.look(told(tmp_path, json.dumps({"warmup_budget": value, "threshold": 0.9})))

    assert tuned["warmup_budget"] == taken


def test_without_a_file_values_stay_as_configured(tmp_path: Path) -> None:
    tuned = Tuned(None, BOUNDS)
    tuned.look(tmp_path / "nothing")

    assert tuned["warmup_budget"] == 60


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", '{"warmup_budget": NaN}', '{"warmup_budget": "50"}', '{"warmup_budget": true}',
     '{"warmup_budget": null}', "{}"],
)  # fmt: skip
def test_a_file_that_says_nothing_sensible_moves_nothing(tmp_path: Path, text: str) -> None:
    tuned = Tuned(tmp_path / "tuned.json", BOUNDS)
    tuned.look(told(tmp_path, '{"warmup_budget": 50}'))
    tuned.look(told(tmp_path, text))

    assert tuned["warmup_budget"] == 50


def test_a_file_that_was_mended_is_read_again(tmp_path: Path) -> None:
    tuned = Tuned(tmp_path / "tuned.json", BOUNDS)
    tuned.look(told(tmp_path, "{"))
    tuned.look(told(tmp_path, '{"warmup_budget": 50}'))
    (tmp_path / "tuned.json").unlink()
    tuned.look(tmp_path / "tuned.json")

    assert tuned["warmup_budget"] == 50
