import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from embedkeep_operator.kubectl.bundle import files
from embedkeep_operator.kubectl.redaction import MARK, redacted, scrubbed
from embedkeep_operator.kubectl.report import Read
from support.kubernetes import a_cache, an_object

SECRET = "hunter2-CORRECT-horse"


@pytest.mark.parametrize(
    "said",
    [
        f"requirepass is wrong: password={SECRET}",
        f'{{"api_key": "{SECRET}", "event": "asked"}}',
        f'{{"line": "{{\\"token\\": \\"{SECRET}\\"}}"}}',
        f"Authorization: Bearer {SECRET}",
        f"x-api-key: {SECRET}",
        f"GET http://user:{SECRET}@proxy:3128/ refused",
        f"redis://:{SECRET}@valkey:6379",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}",
        f"hf_{SECRET.replace('-', '')} was refused",
        f"key sk-{SECRET}",
        f"eyJhbGciOiJSUzI1NiJ9.{SECRET}.signature",
        f"PASSWORD='two words {SECRET}'",
    ],
)
def test_what_looks_like_a_secret_is_taken_out_of_text(said: str) -> None:
    assert SECRET not in scrubbed(said)
    assert SECRET.replace("-", "") not in scrubbed(said)
    assert MARK in scrubbed(said)


@pytest.mark.parametrize(
    "said",
    [
        "3 of 6 nodes ready",
        "tokens=128 of 8192",
        "secretName: docs-tls",
        'embedkeep_lookups_total{result="l1"} 60.0',
        "http://prometheus.monitoring:9090/api",
        "the Secret docs-auth is missing",
    ],
)  # fmt: skip
def test_what_helps_to_find_a_fault_stays(said: str) -> None:
    assert scrubbed(said) == said


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "Secret", "metadata": {"name": "s"}, "data": {"key": SECRET}},
        {"kind": "Secret", "stringData": {"key": SECRET}},
        {"spec": {"model": {"prompts": {"query": SECRET}}}},
        {"spec": {"containers": [{"env": [{"name": "HTTPS_PROXY", "value": SECRET}]}]}},
        {"spec": {"containers": [{"args": [f"--password={SECRET}"]}]}},
        {"metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": SECRET}}},
        {"metadata": {"managedFields": [SECRET]}},
        {"password": SECRET},
        {"deep": [{"clientSecret": SECRET}]},
        {"spec": {"embedder": {"external": {"url": f"https://me:{SECRET}@api.example.org"}}}},
        {"kind": "ConfigMap", "data": {"notes": SECRET}},
        {"kind": "ConfigMap", "data": {"node.json": f'{{"prompts": {{"query": "{SECRET}"}}}}'}},
        {"kind": "ConfigMap", "data": {"node.json": SECRET}},
        {"kind": "ConfigMap", "data": {"valkey.conf": f"port 6379\nrequirepass {SECRET}"}},
        {"kind": "ConfigMap", "data": {"valkey.conf": f"user default on >{SECRET} ~*"}},
        {"kind": "ConfigMap", "binaryData": {"blob": SECRET}},
    ],
)  # fmt: skip
def test_what_is_secret_by_its_place_is_taken_out_of_objects(value: dict[str, object]) -> None:
    assert SECRET not in json.dumps(redacted(value))


def test_names_and_references_stay() -> None:
    value = {
        "spec": {
            "security": {"tls": {"secretName": "docs-tls"}},
            "model": {"source": {"hub": {"tokenSecretRef": {"name": "hub", "key": "token"}}}},
            "cluster_secret_file": "/secrets/docs-auth/cluster-secret",
        },
        "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
    }

    assert redacted(value) == value


PLACES = st.sampled_from(["prompts", "env", "password", "apiKey", "api_key", "token", "data"])
FILLED = st.recursive(
    st.just(f"token={SECRET}") | st.integers() | st.just("harmless"),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(PLACES | st.text(max_size=4), below, max_size=3)
    ),
    max_leaves=10,
)


@given(cache_spec=FILLED, config=FILLED, log=st.text(max_size=20))
def test_no_file_of_a_bundle_holds_what_was_planted(
    cache_spec: object, config: object, log: str
) -> None:
    cache = {**a_cache(), "spec": {"given": cache_spec}}
    planted = {"node.json": json.dumps(config)}
    made = files(
        Read(
            cache=cache,
            objects=(an_object("ConfigMap", "docs-node", data=planted),),
            events=({"message": f"password: {SECRET}"},),
            metrics={"docs-0": f"# password={SECRET}"},
            problems=(f"metrics: bearer {SECRET}",),
        ),
        logs={"docs-0-node": f"{log} api-key={SECRET}"},
        versions="1",
        problems=(),
    )

    assert not [path for path, content in made.items() if SECRET in content]


def test_a_bundle_says_what_is_in_it_and_reads_back() -> None:
    made = files(
        Read(
            cache=a_cache(),
            objects=(an_object("Service", "docs"),),
            metrics={"docs-0": "up 1\n"},
            problems=("events: forbidden",),
        ),
        logs={"docs-0-node": "started\n"},
        versions="kubectl 1.34\n",
        problems=(),
    )

    assert [*made] == [
        "README.txt",
        "embeddingcache.yaml",
        "events.yaml",
        "logs/docs-0-node.log",
        "metrics/docs-0.txt",
        "objects/Service-docs.yaml",
        "problems.txt",
        "status.json",
        "status.txt",
        "versions.txt",
    ]
    assert yaml.safe_load(made["embeddingcache.yaml"]) == a_cache()
    assert made["problems.txt"] == "events: forbidden\n"
    assert json.loads(made["status.json"])["name"] == "docs"
