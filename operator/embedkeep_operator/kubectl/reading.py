"""Asks kubectl. What cannot be read is said, and does not hide the rest."""

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from embedkeep.errors import InvalidConfig, Unavailable
from embedkeep_operator.kubectl.report import Read
from embedkeep_operator.kubectl.tree import KINDS, Json, items, name, text

RESOURCE: Final = "embeddingcaches.embedkeep.dev"
TIMEOUT_S: Final = 20.0
"""For one answer. A cluster far away, with a login in between, takes seconds."""
AT_ONCE: Final = 4
"""kubectl processes at a time: each takes some 50 MB."""
LIBRARY_LINE: Final = re.compile(r"[IWEF]\d{4} ")
"""As klog begins its lines."""
COMPONENTS: Final = frozenset({"node", "embedder"})
"""Whose pods count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one kubectl printed."""

    printed: str
    failed: str
    """Why it failed; empty: it did not. There may be something printed even so."""

    def list(self) -> list[Json]:
        """The objects in it."""
        try:
            read = json.loads(self.printed)
        except ValueError:
            return []
        if not isinstance(read, dict):
            return []
        return items(read, "items") if "items" in read else [read]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubectl:
    """kubectl, with what the user gave for all of its calls."""

    program: str = "kubectl"
    flags: tuple[str, ...] = ()
    """--context, --kubeconfig."""
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    async def ask(self, *arguments: str) -> Answer:
        """Run it.

        Raises:
            InvalidConfig: There is no kubectl.
        """
        async with self._turns:
            try:
                process = await asyncio.create_subprocess_exec(
                    self.program, *self.flags, f"--request-timeout={TIMEOUT_S:.0f}s", *arguments,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                )  # fmt: skip
            except FileNotFoundError as error:
                raise InvalidConfig(
                    f"{self.program} is not there: install it, or put it on PATH"
                ) from error
            try:
                printed, said = await process.communicate()
            finally:
                if process.returncode is None:  # cancelled
                    process.kill()
                    await process.wait()
        failed = ""
        if process.returncode:
            failed = told(said.decode(errors="replace")) or f"exit {process.returncode}"
        return Answer(printed=printed.decode(errors="replace"), failed=failed)

    async def caches(self, wanted: str | None, where: Sequence[str]) -> list[Json]:
        """The EmbeddingCaches that the user means.

        Args:
            wanted: Name. None: all.
            where: --namespace or --all-namespaces, as given.

        Raises:
            Unavailable: kubectl says why.
        """
        names = [] if wanted is None else [wanted]
        answer = await self.ask("get", RESOURCE, *names, *where, "--output=json")
        if answer.failed:
            raise Unavailable(f"kubectl get {RESOURCE}: {answer.failed}")
        return answer.list()


def told(stderr: str) -> str:
    """What kubectl says to its user, without what its libraries say to their authors."""
    return "\n".join(line for line in stderr.splitlines() if not LIBRARY_LINE.match(line)).strip()


async def read(kubectl: Kubectl, cache: Json) -> Read:
    """All there is to read of *cache*; Secrets are not looked at."""
    namespace = text(cache, "metadata", "namespace")
    kinds = ",".join(kind.lower() for kind in KINDS)
    objects, events = await asyncio.gather(
        kubectl.ask(
            "get", kinds, f"--namespace={namespace}", "--output=json",
            f"--selector=app.kubernetes.io/name=embedkeep,app.kubernetes.io/instance={name(cache)}",
        ),
        kubectl.ask("get", "events", f"--namespace={namespace}", "--output=json"),
    )  # fmt: skip
    pods = [pod for pod in objects.list() if counting(pod)]
    told = await asyncio.gather(*(kubectl.ask("get", "--raw", metrics_path(pod)) for pod in pods))
    problems = [
        f"{what}: {answer.failed}"
        for what, answer in [
            ("objects", objects),
            ("events", events),
            *((f"metrics of {name(pod)}", answer) for pod, answer in zip(pods, told, strict=True)),
        ]
        if answer.failed
    ]
    return Read(
        cache=cache,
        objects=tuple(objects.list()),
        events=tuple(events.list()),
        metrics={
            name(pod): answer.printed
            for pod, answer in zip(pods, told, strict=True)
            if not answer.failed
        },
        problems=tuple(problems),
    )


def counting(pod: Json) -> bool:
    """Whether *pod* runs and has metrics."""
    component = text(pod, "metadata", "labels", "app.kubernetes.io/component")
    return (
        pod.get("kind") == "Pod"
        and component in COMPONENTS
        and text(pod, "status", "phase") == "Running"
    )


def metrics_path(pod: Json) -> str:
    """Where the API server hands on what *pod* tells Prometheus."""
    ports = [
        port["containerPort"]
        for container in items(pod, "spec", "containers")
        for port in items(container, "ports")
        if port.get("name") == "metrics" and "containerPort" in port
    ]
    namespace = text(pod, "metadata", "namespace")
    port = ports[0] if ports else 9090
    return f"/api/v1/namespaces/{namespace}/pods/{name(pod)}:{port}/proxy/metrics"
