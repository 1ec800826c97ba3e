"""What a package's docstring says lives there, against what does."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(
    init.parent
    for source in ("cache_node", "operator")
    for init in (ROOT / source).rglob("__init__.py")
)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: str(package.relative_to(ROOT)))
def test_a_packages_docstring_names_each_of_its_modules(package: Path) -> None:
    """It is the map that a reader begins with; `name_*` stands for all that begin so."""
    said = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    named = [name.replace("*", r"\w+") for name in re.findall(r"`([\w*]+)`", said)]
    modules = {
        *(file.stem for file in package.glob("[!_]*.py") if "_pb2" not in file.stem),
        *(init.parent.name for init in package.glob("*/__init__.py")),
    }

    missing = [name for name in sorted(modules) if not any(re.fullmatch(n, name) for n in named)]

    assert missing == []


def test_every_package_is_in_the_distribution() -> None:
    """An editable install finds those that are not listed; an image would lack them."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [
        ".".join(package.relative_to(ROOT / source).parts)
        for source in ("cache_node", "operator")
        for package in PACKAGES
        if package.is_relative_to(ROOT / source)
    ]

    assert sorted(found) == sorted(listed)
