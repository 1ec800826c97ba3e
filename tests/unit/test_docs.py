import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_is_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())

    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]

    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_sections_that_a_page_links_to_are_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]*)#([^)\s]+)\)", page.read_text())

    missing = [
        f"{path}#{section}"
        for path, section in links
        if section not in sections((page.parent / path) if path else page)
    ]

    assert missing == []


def sections(page: Path) -> set[str]:
    """What a heading is linked to by, as GitHub makes it."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_make_targets_that_a_page_names_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    named = set(re.findall(r"(?:`|^    )make ([a-z0-9-]+)", page.read_text(), re.MULTILINE))

    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_benchmarks_that_a_page_names_exist(page: Path) -> None:
    named = {*re.findall(r"benchmarks/\w+\.py", page.read_text())}

    assert [script for script in sorted(named) if not (ROOT / script).exists()] == []


def test_pages_name_the_quickstarts_ports_and_no_others_on_this_machine() -> None:
    """Somebody who follows a page must find the cache that another page started."""
    nodes = yaml.safe_load((ROOT / "examples/quickstart.yaml").read_text())["spec"]["nodes"]

    named = [
        found
        for page in PAGES
        for found in re.findall(r"(?:127\.0\.0\.1|localhost):(\d+)", page.read_text())
    ]

    assert len(named) > 3
    assert {*named} == {*map(str, nodes["ports"].values())}


def test_pictures_and_results_name_no_folder_of_whoever_made_them() -> None:
    """A profiler, for one, writes its command line into what it draws."""
    made = [*(ROOT / "docs/images").glob("*.svg"), *(ROOT / "benchmarks/results").glob("*.json")]

    naming = [file.name for file in made if re.search(r"/\.venv|--output /", file.read_text())]

    assert len(made) > 5
    assert naming == []


def test_nothing_names_where_packages_come_from() -> None:
    """Locks hold hashes; which index serves them is the business of whoever installs."""
    locks = sorted((ROOT / "requirements").glob("*"))

    naming = [
        lock.name for lock in locks if re.search(r"https?://|--(extra-)?index", lock.read_text())
    ]

    assert len(locks) > 5
    assert naming == []
