"""From a resource to Valkey's config file: the whole file, so that a line that is lost shows."""

import subprocess
from pathlib import Path

import pytest

from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.render_valkey import own_lines, start_script, valkey_config

CACHE = EmbeddingCache.model_validate(
    {
        "apiVersion": "embedkeep.dev/v1alpha1",
        "kind": "EmbeddingCache",
        "metadata": {"name": "docs"},
        "spec": {
            "model": {"name": "org/model"},
            "nodes": {"memory": {"valkey": "500M"}},
            "embedder": {"managed": {}},
        },
    }
)
ALONE = [
    "bind 127.0.0.1",
    "port 6379",
    "protected-mode yes",
    "maxmemory 500000000",
    "maxmemory-policy allkeys-lfu",
    'save ""',
    "appendonly no",
    "daemonize no",
    'dir "/state/a \\"b\\""',
]


def rendered(*, bus_port: int | None = None, tls: Path | None = None) -> list[str]:
    return valkey_config(
        CACHE,
        host="127.0.0.1",
        port=6379,
        folder=Path('/state/a "b"'),
        bus_port=bus_port,
        tls=tls,
    ).splitlines()


def test_valkey_forgets_the_least_used_and_keeps_nothing_on_disk() -> None:
    assert rendered() == ALONE


def test_one_of_several_answers_for_its_slots_whatever_becomes_of_the_others() -> None:
    assert rendered(bus_port=7000) == [
        *ALONE,
        "cluster-enabled yes",
        "cluster-config-file nodes.conf",
        "cluster-port 7000",
        "cluster-node-timeout 5000",
        "cluster-require-full-coverage no",
        "cluster-allow-reads-when-down yes",
        "cluster-replica-validity-factor 0",
        "cluster-allow-replica-migration no",
        "repl-diskless-sync-delay 0",
    ]


def test_with_a_certificate_nothing_is_said_in_plain_text() -> None:
    assert [line for line in rendered(tls=Path("/secrets/docs")) if line not in ALONE] == [
        "port 0",
        "tls-port 6379",
        "tls-replication yes",
        "tls-cluster yes",
        "tls-auth-clients no",
        'tls-cert-file "/secrets/docs/tls.crt"',
        'tls-key-file "/secrets/docs/tls.key"',
        'tls-ca-cert-file "/secrets/docs/ca.crt"',
    ]


def test_one_that_has_just_started_gives_no_copies() -> None:
    said = own_lines(passwords=["s3cret", "older"], address="10.0.0.7", hostname="docs-0.docs")

    assert said.splitlines() == [
        "user default on >s3cret >older ~* &* +@all -psync -sync",
        "masterauth s3cret",
        "cluster-announce-ip 10.0.0.7",
        "cluster-announce-hostname docs-0.docs",
    ]


@pytest.mark.parametrize("clustered", [False, True])
def test_in_a_pod_the_password_goes_from_its_file_to_the_server_alone(
    tmp_path: Path,
    clustered: bool,  # noqa: FBT001 - pytest gives it by name
) -> None:
    """Seen by a server that is a shell script: what it was called with, and what it has read."""
    (tmp_path / "password").write_text("s3cret\nolder-s3cret")
    server = tmp_path / "valkey-server"
    server.write_text('#!/bin/sh\necho "$*"; env | grep -c s3cret; cat\n')
    server.chmod(0o700)
    script = start_script(
        config=Path("/etc/valkey.conf"),
        password_file=tmp_path / "password",
        clustered=clustered,
    )

    ran = subprocess.run(
        ["/bin/sh", "-c", script],
        env={"PATH": f"{tmp_path}:/bin:/usr/bin", "POD_IP": "10.0.0.7", "POD_HOSTNAME": "a.b"},
        capture_output=True,
        text=True,
        check=True,
    )

    told = own_lines(
        passwords=["s3cret", "older-s3cret"],
        address="10.0.0.7" if clustered else None,
        hostname="a.b" if clustered else None,
    )
    hands_over = "shutdown-on-sigterm failover\n" if clustered else ""
    assert ran.stdout == f"/etc/valkey.conf -\n0\n{told}{hands_over}"
