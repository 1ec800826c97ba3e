import json
from pathlib import Path

import pytest

from report import Place

PAGE = """before
<!-- hits: written by benchmarks/hits.py -->

old

<!-- end of hits -->
after
"""


def a_place(folder: Path, page: str = PAGE) -> Place:
    (folder / "page.md").write_text(page)
    return Place(folder / "results", folder / "page.md", folder / "README.md", folder / "images")


def test_a_block_is_replaced_between_its_marks_and_nothing_else_is(tmp_path: Path) -> None:
    place = a_place(tmp_path)

    place.write("hits", "new")
    place.write("hits", "newer")

    assert place.page.read_text() == PAGE.replace("old", "newer")


def test_a_page_without_a_blocks_marks_is_left_as_it_is(tmp_path: Path) -> None:
    """A table must not be added at the end, where nobody says what it is."""
    place = a_place(tmp_path)

    with pytest.raises(SystemExit, match=r"page\.md has no marks <!-- misses: written by"):
        place.write("misses", "new")

    assert place.page.read_text() == PAGE


def test_a_result_says_what_machine_it_was_measured_on(tmp_path: Path) -> None:
    place = a_place(tmp_path)

    place.save("hits", {"valkey": "9.1"}, rows=[1, 2])

    found = json.loads((place.results / "hits.json").read_text())
    assert found["rows"] == [1, 2]
    assert {"cpu", "cores", "python", "libraries"} <= found["made_with"].keys()
    assert found["made_with"]["valkey"] == "9.1"
    assert place.load("hits") == found
    assert place.load("misses") is None
