"""Images are built from what is written here; whether they run is for tests/e2e to see."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "images/Dockerfile").read_text()
ROLES = re.search(r"^IMAGES \?= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
LOCKS = [*(ROLES[1].split() if ROLES else ()), "build", "model"]


def pins(lock: str) -> set[str]:
    """What a file locks, with its version and where that holds."""
    text = (ROOT / f"requirements/{lock}.txt").read_text()
    return {line.rstrip("\\ ") for line in text.splitlines() if "==" in line}


@pytest.mark.parametrize("lock", LOCKS)
def test_an_image_runs_what_the_tests_ran_with(lock: str) -> None:
    """One resolution: another version in an image would be one that no test has seen."""
    tested = {*pins("torch"), *pins("dev"), *pins("model")}

    assert pins(lock)
    assert pins(lock) <= tested


def test_all_that_is_copied_into_an_image_is_sent_to_its_builder() -> None:
    """`.dockerignore` names what is sent, so that nothing else is: secrets least of all."""
    copied = {
        source.rstrip("/")
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {rule[1:] for rule in rules if rule.startswith("!")}

    assert "*" in rules
    assert copied == sent
    assert not any(fnmatch(".git", name) for name in sent)


def test_an_image_starts_python_without_a_shell_and_without_rights() -> None:
    entrypoint = re.findall(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE)
    user = re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)

    assert entrypoint == ['["embedkeep"]']
    assert user == ["65532:65532"]


def test_an_image_names_no_registry_for_packages() -> None:
    assert not re.search(r"https?://|index-url", DOCKERFILE)
