"""One operator at work: watches fill the store and the queue, workers empty it.

Everything is listed once before anything is worked on, so that a restart sees what there is before
it decides what is missing. After that the watches tell, and a list now and then makes sure that
they have told all.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from types import MappingProxyType
from typing import Final

import structlog
from lightkube.resources.core_v1 import Pod

from embedkeep.errors import EmbedKeepError, Unavailable
from embedkeep_operator.api import KIND
from embedkeep_operator.kubernetes.containment import Json
from embedkeep_operator.kubernetes.failures import ApiFailed, Forbidden, Missing, Rejected
from embedkeep_operator.kubernetes.handlers import Watched, watch
from embedkeep_operator.kubernetes.kube import MANAGER, Cache, Kind, Kube
from embedkeep_operator.kubernetes.leadership import utc_now
from embedkeep_operator.kubernetes.metrics import OperatorMetrics
from embedkeep_operator.kubernetes.reconcile import Outcome, Reconciler, Surroundings
from embedkeep_operator.kubernetes.settings import Settings
from embedkeep_operator.kubernetes.store import Id, Key, Store, identity, version
from embedkeep_operator.kubernetes.workqueue import WorkQueue, backoff_s
from embedkeep_operator.resources import OWNED
from embedkeep_operator.resources.context import CERTIFICATES, RULES, SERVICE_MONITORS
from embedkeep_operator.resources.monitoring import PrometheusRule, ServiceMonitor
from embedkeep_operator.resources.names import MANAGED_BY
from embedkeep_operator.resources.security import Certificate

_log = structlog.get_logger()

GATHER_S: Final = 0.05
"""How long the events of one change may trickle in before it is looked at, seconds."""
RESYNC_S: Final = 600.0
"""Between two lists of everything, seconds: one request a kind, whatever the number of caches."""
TOLD_S: Final = 15.0
"""How long after such a list the watches may still tell of what it held, seconds."""
EVERYWHERE: Final = "*"
OURS: Final = {MANAGED_BY: MANAGER}

KINDS: Final[tuple[Kind, ...]] = (*OWNED, Pod)
"""What belongs to resources in every cluster, and is watched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optional:
    """A kind that not every cluster has."""

    kind: Kind
    watched: Watched


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Optional kinds of this cluster, by name."""

    there: frozenset[str] = frozenset()
    readable: frozenset[str] = frozenset()
    """Those that we may list and watch."""


OPTIONAL: Final[Mapping[str, Optional]] = MappingProxyType(
    {
        SERVICE_MONITORS: Optional(
            kind=ServiceMonitor, watched=Watched("monitoring.coreos.com", "v1", "servicemonitors")
        ),
        RULES: Optional(
            kind=PrometheusRule, watched=Watched("monitoring.coreos.com", "v1", "prometheusrules")
        ),
        CERTIFICATES: Optional(
            kind=Certificate, watched=Watched("cert-manager.io", "v1", "certificates")
        ),
    }
)
"""By the names of their CustomResourceDefinitions."""

AGAIN_S: Final[Mapping[type[ApiFailed], float]] = MappingProxyType(
    {Missing: 10.0, Forbidden: 30.0, Rejected: 60.0}
)
"""Least wait after a failure, beside one that grows with each in a row: rights, namespaces and
kinds come by other hands, which tell nobody. All other failures: none."""


class KindsChanged(Unavailable):
    """A new process must begin, and watch them."""

    reason = "KindsChanged"


class Operator:
    """One process while it holds the Lease. Made on the loop that it runs on."""

    def __init__(self, kube: Kube, settings: Settings, metrics: OperatorMetrics) -> None:
        loop = asyncio.get_running_loop()
        self._kube = kube
        self._settings = settings
        self._metrics = metrics
        self._clock = loop.time
        self._store = Store()
        self._queue = WorkQueue[Key](loop.time)
        self._optional = Found()
        self._failures: dict[Key, int] = {}
        self._heard_s = loop.time()
        self._told: dict[Id, int] | None = None
        """What was heard since the last list; None: nobody asks."""
        self.deaf: str | None = None
        """Why this process must be started again. None: it hears well."""
        metrics.watch(
            queue_age_s=lambda: self._queue.oldest_s,
            event_age_s=lambda: loop.time() - self._heard_s,
        )

    async def run(self) -> None:
        """Work until cancelled.

        Raises:
            EmbedKeepError: Only a new process can go on; says why.
        """
        self._optional = optional = await self._optional_kinds()
        await self._list()
        around = Surroundings(settings=self._settings, kinds=optional.there, now=utc_now)
        reconciler = Reconciler(self._kube, self._store, around, self._metrics)
        for key in self._store.keys(KIND):
            self._queue.add(key)
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(self._settings.workers):
                    tasks.create_task(self._work(reconciler), name=f"worker {number}")
                tasks.create_task(self._resync(), name="resync")
                tasks.create_task(
                    watch(
                        self.hear,
                        namespaces=self._settings.namespaces,
                        optional=[OPTIONAL[name].watched for name in sorted(optional.readable)],
                    ),
                    name="watches",
                )
        except ExceptionGroup as errors:
            # One that is known says more than the group that it stands in.
            known = [each for each in errors.exceptions if isinstance(each, EmbedKeepError)]
            raise (known[0] if known else errors) from errors

    def hear(self, there: bool, found: Json) -> None:  # noqa: FBT001  # `handlers.Hear`
        """An object is there or has changed, or is gone."""
        self._heard_s = self._clock()
        where = identity(found)
        if self._told is not None:
            self._told[where] = version(found)
        kept = self._store.get(*astuple(where))
        key = self._store.put(found) if there else self._store.drop(found)
        if found.get("kind") == KIND:
            key = Key(where.namespace, where.name)
        if key is not None and not (there and kept and version(kept) >= version(found)):
            self._queue.add(key, after_s=GATHER_S)

    async def _work(self, reconciler: Reconciler) -> None:
        while True:
            key = await self._queue.take()
            try:
                with self._metrics.reconciled.time():
                    outcome = await reconciler.reconcile(key)
            except ApiFailed as error:
                outcome = Outcome(again_s=None, failed=error)
            except Exception as error:  # noqa: BLE001  # the outermost edge, which logs it
                # A bug that one resource brings out is no reason to leave the others alone.
                _log.exception("a bug", cache=str(key))
                outcome = Outcome(again_s=None, failed=ApiFailed(f"a bug: {error!r}"))
            finally:
                self._queue.done(key)
            self._after(key, outcome)

    def _after(self, key: Key, outcome: Outcome) -> None:
        failed = outcome.failed
        if failed is None:
            self._failures.pop(key, None)
            if outcome.again_s is not None:
                self._queue.add(key, after_s=outcome.again_s)
            return
        self._failures[key] = count = self._failures.get(key, 0) + 1
        self._metrics.failed.labels(failed.reason).inc()
        wait_s = max(backoff_s(count), AGAIN_S.get(type(failed), 0.0))
        _log.warning("not done", cache=str(key), error=str(failed), again_s=wait_s)
        self._queue.add(key, after_s=wait_s)

    async def _list(self) -> dict[Id, int]:
        """List everything into the store, and have a look at whatever it did not know.

        Returns:
            The version of each object that the store did not have so.
        """
        untold: dict[Id, int] = {}
        for namespace in self._settings.namespaces or (EVERYWHERE,):
            for kind in (Cache, *KINDS, *(OPTIONAL[name].kind for name in self._optional.readable)):
                found = await self._kube.list(
                    kind, namespace, labels=None if kind is Cache else OURS
                )
                for each in found:
                    kept = self._store.get(*astuple(where := identity(each)))
                    if kept is None or version(kept) < version(each):
                        untold[where] = version(each)
                only = None if namespace == EVERYWHERE else namespace
                for key in self._store.replace_all(kind.__name__, only, found):
                    self._queue.add(key)
        return untold

    async def _optional_kinds(self) -> Found:
        """Which of the optional kinds this cluster has.

        One that we may not list counts as there: a resource that wants it hears of the right that
        is missing, when it is applied.
        """
        namespace = (*self._settings.namespaces, EVERYWHERE)[0]
        there, readable = set[str](), set[str]()
        for name, each in OPTIONAL.items():
            try:
                if await self._kube.has(each.kind, namespace):
                    readable.add(name)
            except Forbidden:
                there.add(name)
        return Found(there=frozenset(there | readable), readable=frozenset(readable))

    async def _resync(self) -> None:
        """Now and then see that the watches tell everything.

        What a list shows first a watch must tell too, if a little later; one that does not is
        deaf, and only a new process cures it.
        """
        while True:
            await asyncio.sleep(RESYNC_S)
            self._told = {}
            try:
                if (kinds := await self._optional_kinds()) != self._optional:
                    raise KindsChanged(
                        f"the cluster's optional kinds are now {sorted(kinds.there)}"
                    )
                untold = await self._list()
            except ApiFailed as error:
                _log.warning("resync not done", error=str(error))
                continue
            await asyncio.sleep(TOLD_S)
            told, self._told = self._told, None
            missed = [where for where, listed in untold.items() if told.get(where, 0) < listed]
            self.deaf = f"no watch has told of {missed[0]}" if missed else None
            if self.deaf:
                _log.error("a watch is deaf", why=self.deaf)
            for key in self._store.keys(KIND):
                self._queue.add(key)
