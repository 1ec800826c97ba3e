"""The CustomResourceDefinition: structural, up to date, and saying what the types say."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from embedkeep_operator import crd
from embedkeep_operator.api import Spec
from embedkeep_operator.api_status import Status
from embedkeep_operator.crd import Json
from embedkeep_operator.fields import CEL_RESERVED

FILE = Path(__file__).parents[2] / "crds" / "embeddingcaches.embedkeep.dev.yaml"
FORBIDDEN = {
    "$ref", "$defs", "allOf", "oneOf", "not", "const", "title", "uniqueItems", "definitions",
    "patternProperties", "propertyNames", "prefixItems", "deprecated", "examples",
    "exclusiveMinimum", "exclusiveMaximum",
}  # fmt: skip


def nodes(schema: Json, path: str = "") -> Iterator[tuple[str, Json]]:
    """Every schema in *schema*, with its path."""
    yield path, schema
    properties = schema.get("properties", {})
    assert isinstance(properties, dict)
    for name, child in properties.items():
        yield from nodes(child, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if isinstance(child := schema.get(name), dict):
            yield from nodes(child, f"{path}[]")


ALL = dict(nodes(crd.root_schema()))


def test_the_file_is_what_the_types_say() -> None:
    assert FILE.read_text() == crd.text(), "run `make crds`"


def test_a_difference_fails_the_check(tmp_path: Path) -> None:
    stale = tmp_path / "crd.yaml"
    stale.write_text(crd.text().replace("maximum: 64", "maximum: 65"))
    command = [sys.executable, "-m", "embedkeep_operator.crd", "--check"]

    assert subprocess.run([*command, str(FILE)], check=False).returncode == 0
    found = subprocess.run([*command, str(stale)], check=False, capture_output=True, text=True)

    assert found.returncode == 1
    assert "make crds" in found.stderr


@pytest.mark.parametrize("path", ALL)
def test_the_schema_is_structural(path: str) -> None:
    schema = ALL[path]

    assert not FORBIDDEN & schema.keys()
    if schema.get("x-kubernetes-int-or-string"):
        assert "type" not in schema
        assert schema["anyOf"] == [{"type": "integer"}, {"type": "string"}]
    else:
        assert schema.get("type") in {
            "object", "array", "string", "integer", "number", "boolean"
        }  # fmt: skip
        assert "anyOf" not in schema
    assert not ("properties" in schema and "additionalProperties" in schema)
    if schema.get("type") == "array":
        assert isinstance(schema["items"], dict)
        assert "maxItems" in schema, "an endless list makes every rule on it too dear"
    if schema.get("type") == "object" and "properties" not in schema and path != ".metadata":
        assert "maxProperties" in schema or "x-kubernetes-preserve-unknown-fields" in schema


@pytest.mark.parametrize("path", [path for path in ALL if path.startswith(".spec")])
def test_every_field_is_described(path: str) -> None:
    if not path.endswith("[]"):
        assert ALL[path].get("description")


@pytest.mark.parametrize(
    "path", [path for path, node in ALL.items() if "default" in node and path != ".status"]
)
def test_only_leaves_have_defaults_and_they_are_allowed(path: str) -> None:
    schema = ALL[path]
    default = schema["default"]

    assert schema.get("type") not in {"object", "array"}
    assert default in schema.get("enum", [default])  # type: ignore[operator]  # a list where there is one
    if "pattern" in schema:
        assert re.search(str(schema["pattern"]), str(default))
    if isinstance(default, int | float) and not isinstance(default, bool):
        assert schema.get("minimum", default) <= default <= schema.get("maximum", default)  # type: ignore[operator]  # numbers where there are any


def test_a_new_resource_is_not_ready_before_the_operator_saw_it() -> None:
    """What waits for Ready, as GitOps tools do, takes no status at all for ready."""
    default = ALL[".status"]["default"]

    assert default == crd.UNSEEN
    assert [(each.type, each.status) for each in Status.model_validate(default).conditions] == [
        ("Ready", "Unknown")
    ]


def test_rules_spell_fields_that_are_words_of_cel_as_cel_wants() -> None:
    rules = [
        str(rule["rule"])
        for schema in ALL.values()
        for rule in schema.get("x-kubernetes-validations", [])  # type: ignore[attr-defined]  # a list of rules
    ]

    assert any("self.__package__" in rule for rule in rules)
    for rule in rules:
        assert not set(re.findall(r"self\.([a-zA-Z_]+)", rule)) & CEL_RESERVED


def test_storage_and_shards_cannot_be_changed_later() -> None:
    rules = ALL[".spec"]["x-kubernetes-validations"]

    assert isinstance(rules, list)
    assert [rule["message"] for rule in rules] == [
        "nodes.storage cannot be changed: make a new resource",
        "nodes.shards cannot be changed yet: make a new resource",
    ]
    assert "oldSelf.nodes.storage" in rules[0]["rule"]


def test_what_may_be_null_is_nullable() -> None:
    assert ALL[".spec.nodes.ttl"]["nullable"] is True
    assert "nullable" not in ALL[".spec.nodes"]
    assert "nullable" not in ALL[".spec.embedder.managed.device"], "an enum refuses null anyway"


def test_all_fields_of_the_types_are_in_it() -> None:
    fields = {field.alias for field in Spec.model_fields.values()}

    assert ALL[".spec"]["properties"].keys() == fields  # type: ignore[attr-defined]  # an object


def test_it_has_what_kubectl_shows() -> None:
    definition = yaml.safe_load(FILE.read_text())
    (version,) = definition["spec"]["versions"]

    assert definition["spec"]["names"]["shortNames"] == ["ek"]
    assert version["subresources"] == {"status": {}}
    assert [each["name"] for each in version["additionalPrinterColumns"]] == [
        "Ready", "Shards", "Nodes", "Model", "Threshold", "Age", "Reason", "Endpoint"
    ]  # fmt: skip
