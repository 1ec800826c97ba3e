"""A Kubernetes that tests are given, and how they wait for what it does: by watching it.

Its objects are lightkube's. What is waited for is a condition on one object; where it does not come
in time, or cannot come any more, the error says what the object and its pods look like.
"""

import asyncio
import json
import os
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar, cast

import yaml
from lightkube import ApiError, AsyncClient, codecs
from lightkube.core.client import LabelSelector
from lightkube.core.resource import NamespacedResource
from lightkube.models.core_v1 import ContainerStatus
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Event, Namespace, Pod
from lightkube.types import CascadeType

WAIT_S: Final = 120.0
"""For what must happen; on a busy machine pods take their time to start."""

RESTRICTED: Final = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""A container's securityContext. No user: the image says which one, and that it is not root."""

_OTHERS: Final = {
    "valkey": "docker.io/valkey/valkey:9",
    "prometheus": "docker.io/prom/prometheus:v3",
}
_VERSION: Final = re.compile(r'^version = "(.+)"$', re.MULTILINE)
T = TypeVar("T", bound=NamespacedResource)


def image(role: str) -> str:
    """What EMBEDKEEP_IMAGE_ROLE names, or else what `make images` calls it."""
    named = os.environ.get(f"EMBEDKEEP_IMAGE_{role.upper().replace('-', '_')}")
    if named:
        return named
    if role in _OTHERS:
        return _OTHERS[role]
    found = _VERSION.search((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert found is not None
    return f"docker.io/embedkeep/{role}:{found[1]}"


class _Object(Protocol):
    metadata: ObjectMeta | None


@dataclass(frozen=True, slots=True)
class Room:
    """A namespace of a test's own, in which pods are held to the restricted profile."""

    client: AsyncClient
    namespace: str

    async def apply(self, manifests: str) -> None:
        """Apply YAML documents here.

        Raises:
            ApiError: The server refuses one.
        """
        for document in yaml.safe_load_all(manifests):
            document["metadata"]["namespace"] = self.namespace
            each = codecs.from_dict(document)
            assert isinstance(each, NamespacedResource)
            await self.client.apply(each, field_manager="tests")

    async def until(
        self,
        kind: type[T],
        name: str,
        reached: Callable[[T], bool],
        *,
        within_s: float = WAIT_S,
    ) -> T:
        """Watch one object until *reached* says so.

        Args:
            reached: May raise AssertionError where it can no longer come to it.
            within_s: Longest wait, seconds.

        Raises:
            AssertionError: It does not come to that; says what there is instead.
        """
        try:
            async with asyncio.timeout(within_s), aclosing(self._watched(kind, name)) as states:
                async for _, seen in states:
                    if reached(seen):
                        return seen
        except (TimeoutError, AssertionError) as error:
            raise AssertionError(
                f"{kind.__name__} {name}: {str(error) or f'waited {within_s:.0f} s'}\n"
                f"{await self.described()}"
            ) from error
        raise AssertionError("a watch does not end")  # pragma: no cover

    async def _watched(self, kind: type[T], name: str) -> AsyncGenerator[tuple[str, T]]:
        """Each state of an object, the present one first. A watch that is ended begins anew."""
        while True:
            watch = self.client.watch(
                kind, namespace=self.namespace, fields={"metadata.name": name}
            )
            async with aclosing(watch):  # type: ignore[type-var]  # it is a generator
                async for change, seen in watch:
                    yield change, seen

    async def until_gone(self, kind: type[T], name: str, *, within_s: float = WAIT_S) -> T | None:
        """Watch until there is no such object.

        Returns:
            Its last state; None where it was gone before.
        """
        listed = self.client.list(kind, namespace=self.namespace, fields={"metadata.name": name})
        if not [each async for each in listed]:
            return None
        async with asyncio.timeout(within_s), aclosing(self._watched(kind, name)) as states:
            async for change, seen in states:
                if change == "DELETED":
                    return seen
        raise AssertionError("a watch does not end")  # pragma: no cover

    async def until_none(
        self, kind: type[T], labels: Mapping[str, str], *, within_s: float = WAIT_S
    ) -> None:
        """Watch until nothing of a kind has these labels."""
        for each in await self.listed(kind, labels):
            await self.until_gone(kind, name_of(cast("_Object", each)), within_s=within_s)

    async def listed(self, kind: type[T], labels: Mapping[str, str]) -> list[T]:
        """All of a kind that have these labels now."""
        wanted: LabelSelector = {**labels}
        found = self.client.list(kind, namespace=self.namespace, labels=wanted)
        return [each async for each in found]

    async def until_ready(self, pod: str, *, within_s: float = WAIT_S) -> Pod:
        """Wait until a pod says that it can answer."""
        return await self.until(Pod, pod, is_ready, within_s=within_s)

    async def logs(self, pod: str, container: str | None = None) -> str:
        """All that a container has written."""
        lines = self.client.log(pod, namespace=self.namespace, container=container)
        return "".join([line async for line in lines])

    async def run(
        self,
        script: Path,
        told: object = None,
        *,
        image: str,
        volumes: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        within_s: float = WAIT_S,
    ) -> object:
        """Run a Python script in a pod of its own, to its end.

        Args:
            script: Its text is what the pod is given; it finds *told* as JSON in sys.argv[1].
            image: With Python on its path, and what the script imports.
            volumes: Names of Secrets, by the folder that each is mounted at.
            labels: Of the pod, which network policies look at.

        Returns:
            What its last line says, as JSON.

        Raises:
            AssertionError: It ended with an error, which is shown.
        """
        name = f"{script.stem.replace('_', '-')}-{secrets.token_hex(3)}"
        mounted = {f"secret-{at}": each for at, each in enumerate((volumes or {}).items())}
        source = await asyncio.to_thread(script.read_text)
        manifest = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": self.namespace, "labels": dict(labels or {})},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "containers": [
                    {
                        "name": "script",
                        "image": image,
                        "imagePullPolicy": "IfNotPresent",
                        "command": ["python", "-c", source, json.dumps(told)],
                        "securityContext": RESTRICTED,
                        "volumeMounts": [
                            {"name": volume, "mountPath": folder, "readOnly": True}
                            for volume, (folder, _) in mounted.items()
                        ],
                    }
                ],
                "volumes": [
                    {"name": volume, "secret": {"secretName": secret}}
                    for volume, (_, secret) in mounted.items()
                ],
            },
        }
        await self.client.create(cast("Pod", codecs.from_dict(manifest)))
        ended = await self.until(Pod, name, has_ended, within_s=within_s)
        said = await self.logs(name)
        assert phase(ended) == "Succeeded", f"{name} failed:\n{said}\n{await self.described()}"
        await self.client.delete(Pod, name, namespace=self.namespace, grace_period=0)
        return json.loads(said.rstrip().rpartition("\n")[2])

    async def described(self) -> str:
        """What somebody wants to see who finds a test failed: pods, events, ends of logs."""
        lines = [f"namespace {self.namespace}:"]
        async for pod in self.client.list(Pod, namespace=self.namespace):
            lines.append(f"  pod {name_of(pod)}: {phase(pod)}")
            for status in _statuses(pod):
                lines.append(f"    {status.name}: {_state(status)}")
                with suppress(ApiError):
                    tail = (await self.logs(name_of(pod), status.name)).splitlines()[-10:]
                    lines += [f"      | {line}" for line in tail]
        async for event in self.client.list(Event, namespace=self.namespace):
            about = event.involvedObject
            lines.append(f"  {about.kind} {about.name}: {event.reason}: {event.message}")
        return "\n".join(lines)


@asynccontextmanager
async def room(client: AsyncClient, purpose: str) -> AsyncIterator[Room]:
    """A namespace while the block runs; gone, with all that is in it, at its end."""
    name = f"embedkeep-{purpose}-{secrets.token_hex(3)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    await client.create(Namespace(metadata=ObjectMeta(name=name, labels=labels)))
    try:
        yield Room(client=client, namespace=name)
    finally:
        await client.delete(Namespace, name, cascade=CascadeType.BACKGROUND)


def is_ready(pod: Pod) -> bool:
    """Its Ready condition is true.

    Raises:
        AssertionError: It has ended, and will not be.
    """
    assert phase(pod) not in {"Failed", "Succeeded"}, f"it has ended: {phase(pod)}"
    conditions = (pod.status.conditions if pod.status is not None else None) or []
    return any(each.type == "Ready" and each.status == "True" for each in conditions)


def has_ended(pod: Pod) -> bool:
    """All its containers have, and are not started again."""
    return phase(pod) in {"Failed", "Succeeded"}


def phase(pod: Pod) -> str:
    """Pending, Running, Succeeded, Failed or Unknown."""
    return (pod.status.phase if pod.status is not None else None) or "Unknown"


def exit_codes(pod: Pod) -> dict[str, int]:
    """Of each container that has ended, by its name."""
    return {
        status.name: status.state.terminated.exitCode
        for status in _statuses(pod)
        if status.state is not None and status.state.terminated is not None
    }


def _statuses(pod: Pod) -> Sequence[ContainerStatus]:
    return (pod.status.containerStatuses if pod.status is not None else None) or ()


def _state(status: ContainerStatus) -> str:
    state = status.state
    if state is None:
        return "unknown"
    if state.waiting is not None:
        return f"waiting: {state.waiting.reason}: {state.waiting.message}"
    if state.terminated is not None:
        return f"ended with {state.terminated.exitCode}: {state.terminated.reason}"
    return "ready" if status.ready else f"running, not ready, {status.restartCount} restarts"


def name_of(seen: _Object) -> str:
    """What the API server calls it."""
    assert seen.metadata is not None
    assert seen.metadata.name is not None
    return seen.metadata.name
