"""Each image by itself, in pods of the restricted profile: before any operator makes such pods."""

import asyncio
import json
import signal
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from lightkube.resources.core_v1 import Pod

from embedkeep.config import (
    EmbedderConfig,
    EmbedderTarget,
    Listen,
    NodeConfig,
    ValkeyTarget,
)
from support.kube import RESTRICTED, Room, exit_codes, image
from support.model import MODEL, computed_here, rows
from support.steps import step

IN_POD = Path(__file__).parent / "in_pod"
ROLES = ("operator", "node", "embedder-cpu")
"""Of embedder, which holds several GB of torch, see docs/e2e.md."""
TEXTS = ["how do I reset my password?", "where is my parcel?", "Wo ist mein Paket?", "?"]
EVERYWHERE = "0.0.0.0"

EMBEDDER = EmbedderConfig(
    model=MODEL,
    grpc=Listen(host=EVERYWHERE, port=50052),
    metrics=Listen(host=EVERYWHERE, port=9090),
)
NODE = NodeConfig(
    name="docs",
    model=MODEL,
    grpc=Listen(host=EVERYWHERE, port=50051),
    http=Listen(host=EVERYWHERE, port=8080),
    metrics=Listen(host=EVERYWHERE, port=9090),
    embedder=EmbedderTarget(address="dns:///embedder:50052"),
    valkey=ValkeyTarget(port=6379),
    l1_bytes=16 << 20,
)


def config_map(name: str, config: NodeConfig | EmbedderConfig) -> str:
    return f"""
apiVersion: v1
kind: ConfigMap
metadata: {{name: {name}}}
data:
  config.json: {json.dumps(config.model_dump_json(exclude_none=True))}
"""


def pod(name: str, role: str, service: str, port: int, *beside: str) -> str:
    """A pod of one of our images, and the service that it is found by.

    Args:
        service: Whose health its readiness is.
        beside: More containers, as YAML's flow style.
    """
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  clusterIP: None
  selector: {{app: {name}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 30
  containers:
    - name: {name}
      image: {image(role)}
      imagePullPolicy: IfNotPresent
      args: [{role.removesuffix("-cpu")}, --config, /etc/embedkeep/config.json]
      readinessProbe: {{grpc: {{port: {port}, service: {service}}}, periodSeconds: 1}}
      securityContext: {json.dumps(RESTRICTED)}
      volumeMounts:
        - {{name: config, mountPath: /etc/embedkeep, readOnly: true}}
        - {{name: tmp, mountPath: /tmp}}
{"".join(f"    - {container}" for container in beside)}
  volumes:
    - {{name: config, configMap: {{name: {name}}}}}
    - {{name: tmp, emptyDir: {{}}}}
"""


VALKEY = json.dumps(
    {
        "name": "valkey",
        "image": image("valkey"),
        "imagePullPolicy": "IfNotPresent",
        "command": ["valkey-server", "--save", "", "--maxmemory", "64mb"],
        "workingDir": "/tmp",  # noqa: S108 - a folder of the pod's own
        "securityContext": RESTRICTED | {"runAsUser": 999},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - as above
    }
)


async def start(own: Room) -> None:
    """An embedder, and a node with its Valkey beside it; both ready."""
    await own.apply(config_map("embedder", EMBEDDER))
    await own.apply(pod("embedder", "embedder-cpu", "embedkeep.v1.Embedder", 50052))
    await own.apply(config_map("node", NODE))
    await own.apply(pod("node", "node", "embedkeep.v1.EmbeddingCache", 50051, VALKEY))
    await asyncio.gather(own.until_ready("embedder"), own.until_ready("node"))


@pytest.mark.timeout(600)
async def test_a_cache_of_our_images_answers_with_the_models_vectors_bit_for_bit(
    own: Room,
) -> None:
    with step("images: embedder-cpu, node and Valkey start and are ready"):
        await start(own)

    computed = rows(
        await own.run(
            IN_POD / "compute.py",
            {"address": "embedder:50052", "texts": TEXTS},
            image=image("node"),
        )
    )
    with step("images: a client's pod starts, asks twice by gRPC and ends"):
        first, again = cast(
            "list[dict[str, object]]",
            await own.run(
                IN_POD / "ask.py",
                {"target": "node:50051", "texts": TEXTS, "times": 2},
                image=image("node"),
            ),
        )
    over_http, _ = cast(
        "list[dict[str, object]]",
        await own.run(
            IN_POD / "ask.py",
            {"target": "http://node:8080", "texts": TEXTS, "times": 2},
            image=image("node"),
        ),
    )
    by_openai = cast(
        "dict[str, object]",
        await own.run(
            IN_POD / "ask_openai.py",
            {"url": "http://node:8080", "model": "docs", "texts": TEXTS},
            image=image("node"),
        ),
    )

    assert np.allclose(computed_here(TEXTS), computed, atol=1e-5)
    assert first["sources"] == ["embedder"] * len(TEXTS)
    assert again["sources"] == ["l1"] * len(TEXTS)
    assert over_http["sources"] == ["l1"] * len(TEXTS)
    for answer in (first, again, over_http, by_openai):
        assert rows(answer["vectors"]).tobytes() == computed.tobytes()
    assert "hit" in str(by_openai["cache_status"])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("role", ROLES)
async def test_an_image_holds_one_program_and_runs_it_without_rights(own: Room, role: str) -> None:
    """The restricted profile is enforced in this namespace; what a pod sees of it is asked here."""
    found = cast("dict[str, object]", await own.run(IN_POD / "look_around.py", image=image(role)))

    assert found["user"] == 65532
    assert found["writable"] == []
    assert found["token"] is False
    assert found["tools"] == []
    assert found["bytecode"] is True
    assert not {"pip", "setuptools", "uv", "pytest"} & set(
        cast("list[str]", found["distributions"])
    )
    print(f"{role}: {cast('int', found['nbytes']) / 1e6:.0f} MB above the base")  # noqa: T201 - for docs/operations.md
    if role == "node":
        assert cast("int", found["nbytes"]) < 200e6


@pytest.mark.timeout(300)
async def test_a_pod_that_is_deleted_drains_and_ends_well(own: Room) -> None:
    """Behind a shell, or without a handler, the first process of a pod never hears of it."""
    await start(own)

    for name in ("node", "embedder"):
        await own.client.delete(Pod, name, namespace=own.namespace)
        last = await own.until_gone(Pod, name)

        assert last is not None
        assert exit_codes(last)[name] == 0


@pytest.mark.timeout(300)
async def test_a_pod_whose_command_knows_of_no_signals_ends_with_sigterm_all_the_same(
    own: Room,
) -> None:
    """The kernel ends the first process by no signal that it leaves to the default.

    Here it waits for texts that never come. The pod is ready once SIGTERM is among the signals that
    it handles.
    """
    handled = (
        "import sys; "
        "mask = next(line for line in open('/proc/1/status') if line.startswith('SigCgt')); "
        f"sys.exit(not int(mask.split()[1], 16) >> {signal.SIGTERM - 1} & 1)"
    )
    await own.apply(f"""
apiVersion: v1
kind: Pod
metadata: {{name: reading}}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 60
  containers:
    - name: reading
      image: {image("node")}
      imagePullPolicy: IfNotPresent
      stdin: true
      args: [embed, --address, "127.0.0.1:1"]
      readinessProbe: {{exec: {{command: [python, -c, {json.dumps(handled)}]}}, periodSeconds: 1}}
      securityContext: {json.dumps(RESTRICTED)}
""")
    await own.until_ready("reading")

    await own.client.delete(Pod, "reading", namespace=own.namespace)
    last = await own.until_gone(Pod, "reading", within_s=50)

    assert last is not None
    assert exit_codes(last)["reading"] == 128 + signal.SIGTERM
