"""The operator on a real Kubernetes, from `helm install` to a client that is answered."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from lightkube import AsyncClient
from lightkube.generic_resource import GenericNamespacedResource, create_namespaced_resource
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Pod, Secret

from support.certificates import Authority
from support.kube import Room, image, room
from support.model import computed_here, rows
from support.release import Release, released
from support.steps import step

EmbeddingCache = create_namespaced_resource(
    "embedkeep.dev", "v1alpha1", "EmbeddingCache", "embeddingcaches"
)
ROOT = Path(__file__).parents[2]
IN_POD = Path(__file__).parent / "in_pod"
OURS = {"app.kubernetes.io/instance": "docs", "app.kubernetes.io/managed-by": "embedkeep-operator"}
COMPONENT = "app.kubernetes.io/component"
TEXTS = ["how do I reset my password?", "where is my parcel?"]
SECRETS = {"/secrets/search-key": "search-key", "/secrets/docs-tls": "docs-tls"}
ASKING = {"api_key_file": "/secrets/search-key/apiKey", "ca_file": "/secrets/docs-tls/ca.crt"}
PODS = 7
"""Of three shards with a replica each, and an embedder."""


@pytest.fixture
async def release(client: AsyncClient) -> AsyncIterator[Release]:
    """The operator, installed by its chart."""
    async with released(client) as installed:
        yield installed


async def give_secrets(own: Room, folder: Path) -> None:
    """What examples/cluster.yaml names: an API key, and a certificate for services and pods."""
    authority = Authority(folder)
    pair = authority.issue(f"docs.{own.namespace}.svc", into="docs")
    for name, data in {
        "search-key": {"apiKey": "horse-battery-staple-0123456789"},
        "docs-tls": {
            "tls.crt": pair.cert_file.read_text(),
            "tls.key": pair.key_file.read_text(),
            "ca.crt": authority.ca_file.read_text(),
        },
    }.items():
        meta = ObjectMeta(name=name, namespace=own.namespace)
        await own.client.create(Secret(metadata=meta, stringData=data))


def condition(seen: GenericNamespacedResource, kind: str) -> str:
    """The status of a condition: True, False or Unknown."""
    found = cast("dict[str, list[dict[str, str]]]", seen.get("status") or {})
    return next(
        (each["status"] for each in found.get("conditions", []) if each["type"] == kind), "Unknown"
    )


async def uids(own: Room) -> set[str]:
    """Of all pods that serve: another pod of the same name has another. Jobs come and go."""
    pods = [each.metadata for each in await own.listed(Pod, OURS) if each.metadata is not None]
    return {str(pod.uid) for pod in pods if (pod.labels or {}).get(COMPONENT) != "predictor"}


@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("release")
async def test_an_applied_cache_of_three_shards_answers_over_tls_with_the_models_vectors(
    client: AsyncClient, tmp_path: Path
) -> None:
    async with room(client, "life") as own:
        await give_secrets(own, tmp_path)
        with step("operator: kubectl apply until Ready: 3 shards with a replica each"):
            await own.apply((ROOT / "examples/cluster.yaml").read_text())
            await own.until(
                EmbeddingCache,
                "docs",
                lambda seen: condition(seen, "Ready") == "True",
                within_s=300,
            )
        assert len(await uids(own)) == PODS

        with step("operator: 4,540 real questions over TLS with an API key"):
            said = cast(
                "dict[str, object]",
                await own.run(
                    IN_POD / "replay.py",
                    {"target": f"docs.{own.namespace}.svc:50051", "texts": TEXTS, **ASKING},
                    image=image("node"),
                    volumes=SECRETS,
                    within_s=300,
                ),
            )
        texts = cast("dict[str, int]", said["texts"])
        assert (
            texts.get("l1", 0) + texts.get("valkey", 0) + texts.get("peer", 0) > texts["embedder"]
        )
        assert np.allclose(rows(said["vectors"]), computed_here(TEXTS), atol=1e-5)
