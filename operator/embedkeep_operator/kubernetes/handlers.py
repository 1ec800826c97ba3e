"""kopf, as an informer and nothing else: it watches, and tells of each event.

No handler here changes an object, so kopf leaves no finalizer and no annotation. Nothing else
imports kopf.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import kopf

from embedkeep.errors import Unavailable
from embedkeep_operator.api import GROUP, VERSION
from embedkeep_operator.kubernetes.containment import Json
from embedkeep_operator.kubernetes.kube import MANAGER, PLURAL
from embedkeep_operator.resources.names import MANAGED_BY

OURS: Final = f"{MANAGED_BY}={MANAGER}"
"""Label selector of what the operator makes: else every Pod of a cluster would be watched."""


END_S: Final = 5.0
"""How long kopf may take to end, seconds."""


class WatchesEnded(Unavailable):
    """kopf has ended by itself; only a new process begins again."""

    reason = "WatchesEnded"


@dataclass(frozen=True, slots=True, order=True)
class Watched:
    """A kind, as the API server's paths name it."""

    group: str
    version: str
    plural: str


CACHES: Final = Watched(GROUP, VERSION, PLURAL)
ALWAYS: Final = (
    Watched("apps", "v1", "statefulsets"),
    Watched("apps", "v1", "deployments"),
    Watched("batch", "v1", "cronjobs"),
    Watched("", "v1", "pods"),
    Watched("", "v1", "services"),
    Watched("", "v1", "configmaps"),
    Watched("", "v1", "serviceaccounts"),
    Watched("policy", "v1", "poddisruptionbudgets"),
    Watched("networking.k8s.io", "v1", "networkpolicies"),
)
"""Kinds that a resource's objects are of in every cluster. Never Secrets: their contents would
lie in the operator's memory."""

Hear = Callable[[bool, Json], None]
"""Told of each object that is there or has changed (True), or is gone (False)."""


async def watch(
    hear: Hear, *, namespaces: Collection[str], optional: Collection[Watched] = ()
) -> None:
    """Watch until cancelled. *hear* is called on the caller's loop.

    kopf has a thread and a loop of its own: it takes over the signals of the main thread, and when
    it ends, it cancels every task of its loop that it finds.

    Args:
        namespaces: Which. Empty: all.
        optional: Further kinds that this cluster has.

    Raises:
        WatchesEnded: kopf has ended by itself.
    """
    logging.getLogger("kopf").setLevel(logging.ERROR)
    loop = asyncio.get_running_loop()
    stop = threading.Event()

    def tell(there: bool, found: Json) -> None:  # noqa: FBT001  # `Hear`
        with contextlib.suppress(RuntimeError):  # the loop has ended first
            loop.call_soon_threadsafe(hear, there, found)

    kinds = (CACHES, *ALWAYS, *optional)
    operator = kopf.operator(
        registry=_registry(kinds, tell),
        settings=_settings(kinds),
        # Its own would be made of a user's name, which a container has none of.
        identity=cast(Any, MANAGER),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=list(namespaces),
        stop_flag=stop,
    )
    watching = asyncio.create_task(asyncio.to_thread(asyncio.run, operator), name="kopf")
    try:
        await asyncio.shield(watching)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait((watching,), timeout=END_S)
        raise
    except Exception as error:
        raise WatchesEnded(f"the watches have ended: {error}") from error
    raise WatchesEnded("the watches have ended")


def _registry(kinds: Collection[Watched], hear: Hear) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    # As a pod, or with the kubeconfig of who runs it by hand.
    for log_in in (kopf.login_with_service_account, kopf.login_with_kubeconfig):
        kopf.on.login(registry=registry, errors=kopf.ErrorsMode.IGNORED)(log_in)

    async def told(event: Mapping[str, Any], **_: Any) -> None:
        hear(event.get("type") != "DELETED", event["object"])

    for kind in kinds:
        kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=kind.plural)(
            told
        )
    return registry


def _settings(kinds: Collection[Watched]) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.inactivity_timeout = 70  # bookmarks come each minute
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.networking.request_timeout = 30
    for kind in kinds:
        if kind != CACHES:
            settings.watching.label_selectors[kind.group, kind.version, kind.plural] = OURS
    return settings
