"""The chart, installed in the Kubernetes that tests are given."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from lightkube import ApiError, AsyncClient
from lightkube.resources.apiextensions_v1 import CustomResourceDefinition

from support.kube import Room, image, room
from support.steps import step

CHART: Final = Path(__file__).parents[2] / "charts" / "embedkeep"
CRD: Final = "embeddingcaches.embedkeep.dev"
WAIT_S: Final = 180


@dataclass(frozen=True, slots=True)
class Release:
    """An operator that helm has installed, and the namespace that it runs in."""

    name: str
    room: Room

    async def install(self, **values: object) -> None:
        """Install it, or upgrade it to other *values*; done once its pods are ready.

        Raises:
            AssertionError: helm fails; says what helm says, and how the pods are.
        """
        await self._helm(
            "upgrade", "--install", self.name, str(CHART),
            "--wait", f"--timeout={WAIT_S}s",
            *(f"--set-json={name}={json.dumps(value)}" for name, value in values.items()),
        )  # fmt: skip

    async def test(self) -> None:
        """Run the chart's own test."""
        await self._helm("test", self.name, f"--timeout={WAIT_S}s")

    async def uninstall(self) -> None:
        """Take it away; the definition of the resource stays."""
        await self._helm("uninstall", self.name, "--wait", f"--timeout={WAIT_S}s")

    async def _helm(self, *arguments: str) -> str:
        helm = shutil.which("helm")
        if helm is None:
            pytest.skip("helm is not on PATH")
        process = await asyncio.create_subprocess_exec(
            helm, *arguments, f"--namespace={self.room.namespace}",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await process.communicate()
        assert process.returncode == 0, (
            f"helm {arguments[0]}: {said.decode()}\n{await self.room.described()}"
        )
        return said.decode()


def values(**more: object) -> dict[str, object]:
    """What the chart is told: our images, and *more*."""
    repository, _, tag = image("operator").rpartition(":")
    return {
        "image": {"repository": repository, "tag": tag},
        "images": {
            "node": image("node"),
            "embedder": image("embedder"),
            "embedderCpu": image("embedder-cpu"),
            "valkey": image("valkey"),
        },
    } | more


@asynccontextmanager
async def released(client: AsyncClient, **more: object) -> AsyncIterator[Release]:
    """An operator while the block runs. Nothing of it is left, the definition neither."""
    async with room(client, "system") as own:
        release = Release(name="embedkeep", room=own)
        try:
            with step("operator: helm install until it is ready"):
                await release.install(**values(**more))
            yield release
            await release.uninstall()
        finally:
            # Kept by helm, and with it all EmbeddingCaches; here none shall outlive the test.
            with suppress(ApiError):
                await client.delete(CustomResourceDefinition, CRD)
