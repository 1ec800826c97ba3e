"""What can be said of terraform/ without a cloud and without its providers."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "terraform"
FILES = {path.name: path.read_text() for path in sorted(MODULE.glob("*.tf"))}
EVERYTHING = "\n".join(FILES.values())
TEMPLATE = (MODULE / "values.yaml.tftpl").read_text()
SCHEMA = json.loads((ROOT / "charts" / "embedkeep" / "values.schema.json").read_text())


def blocks(kind: str) -> Iterator[tuple[str, str]]:
    """Name and text of each block of one kind."""
    for found in re.finditer(
        rf'^{kind} "(\w+)" {{\n(.*?)^}}', EVERYTHING, re.MULTILINE | re.DOTALL
    ):
        yield found[1], found[2]


@pytest.mark.parametrize(("name", "block"), [*blocks("variable")])
def test_every_variable_is_typed_described_and_used(name: str, block: str) -> None:
    assert re.search(r"^  type +=", block, re.MULTILINE)
    assert re.search(r'^  description += "\w', block, re.MULTILINE)
    elsewhere = "\n".join(text for file, text in FILES.items() if file != "variables.tf")
    assert re.search(rf"\bvar\.{name}\b", elsewhere)


def test_no_variable_is_used_that_is_not_declared() -> None:
    assert set(re.findall(r"\bvar\.(\w+)", EVERYTHING)) == {name for name, _ in blocks("variable")}


@pytest.mark.parametrize(("name", "block"), [*blocks("output")])
def test_every_output_is_described(name: str, block: str) -> None:
    assert re.search(r'^  description += "\w', block, re.MULTILINE), name


def test_providers_are_pinned() -> None:
    versions = re.findall(r'^ +version += "([^"]+)"', FILES["versions.tf"], re.MULTILINE)

    assert versions
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in versions)


def test_the_chart_is_given_values_that_it_knows_each_from_a_variable() -> None:
    given = set(re.findall(r"jsonencode\((\w+)\)", TEMPLATE))
    passed = re.search(r"templatefile\([^{]+{(.*?)}\)", FILES["main.tf"], re.DOTALL)
    assert passed is not None
    assert set(re.findall(r"^ +(\w+) +=", passed[1], re.MULTILINE)) == given

    rendered = yaml.safe_load(re.sub(r"\$\{jsonencode\(\w+\)\}", "null", TEMPLATE))
    assert [*unknown(rendered, SCHEMA, "")] == []


def unknown(values: Mapping[str, object], schema: Mapping[str, object], path: str) -> Iterator[str]:
    """Paths of values that the chart does not have."""
    known = schema.get("properties", {})
    assert isinstance(known, dict)
    for name, value in values.items():
        if name not in known:
            yield f"{path}{name}"
        elif isinstance(value, dict):
            yield from unknown(value, known[name], f"{path}{name}.")
