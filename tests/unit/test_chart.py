"""What can be said of the chart without helm; tests/integration/test_chart.py renders it."""

import importlib.util
import json
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from embedkeep_operator import crd
from embedkeep_operator.kubernetes.process import operator

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "embedkeep"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
Json = Mapping[str, object]


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_chart", ROOT / "charts" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", ["files/crds.yaml", "values.yaml", "README.md"])
def test_what_is_generated_is_up_to_date(path: str) -> None:
    expected = _generator().FILES[path]()

    assert (CHART / path).read_text() == expected, "run `make crds`"


def test_the_charts_definition_is_the_one_in_crds_and_outlives_the_release() -> None:
    expected = yaml.safe_load(crd.text())
    expected["metadata"]["annotations"] = {"helm.sh/resource-policy": "keep"}

    assert yaml.safe_load((CHART / "files" / "crds.yaml").read_text()) == expected


def test_the_chart_is_of_the_same_version_as_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert chart["appVersion"] == package["version"]
    assert chart["version"] == package["version"]


def test_every_value_is_described_and_none_but_these_are_taken() -> None:
    for path, part in _parts(SCHEMA, ""):
        assert part.get("description"), path
        if "properties" in part:
            assert part.get("additionalProperties") is False, path
        elif path != "global":
            assert "default" in part, path


def test_templates_use_every_value_and_no_other() -> None:
    written = "".join(path.read_text() for path in sorted((CHART / "templates").rglob("*.*")))
    # `with .Values.image` reads its fields without the path.
    used = set(re.findall(r"\.Values\.([A-Za-z.]+[A-Za-z])", written))
    known = {path for path, part in _parts(SCHEMA, "") if path != "global"}
    leaves = {path for path, part in _parts(SCHEMA, "") if "default" in part}

    assert used <= known
    unused = {
        leaf for leaf in leaves if not any(f"{leaf}.".startswith(f"{each}.") for each in used)
    }
    assert not unused


def _parts(part: Mapping[str, object], path: str) -> Iterator[tuple[str, Json]]:
    """Every object and leaf below the root, with its path."""
    if path:
        yield path, part
    children = part.get("properties", {})
    assert isinstance(children, dict)
    for name, child in children.items():
        yield from _parts(child, f"{path}.{name}" if path else name)


def test_the_operator_knows_every_flag_that_the_chart_gives_it() -> None:
    """One that it does not know would keep it from starting."""
    given = set(
        re.findall(r"- (--[a-z-]+)=", (CHART / "templates" / "deployment.yaml").read_text())
    )
    known = {name for option in operator.params for name in option.opts}

    assert given
    assert given <= known
