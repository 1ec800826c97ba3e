"""Computes what plans name before anybody asks for it, within a budget and behind everybody.

Each node warms the keys that its own Valkey owns, so that no two compute the same. It looks what is
missing there, without making anything look used, has it computed as background work, and stores it
in Valkey, not in L1, where it would push out what is asked for now. Tenants take turns.

It stops while the embedder refuses it or takes long, when the hour's budget is spent, when Valkey
is shut, and for a tenant that withdraws anything, until there is a newer plan. With another model,
or a Valkey that came back empty, it begins anew.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

import structlog

from embedkeep.config import Warmup
from embedkeep.errors import EmbedKeepError, Overloaded, Retryable, Unavailable
from embedkeep.history import Asked, Fence, plan_name
from embedkeep.keys import Key
from embedkeep.node.admission import Urgency
from embedkeep.node.budget import Budget
from embedkeep.node.cache import Cache
from embedkeep.node.credits import mark
from embedkeep.node.embedders import Outcome, Work
from embedkeep.node.metrics import Metrics, Warmed
from embedkeep.node.space import Space
from embedkeep.node.tenants import Partition, Tenants
from embedkeep.node.tiers import Tier
from embedkeep.node.tuned import Tuned
from embedkeep.plans import HEAD_BYTES, CorruptPlan, Plan, Planned, decode
from embedkeep.records import Entry
from embedkeep.smoothing import smoothed
from embedkeep.v1 import embedder_pb2

LOOK_TEXTS: Final = 256
"""Of a plan, looked for in one go; then it is the next tenant's turn."""
WORK_TEXTS: Final = 32
"""Computed in one call: what is lost when something is withdrawn meanwhile."""
PATIENCE_S: Final = 1.0
"""An embedder that would take longer to begin has better things to do."""
PAUSE_S: Final = 1.0
"""First pause after a refusal or a failure, seconds; it doubles up to 64 times this."""
MOST_DOUBLINGS: Final = 6

log = structlog.stdlib.get_logger()


@dataclass(slots=True, kw_only=True)
class _Held:
    """A tenant's plan, and how far this node has come with it."""

    head: bytes
    plan: Plan | None
    """None: it cannot be read, or is void."""
    space: Space | None = None
    """Under which the work was done so far."""
    at: int = 0
    """Texts of the plan that were looked for."""
    missing: dict[Key, Asked] = field(default_factory=dict)
    """Those of them that are to be computed."""
    done_at_s: float = 0.0
    """When none was left."""
    failed: set[Asked] = field(default_factory=set)
    """That the model cannot embed."""

    def restart(self) -> None:
        """Look for all of it again."""
        self.at = 0
        self.missing.clear()


class Warmer:
    """Carries plans out. `run` must run beside the node.

    Args:
        warmup: How often it looks, and its share of the budget.
        prompts: That callers may name; texts under others are not warmed.
        tuned: Says the budget, as warmup_budget.
        clock_s: Unix time, seconds.
    """

    def __init__(  # noqa: PLR0913  # what it brings together
        self,
        warmup: Warmup,
        *,
        prompts: Iterable[str],
        cache: Cache,
        tenants: Tenants,
        tuned: Tuned,
        metrics: Metrics,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._warmup = warmup
        self._prompts = frozenset(("", *prompts))
        self._cache = cache
        self._tenants = tenants
        self._tuned = tuned
        self._metrics = metrics
        self._clock_s = clock_s
        self._budget = Budget()
        self._cost_s: float | None = None
        """Of a text, smoothed. None: none was computed yet."""
        self._held: dict[bytes, _Held] = {}
        self._turns = deque(tenants.partitions)
        self._failures = 0
        metrics.warmup_budget.set_function(lambda: self.budget_s)
        metrics.plan_texts.set_function(
            lambda: sum(len(held.plan.texts) for held in self._held.values() if held.plan)
        )
        metrics.plan_made.set_function(
            lambda: max(
                (h.plan.made_at_ms / 1000 for h in self._held.values() if h.plan), default=0
            )
        )

    @property
    def budget_s(self) -> float:
        """Device-seconds in any hour that are this node's to spend."""
        return self._tuned["warmup_budget"] / self._warmup.shares

    async def run(self, tier: Tier) -> None:
        """Warm until cancelled.

        Args:
            tier: The cache's.
        """
        while True:
            pause_s = self._warmup.poll_s
            try:
                if await self._may_begin(tier):
                    await self._look(tier)
                    await self._carry_out(tier)
                self._failures = 0
            except EmbedKeepError as error:
                pause_s = self._pause_s(error)
                log.debug("warming waits", why=str(error), pause_s=pause_s)
            await asyncio.sleep(pause_s)

    async def _may_begin(self, tier: Tier) -> bool:
        """There is a model, and Valkey takes something in."""
        if tier.open and self._cache.space is not None:
            return True
        for held in self._held.values():  # Valkey may come back empty
            held.restart()
        return False

    def _pause_s(self, error: EmbedKeepError) -> float:
        pause_s = PAUSE_S * 2.0**self._failures
        self._failures = min(self._failures + 1, MOST_DOUBLINGS)
        after_s = error.retry_after_s if isinstance(error, Retryable) else None
        return max(pause_s, after_s or 0.0)

    async def _look(self, tier: Tier) -> None:
        """Read the plans that are newer than those held."""
        for tenant in self._tenants.partitions:
            with suppress(Unavailable):  # its shard is away: the plan that is held goes on
                await self._look_for(tenant, tier)

    async def _look_for(self, tenant: Partition, tier: Tier) -> None:
        name, held = plan_name(tenant.tag), self._held.get(tenant.tag)
        (head,) = await tier.ask(name, [("GETRANGE", name, 0, HEAD_BYTES - 1)])
        # None where it is gone: with its Valkey, which is when it is needed most, or withdrawn, of
        # which the tenant's numbers tell.
        if not isinstance(head, bytes) or not head or (held is not None and held.head == head):
            return
        (data,) = await tier.ask(name, [("GET", name)])
        if not isinstance(data, bytes):
            return
        plan = None
        try:
            plan = decode(data)
        except CorruptPlan as error:
            self._metrics.corrupt_plans.inc()
            log.warning("corrupt plan", why=str(error))
        else:
            log.info("plan", texts=len(plan.texts), predictor=plan.predictor)
        self._held[tenant.tag] = _Held(head=data[:HEAD_BYTES], plan=plan)

    async def _carry_out(self, tier: Tier) -> None:
        """Warm what plans name, a call for each tenant in turn, until there is nothing more to do.

        Turns go on where they were left, so that a small budget is not always the first one's.
        """
        idle = 0
        while idle < len(self._turns) and self._room() > 0:
            tenant = self._turns[0]
            self._turns.rotate(-1)
            idle = 0 if await self._take_turn(tenant, tier) else idle + 1

    async def _take_turn(self, tenant: Partition, tier: Tier) -> bool:
        """Warm a few texts of a tenant; whether there are more."""
        held = self._held.get(tenant.tag)
        if held is None or (plan := self._current(held, tenant)) is None:
            return False
        space = self._cache.serving()
        try:
            if not held.missing:
                texts = plan.texts[held.at : held.at + LOOK_TEXTS]
                held.missing = await self._missing(texts, held, tenant, space, tier)
                held.at += LOOK_TEXTS
            part = dict(islice(held.missing.items(), min(self._room(), WORK_TEXTS)))
            if part and self._current(held, tenant) is plan and held.space is space:
                await self._warm(part, held, tenant, space, tier)
        except EmbedKeepError:
            held.restart()  # some of it may be there
            raise
        for key in part:
            held.missing.pop(key, None)
        if held.missing or held.at < len(plan.texts):
            return True
        held.done_at_s = self._clock_s()
        return False

    def _current(self, held: _Held, tenant: Partition) -> Plan | None:
        """What is to be carried out of a plan now; None: nothing."""
        plan, now_s = held.plan, self._clock_s()
        if plan is None:
            return None
        known = Fence(epoch=tenant.epoch, forgotten=tenant.forgotten)
        if plan.expires_at_s <= now_s or (
            plan.fence.epoch < known.epoch or plan.fence.forgotten < known.forgotten
        ):
            held.plan = None
            return None
        if plan.fence != known:
            return None  # this node has not heard yet of what was withdrawn
        if held.space is not self._cache.space:
            held.space = self._cache.space
            held.restart()
        if held.at >= len(plan.texts) and not held.missing:
            if now_s - held.done_at_s < self._warmup.recheck_s:
                return None
            held.restart()
        return plan

    async def _missing(
        self, texts: Iterable[Planned], held: _Held, tenant: Partition, space: Space, tier: Tier
    ) -> dict[Key, Asked]:
        """Those of *texts* that are this node's and lie neither in its L1 nor in its Valkey."""
        own: dict[Key, Asked] = {}
        for each in texts:
            asked = each.asked
            if asked.prompt not in self._prompts or asked in held.failed:
                continue
            key = tenant.keys(fingerprint=space.fingerprint, prompt=asked.prompt).key(asked.text)
            if tier.owns(key) and not self._cache.holds(key):
                own[key] = asked
        if not own:
            return {}
        # EXISTS and not GET: it makes nothing look used, and brings no vector here.
        replies = await tier.ask(next(iter(own)), [("EXISTS", key) for key in own])
        return {key: own[key] for key, reply in zip(list(own), replies, strict=True) if reply == 0}

    async def _warm(
        self,
        wanted: Mapping[Key, Asked],
        held: _Held,
        tenant: Partition,
        space: Space,
        tier: Tier,
    ) -> None:
        """Compute *wanted* and store it.

        Raises:
            EmbedKeepError: Not all could be computed, or stored.
        """
        cache, counts = self._cache, self._metrics.warmed
        with cache.landings.open({key: at for at, key in enumerate(wanted)}) as landing:
            outcomes = await self._compute(list(wanted.values()), tenant, space)
            entries: dict[Key, Entry] = {}
            refused: Retryable | None = None
            for (key, asked), outcome in zip(wanted.items(), outcomes, strict=True):
                if isinstance(outcome, Entry):
                    entries[key] = replace(outcome, warmed=True)
                elif isinstance(outcome, Retryable):
                    refused = outcome
                else:
                    held.failed.add(asked)
                    counts[Warmed.FAILED].inc()
            if cache.space is not space:
                landing.clear()
            with suppress(Unavailable):  # then what it saves is not counted
                await mark(list(entries), tenant.tag, tier)
            kept = {key: entries[key] for key in landing if key in entries}
            counts[Warmed.WITHDRAWN].inc(len(entries) - len(kept))
            stored = await cache.store(kept, tenant, overwrite=False)
            counts[Warmed.STORED].inc(stored)
            counts[Warmed.PRESENT].inc(len(kept) - stored)
        if refused is not None:
            raise refused

    async def _compute(self, wanted: list[Asked], tenant: Partition, space: Space) -> list[Outcome]:
        """Have *wanted* computed, and book what it took."""
        work = Work(
            texts=[asked.prompt + asked.text for asked in wanted],
            purpose=embedder_pb2.PURPOSE_WARM,
            flow=tenant.tag,
            until_s=time.perf_counter() + PATIENCE_S,
        )
        try:
            outcomes = await self._cache.compute(work, space, urgency=Urgency.BACKGROUND)
        except Overloaded:
            raise  # nothing was begun
        except EmbedKeepError:
            self._book((self._cost_s or 0.0) * len(wanted))  # it may have been computed
            raise
        took_ns = [outcome.device_ns for outcome in outcomes if isinstance(outcome, Entry)]
        self._book(sum(took_ns) / 1e9)
        if took_ns:
            self._cost_s = smoothed(self._cost_s, sum(took_ns) / 1e9 / len(took_ns))
        return list(outcomes)

    def _book(self, seconds: float) -> None:
        self._budget.spend(seconds, now_s=time.monotonic())
        self._metrics.warm_seconds.inc(seconds)

    def _room(self) -> int:
        """Texts that the budget allows now, by what they cost lately; at first a single one."""
        left_s = self._budget.left_s(self.budget_s, now_s=time.monotonic())
        if left_s <= 0:
            return 0
        if not self._cost_s:
            return 1
        return int(left_s / self._cost_s)
