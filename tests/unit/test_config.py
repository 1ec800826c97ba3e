import json
from pathlib import Path
from typing import TypeAlias

import pytest

from embedkeep.config import (
    Backend,
    EmbedderConfig,
    HubSource,
    ModelSpec,
    NodeConfig,
    PackageSource,
    PathSource,
    load,
)
from embedkeep.errors import InvalidConfig

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | None"

LEAST: dict[str, Json] = {
    "name": "docs",
    "model": {"name": "acme/model"},
    "embedder": {"address": "dns:///embedder:50051"},
}


def members(*names: str, **fields: Json) -> list[Json]:
    """Members of these names, each with a Valkey of its own unless *fields* say otherwise."""
    return [
        {
            "name": name,
            "address": f"{name}:50051",
            "valkey_host": "127.0.0.1",
            "valkey_port": 7000 + at,
            **fields,
        }
        for at, name in enumerate(names)
    ]


def written(folder: Path, data: Json) -> Path:
    file = folder / "node.json"
    file.write_text(json.dumps(data))
    return file


def test_a_node_needs_to_be_told_little(tmp_path: Path) -> None:
    config = load(NodeConfig, written(tmp_path, LEAST))

    assert config.model.source == HubSource()
    assert config.grpc.host == "127.0.0.1"
    assert config.valkey is None
    assert config.tenants == ()


def test_what_was_read_is_what_was_written(tmp_path: Path) -> None:
    """The operator writes with the same types that a node reads with."""
    config = NodeConfig.model_validate(
        LEAST
        | {
            "model": {"name": "m", "source": {"package": "acme"}, "prompts": {"query": "q: "}},
            "valkey": {"port": 6379, "tls": {"ca_file": "/ca.pem"}},
            "cluster": {"name": "n1", "members": members("n0", "n1"), "tls": {"ca_file": "/ca"}},
            "tls": {"cert_file": "/c.pem", "key_file": "/k.pem"},
            "cluster_secret_file": "/secret",
            "tenants": [{"name": "a", "api_key_file": "/a"}],
        }
    )
    file = tmp_path / "node.json"
    file.write_text(config.model_dump_json())

    assert load(NodeConfig, file) == config


def test_an_older_node_reads_a_newer_operators_file(tmp_path: Path) -> None:
    newer = LEAST | {"hologram": {"on": 1}, "model": {"name": "acme/model", "aura": 3}}

    assert load(NodeConfig, written(tmp_path, newer)) == NodeConfig.model_validate(LEAST)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({}, HubSource()),
        ({"cache_dir": "/cache"}, HubSource(cache_dir=Path("/cache"))),
        ({"path": "/model"}, PathSource(path=Path("/model"))),
        ({"package": "acme_model"}, PackageSource(package="acme_model")),
        ({"path": "/model", "from_the_future": 1}, PathSource(path=Path("/model"))),
    ],
)
def test_a_models_source_is_told_by_its_fields(
    source: Json, expected: HubSource | PathSource | PackageSource
) -> None:
    assert ModelSpec.model_validate({"name": "m", "source": source}).source == expected


@pytest.mark.parametrize(
    "source", [HubSource(), PathSource(path=Path("/m")), PackageSource(package="m")]
)
def test_a_source_survives_being_written_and_read(
    source: HubSource | PathSource | PackageSource,
) -> None:
    spec = ModelSpec(name="m", source=source)

    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": None}, "name: must be a valid string, got None"),
        ({"l1_bytes": -1}, "l1_bytes: must be greater than or equal to 0, got -1"),
        ({"grpc": {"port": 65536}}, "grpc.port: must be less than or equal to 65535, got"),
        ({"embedder": {}}, "embedder.address: Field required"),
        ({"valkey": {"port": 0}}, "valkey.port: must be greater than or equal to 1, got 0"),
        ({"model": {"name": "m", "max_tokens": 0}}, "model.max_tokens: must be greater"),
        ({"model": {"name": "m", "source": {"path": 5}}}, "model.source.path: Input is not a"),
        ({"model": {"name": "m", "source": {"package": 5}}}, "model.source.package: must"),
        (
            {"cluster_secret_file": "s", "tenants": [{"name": "A_b", "api_key_file": "k"}]},
            "tenants.0.name: String should match",
        ),
        ({"tenants": [{"name": "a", "api_key_file": "k"}]}, "cluster_secret_file: needed"),
        (
            {"cluster_secret_file": "s", "tenants": [{"name": "a", "api_key_file": "k"}] * 2},
            "tenants: each name once; got a, a",
        ),
        ({"cluster": {"name": "n0", "members": []}}, "cluster.members: Tuple should have at least"),
        (
            {"cluster": {"name": "n2", "members": members("n0", "n1")}},
            "cluster: name: must be one of members: n0, n1; got n2",
        ),
        (
            {"cluster": {"name": "n0", "members": members("n0", "n0")}},
            "cluster: members: each name once; got n0, n0",
        ),
        (
            {"cluster": {"name": "n0", "members": members("n0", "n1", valkey_port=7000)}},
            "cluster: members: each with a Valkey of its own; got 127.0.0.1:7000, 127.0.0.1:7000",
        ),
        (
            {"cluster": {"name": "n0", "members": members("n0", address="")}},
            "cluster.members.0.address: String should have at least 1 character",
        ),
        (
            {"cluster": {"name": "n0", "members": members("n0")}},
            "valkey: needed, because cluster is given",
        ),
        (
            {"valkey": {"port": 1}, "cluster": {"name": "n0", "members": members("n0", "n1")}},
            "cluster_secret_file: needed, because cluster has several members",
        ),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(
    tmp_path: Path, change: dict[str, Json], expected: str
) -> None:
    file = written(tmp_path, LEAST | change)

    with pytest.raises(InvalidConfig) as refused:
        load(NodeConfig, file)

    assert str(refused.value).startswith(f"{file}: ")
    assert expected in str(refused.value)


def test_all_wrong_fields_are_named_at_once(tmp_path: Path) -> None:
    file = written(tmp_path, LEAST | {"l1_bytes": -1, "drain_s": "soon"})

    with pytest.raises(InvalidConfig) as refused:
        load(NodeConfig, file)

    assert {line.split(": ")[-2] for line in str(refused.value).splitlines()} == {
        "l1_bytes",
        "drain_s",
    }
    assert all(line.startswith(f"{file}: ") for line in str(refused.value).splitlines())


@pytest.mark.parametrize("text", ["", "{", "name: docs", "\udcff"])
def test_a_file_that_is_no_json_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "node.json"
    file.write_bytes(text.encode(errors="surrogateescape"))

    with pytest.raises(InvalidConfig, match=r"node\.json: is no JSON"):
        load(NodeConfig, file)


def test_json_that_is_no_object_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"node\.json: must hold a JSON object$"):
        load(NodeConfig, written(tmp_path, []))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"gone\.json: cannot be read: No such file"):
        load(NodeConfig, tmp_path / "gone.json")


def test_a_config_cannot_be_changed_after_it_was_read() -> None:
    config = NodeConfig.model_validate(LEAST)

    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"  # type: ignore[misc]  # what is tested


def test_an_embedder_refuses_a_backend_that_does_not_exist(tmp_path: Path) -> None:
    file = written(tmp_path, {"model": {"name": "m"}, "backend": "abacus"})

    with pytest.raises(InvalidConfig, match="backend: must be 'onnx' or 'torch', got"):
        load(EmbedderConfig, file)


def test_an_embedder_runs_onnx_unless_told_otherwise(tmp_path: Path) -> None:
    config = load(EmbedderConfig, written(tmp_path, {"model": {"name": "m"}}))

    assert config.backend is Backend.ONNX
