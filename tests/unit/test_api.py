"""The resource's types: bounds, defaults, and rules over several fields."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.api_nodes import Memory
from embedkeep_operator.fields import (
    format_duration,
    format_quantity,
    parse_duration,
    parse_quantity,
)
from embedkeep_operator.manifest import load

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


def a_resource(**spec: object) -> dict[str, object]:
    """The least that is valid, with *spec* over it."""
    least = {"model": {"name": "org/model"}, "embedder": {"managed": {}}}
    return {
        "apiVersion": "embedkeep.dev/v1alpha1",
        "kind": "EmbeddingCache",
        "metadata": {"name": "docs"},
        "spec": least | spec,
    }


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_every_example_is_valid(file: Path) -> None:
    assert load(file).kind == "EmbeddingCache"


def test_there_are_examples() -> None:
    assert {"quickstart", "tenants", "full"} <= {file.stem for file in EXAMPLES}


def test_an_operator_ignores_fields_of_a_newer_resource() -> None:
    resource = EmbeddingCache.model_validate(a_resource(fromTheFuture={"x": 1}))

    assert not hasattr(resource.spec, "fromTheFuture")


@pytest.mark.parametrize(
    ("written", "count"),
    [
        (0, 0),
        ("0", 0),
        ("64Mi", 64 << 20),
        ("500M", 500_000_000),
        ("1.5Gi", 3 << 29),
        (268435456, 256 << 20),
        ("10k", 10_000),
    ],
)
def test_sizes_are_kubernetes_quantities(written: object, count: int) -> None:
    assert parse_quantity(written) == count


@pytest.mark.parametrize(
    "written", ["64MB", "64mi", "-1", "", "1e3", "100m", "0.5", True, 1.5, None, -1, "1 Gi", "٣"]
)
def test_what_is_no_size_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_quantity(written)


@given(st.integers(min_value=0, max_value=1 << 50))
def test_a_size_survives_being_written(count: int) -> None:
    assert parse_quantity(format_quantity(count)) == count


@given(st.integers(min_value=1, max_value=9_999_999))
def test_a_duration_survives_being_written(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize("written", ["0s", "3w", "1h30m", "30", 30, "", "1.5h", None, "-1d"])
def test_what_is_no_duration_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="45s, 90m, 12h, 30d"):
        parse_duration(written)


def test_sizes_have_bounds() -> None:
    for written in ("3Mi", "2Ti"):
        with pytest.raises(ValidationError, match="must be from 4Mi to 1Ti"):
            Memory.model_validate({"valkey": written})


def test_parts_that_are_absent_stay_absent() -> None:
    """Only leaves have defaults: what the API server stores is what the user wrote."""
    resource = EmbeddingCache.model_validate(a_resource())

    assert resource.model_dump(exclude_unset=True, by_alias=True) == a_resource()
    assert resource.spec.nodes is None


BROKEN = {
    "an embedder is managed or external": (
        {"embedder": {}},
        "give exactly one of managed and external",
    ),
    "an embedder is not both": (
        {"embedder": {"managed": {}, "external": {"url": "http://e", "protocol": "tei"}}},
        "give exactly one of managed and external",
    ),
    "a source is one of three": (
        {"model": {"name": "m", "source": {"path": "/m", "package": {"name": "p"}}}},
        "give exactly one of hub, path and package",
    ),
    "a source is not none": (
        {"model": {"name": "m", "source": {}}},
        "give exactly one of hub, path and package",
    ),
    "a volume needs a path": (
        {"model": {"name": "m", "source": {"hub": {}, "volume": {"image": {"reference": "i"}}}}},
        "volume goes with path",
    ),
    "a volume is one thing": (
        {"model": {"name": "m", "source": {"path": "/m", "volume": {}}}},
        "give exactly one of persistentVolumeClaim and image",
    ),
    "a prompt's name is plain": (
        {"model": {"name": "m", "prompts": {"Query:": "x"}}},
        "prompts: a name is at most 63",
    ),
    "a threshold starts within its bounds": (
        {"similarity": {"threshold": {"initial": 0.5}}},
        "min <= initial <= max must hold",
    ),
    "a budget's bounds are in order": (
        {"warmup": {"budget": {"min": 70, "max": 60}}},
        "min <= initial <= max must hold",
    ),
    "half precision needs torch": (
        {"embedder": {"managed": {"dtype": "float16"}}},
        "float16 and bfloat16 need backend torch",
    ),
    "a device is torch's choice": (
        {"embedder": {"managed": {"device": "cuda"}}},
        "only backend torch chooses one",
    ),
    "integers are onnx's, not torch's": (
        {"embedder": {"managed": {"backend": "torch", "quantization": "Int8"}}},
        "quantization: Int8 needs backend onnx and dtype float32",
    ),
    "certificates come from one place": (
        {"security": {"tls": {"clientAuth": "None"}}},
        "give exactly one of secretName and issuerRef",
    ),
    "two ports differ": (
        {"nodes": {"ports": {"grpc": 9090, "metrics": 9090}}},
        "grpc and metrics must differ",
    ),
    "a variable has one value": (
        {
            "nodes": {
                "podTemplate": {
                    "env": [
                        {
                            "name": "A",
                            "value": "1",
                            "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}},
                        }
                    ]
                }
            }
        },
        "give at most one of value and valueFrom",
    ),
    "two tenants have two names": (
        {"security": {"tenants": [{"name": "a", "apiKeySecretRef": {"name": "k"}}] * 2}},
        "tenants: each name once",
    ),
    "shards are bounded": ({"nodes": {"shards": 65}}, "less than or equal to 64"),
    "a batch takes time": (
        {"embedder": {"managed": {"batch": {"targetMs": 0}}}},
        "greater than or equal to 1",
    ),
    "a path is absolute": ({"model": {"name": "m", "source": {"path": "m"}}}, "should match"),
}


@pytest.mark.parametrize(("spec", "message"), BROKEN.values(), ids=BROKEN)
def test_rules_are_kept(spec: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EmbeddingCache.model_validate(a_resource(**spec))


@pytest.mark.parametrize("name", ["a" * 41, "Docs", "-docs", "docs-", "1docs", "do.cs", ""])
def test_names_leave_room_for_what_is_appended(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        EmbeddingCache.model_validate(a_resource() | {"metadata": {"name": name}})


def test_a_name_may_have_forty_characters() -> None:
    resource = EmbeddingCache.model_validate(a_resource() | {"metadata": {"name": "a" * 40}})

    assert resource.metadata.name == "a" * 40


def test_an_amount_may_be_a_number() -> None:
    given = a_resource(nodes={"resources": {"limits": {"cpu": 1}}})

    nodes = EmbeddingCache.model_validate(given).spec.nodes

    assert nodes is not None
    assert nodes.resources is not None
    assert nodes.resources.limits == {"cpu": "1"}


def test_null_ports_do_not_collide() -> None:
    spec = {"nodes": {"ports": {"grpc": None, "metrics": None}}}

    assert EmbeddingCache.model_validate(a_resource(**spec)).spec.nodes is not None
