"""Writes the CustomResourceDefinition from the types: `python -m embedkeep_operator.crd`.

Pydantic speaks JSON Schema, the API server structural OpenAPI v3: no references, no anyOf with
null, a type everywhere.
"""

import argparse
import sys
from pathlib import Path
from typing import Final

import yaml
from pydantic import BaseModel

from embedkeep_operator.api import API_VERSION, GROUP, KIND, MAX_NAME, VERSION, EmbeddingCache
from embedkeep_operator.fields import FORMAT_MARK, format_duration, format_quantity

Json = dict[str, object]

HEADER: Final = "# Generated from embedkeep_operator.api by `make crds`. Do not edit.\n"
NAME_RULE: Final = {
    "rule": f"size(self.metadata.name) <= {MAX_NAME}"
    " && self.metadata.name.matches('^[a-z][-a-z0-9]*$')",
    "message": f"metadata.name: at most {MAX_NAME} of a-z, 0-9 and -, beginning with a letter",
}
UNSEEN: Final[Json] = {
    "conditions": [
        {
            "type": "Ready",
            "status": "Unknown",
            "reason": "Pending",
            "message": "waiting for the operator to see this resource",
            "lastTransitionTime": "1970-01-01T00:00:00Z",
        }
    ]
}
"""Status until the operator wrote one: tools that wait would take no status at all for ready."""
PRINTED: Final = (
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
    ("Shards", "integer", ".status.shards.ready", 0),
    ("Nodes", "integer", ".status.nodes.ready", 0),
    ("Model", "string", ".spec.model.name", 0),
    ("Threshold", "number", ".status.tuning.threshold", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', 1),
    ("Endpoint", "string", ".status.endpoint", 1),
)


def definition() -> Json:
    """The whole CustomResourceDefinition."""
    plural = "embeddingcaches"
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": plural,
                "singular": KIND.lower(),
                "shortNames": ["ek"],
                "categories": ["embedkeep"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path, "priority": priority}
                        for name, kind, path, priority in PRINTED
                    ],
                    "schema": {"openAPIV3Schema": root_schema()},
                }
            ],
        },
    }


def root_schema() -> Json:
    """The resource's schema; metadata is the API server's, but for the bounds of the name."""
    schema = structural(EmbeddingCache)
    properties = _object(schema["properties"])
    schema["properties"] = {
        "apiVersion": {"type": "string", "description": f"Always {API_VERSION}."},
        "kind": {"type": "string", "description": f"Always {KIND}."},
        "metadata": {"type": "object"},
        "spec": properties["spec"],
        "status": properties["status"],
    }
    _object(properties["status"])["default"] = UNSEEN
    schema["required"] = ["spec"]
    schema["x-kubernetes-validations"] = [NAME_RULE]
    return schema


def structural(model: type[BaseModel]) -> Json:
    """The structural schema of *model*: references put in place, null said as nullable."""
    found: Json = model.model_json_schema(by_alias=True)
    return _structural(found, _object(found.get("$defs", {})))


def _structural(node: Json, shared: Json) -> Json:
    node, nullable = _without_null(node)
    if isinstance(reference := node.get("$ref"), str):
        target = _object(shared[reference.rsplit("/", 1)[-1]])
        node = {**target, **{name: value for name, value in node.items() if name != "$ref"}}
    kept = {name: value for name, value in node.items() if name not in {"title", "$defs", "const"}}
    if "const" in node:
        kept["enum"] = [node["const"]]
    if isinstance(properties := kept.get("properties"), dict):
        kept["properties"] = {
            name: _structural(_object(child), shared) for name, child in properties.items()
        }
    for name in ("items", "additionalProperties"):
        if isinstance(child := kept.get(name), dict):
            kept[name] = _structural(child, shared)
    if "x-kubernetes-preserve-unknown-fields" in kept:
        kept.pop("additionalProperties", None)
    if kept.get("x-kubernetes-int-or-string"):
        kept.pop("type", None)
        kept["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    # A null for a part or an enum is pruned by the API server, which is as good; an enum that
    # lists null would refuse it.
    if nullable and kept.get("type") != "object" and "enum" not in kept:
        kept["nullable"] = True
    return _with_default_as_written(kept)


def _without_null(node: Json) -> tuple[Json, bool]:
    """*node* without the choice of null, and whether there was one."""
    choices = node.get("anyOf")
    if not isinstance(choices, list) or {"type": "null"} not in choices:
        return node, False
    (choice,) = [choice for choice in choices if choice != {"type": "null"}]
    rest = {name: value for name, value in node.items() if name != "anyOf"}
    return {**choice, **rest}, True


def _with_default_as_written(node: Json) -> Json:
    mark = node.pop(FORMAT_MARK, None)
    default = node.get("default")
    if default is None or isinstance(default, list | dict):
        node.pop("default", None)  # only leaves have defaults
    elif mark is not None and isinstance(default, int):
        node["default"] = (format_quantity if mark == "quantity" else format_duration)(default)
    if isinstance(text := node.get("description"), str):
        node["description"] = " ".join(text.split())
    return node


def _object(value: object) -> Json:
    assert isinstance(value, dict)  # noqa: S101  # pydantic's own schema; narrows the type
    return value


def text() -> str:
    """The file in crds/, byte for byte."""
    return HEADER + as_yaml(definition())


def as_yaml(wanted: Json) -> str:
    """*wanted* as a definition is written, here and in the chart."""
    return yaml.safe_dump(wanted, sort_keys=False, width=100, allow_unicode=True)


def main() -> None:
    """Write the definition, or with --check say whether the file is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if different")
    given = parser.parse_args()
    if not given.check:
        given.file.write_text(text())
    elif not given.file.is_file() or given.file.read_text() != text():
        sys.exit(f"{given.file} is not what the types say: run `make crds`")


if __name__ == "__main__":
    main()
