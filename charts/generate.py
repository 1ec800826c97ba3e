"""Writes what the chart has from elsewhere: `make crds`.

The definition of EmbeddingCache comes from the resource's types, values.yaml and README.md from
values.schema.json. What a person would have to keep in step by hand is read from where it is true.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import wrap

import yaml

from embedkeep_operator import crd

CHART = Path(__file__).with_name("embedkeep")
Json = Mapping[str, object]

VALUES = """# Made from values.schema.json by `make crds`. Do not edit.
# Unknown values are refused.
"""
README = """# embedkeep

Made by `make crds` from values.schema.json. Do not edit.

The operator of embedkeep: an `EmbeddingCache` becomes a running cache in front of an embedding
model. What is installed, who needs which rights, upgrades and removal:
[docs/operator.md](../../docs/operator.md).

    helm install embedkeep charts/embedkeep --namespace embedkeep-system --create-namespace
    helm test embedkeep --namespace embedkeep-system

The definition of EmbeddingCache stays when the release goes, and with it all caches; for a second
release in the same cluster set `crds.install=false` and give each its own `scope.namespaces`.

## Values

Unknown values are refused.

| value | allowed | default | meaning |
| --- | --- | --- | --- |
"""


def definition() -> str:
    """The definition of EmbeddingCache, as the chart has it: it outlives the release."""
    wanted = crd.definition()
    metadata = mapping(wanted["metadata"])
    kept = {**metadata, "annotations": {"helm.sh/resource-policy": "keep"}}
    return crd.HEADER + crd.as_yaml({**wanted, "metadata": kept})


def schema() -> Json:
    """values.schema.json."""
    return mapping(json.loads((CHART / "values.schema.json").read_text()))


def values() -> str:
    """values.yaml: every default, with what it means above it."""
    return VALUES + "\n".join(_values(schema(), depth=0)) + "\n"


def _values(part: Json, *, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, child in properties(part):
        if "default" not in child and "properties" not in child:
            continue  # Helm's own
        if depth == 0:
            yield ""
        meaning = str(child["description"])
        yield from (f"{indent}# {line}" for line in wrap(meaning, 98 - len(indent)))
        if "properties" in child:
            yield f"{indent}{name}:"
            yield from _values(child, depth=depth + 1)
        else:
            # Lists on one line, scalars without braces.
            flow = None if isinstance(child["default"], dict | list) else False
            written = yaml.safe_dump(
                {name: child["default"]}, default_flow_style=flow, sort_keys=False, width=200
            )
            yield from (indent + line for line in written.splitlines())


def readme() -> str:
    """README.md: a row for each value."""
    return README + "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n"
        for row in rows(schema(), path="")
    )


def rows(part: Json, *, path: str) -> Iterator[tuple[str, str, str, str]]:
    """Name, what is allowed, default and meaning, of each value that can be set."""
    for name, child in properties(part):
        if "properties" in child:
            yield from rows(child, path=f"{path}{name}.")
        elif "default" in child:
            default = f"`{json.dumps(child['default'])}`"
            yield f"`{path}{name}`", allowed(child), default, str(child["description"])


def allowed(child: Json) -> str:
    """What a value may be, in short."""
    if isinstance(names := child.get("enum"), list):
        return ", ".join(map(str, names))
    if "minimum" in child:
        return f"{child['minimum']} to {child['maximum']}"
    kind = child.get("type") or mapping(mapping(schema()["$defs"])[reference(child)])["type"]
    return {"array": "list", "object": "map", "boolean": "true, false"}.get(str(kind), str(kind))


def reference(child: Json) -> str:
    """Name of the definition that *child* refers to."""
    return str(child["$ref"]).rpartition("/")[2]


def properties(part: Json) -> Iterator[tuple[str, Json]]:
    """The fields of an object's schema."""
    for name, child in mapping(part["properties"]).items():
        yield name, mapping(child)


def mapping(value: object) -> dict[str, object]:
    """*value*, which JSON says is an object."""
    if not isinstance(value, dict):
        raise TypeError(value)
    return value


FILES = {"files/crds.yaml": definition, "values.yaml": values, "README.md": readme}
"""What is made, by its path in the chart."""

if __name__ == "__main__":
    for path, content in FILES.items():
        (CHART / path).write_text(content())
