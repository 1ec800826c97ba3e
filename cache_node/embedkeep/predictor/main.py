"""One run of the predictor: every tenant's history in, every tenant's plan out.

Tenants are taken one after the other, so that what is held in memory is one history; what is read
for one is never looked at for another.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import hiredis
import structlog

from embedkeep.config import PredictorConfig, ValkeyTarget
from embedkeep.errors import EmbedKeepError, InvalidConfig, Unavailable
from embedkeep.history import (
    BUCKETS,
    Bucket,
    Fence,
    fence_name,
    plan_command,
    read_bucket,
    read_commands,
    read_fence,
    shorten_commands,
    width_s,
)
from embedkeep.keys import tenant_salt, tenant_tag
from embedkeep.node.connection import Command, Connection, Reply, connect, read_address
from embedkeep.node.tenants import read_secret
from embedkeep.plans import Plan, encode
from embedkeep.predictor.popularity import cut, rank
from embedkeep.serving import configure_logs

MOST_WAITING_BYTES: Final = 64 << 20
PLAN_LIFE_S: Final = 86_400
"""Most that a plan outlives its making, seconds: long enough for a schedule that runs daily."""

log = structlog.stdlib.get_logger()


@dataclass(slots=True, kw_only=True)
class Report:
    """What a run has done; no tenant and no text stands in it."""

    tenants: int = 0
    """With a history that was read."""
    asked: int = 0
    """Distinct texts in all histories."""
    planned: int = 0
    """Of them, in plans."""
    worth: float = 0.0
    """Computations that all plans would avoid within the horizon, if all of them were carried
    out: less than `planned`, which is what they cost."""
    withdrawn: int = 0
    """Plans that were not written, because their tenant has withdrawn something meanwhile."""
    problems: list[str] = field(default_factory=list)


def main(config: PredictorConfig) -> None:
    """Plan once.

    Raises:
        InvalidConfig: A file that *config* names cannot be used.
        Unavailable: Not all histories could be read, or not all plans written; the others were.
    """
    configure_logs("predictor")
    began_s = time.monotonic()
    report = asyncio.run(predict(config, now_s=time.time()))
    log.info(
        "planned",
        predictor="popularity",
        tenants=report.tenants,
        asked=report.asked,
        planned=report.planned,
        worth=round(report.worth, 1),
        withdrawn=report.withdrawn,
        problems=len(report.problems),
        took_s=round(time.monotonic() - began_s, 3),
    )
    if report.problems:
        raise Unavailable("; ".join(report.problems))


async def predict(config: PredictorConfig, *, now_s: float) -> Report:
    """Write a plan for each tenant whose history can be read.

    Args:
        now_s: Unix time, seconds.
    """
    report = Report()
    unseen = dict.fromkeys(_tags(config))
    for target in config.valkeys:
        where = f"{target.host}:{target.port}"
        try:
            async with asyncio.timeout(config.timeout_s):
                for tag in await _plan_all(config, target, list(unseen), report, now_s=now_s):
                    del unseen[tag]
        except TimeoutError:
            report.problems.append(f"{where} did not answer within {config.timeout_s:g} s")
        except InvalidConfig:
            raise
        except EmbedKeepError as error:
            report.problems.append(f"valkey {where}: {error}")
    if not unseen:  # whoever is away is nobody's primary, such as a replica
        for why in report.problems:
            log.info("passed over", why=why)
        report.problems.clear()
    elif not report.problems:
        report.problems.append(
            f"the histories of {len(unseen)} of {len(_tags(config))} tenants lie in none of the "
            f"{len(config.valkeys)} Valkeys that this was told of"
        )
    return report


def _tags(config: PredictorConfig) -> list[bytes]:
    """Of all tenants, as in their keys."""
    if not config.tenants:
        return [tenant_tag(tenant_salt(b"", ""))]
    secret = read_secret(config)
    return [tenant_tag(tenant_salt(secret, name)) for name in config.tenants]


async def _plan_all(
    config: PredictorConfig,
    target: ValkeyTarget,
    tags: Sequence[bytes],
    report: Report,
    *,
    now_s: float,
) -> list[bytes]:
    """Plan for those tenants whose history one Valkey owns; whose these are."""
    connection = await connect(
        read_address(target),
        on_lost=_nobody_waits,
        stall_s=config.timeout_s,
        max_waiting_bytes=MOST_WAITING_BYTES,
    )
    try:
        # A member of a cluster that does not own a slot says so; a replica never does.
        asked: list[Command] = [("EXISTS", fence_name(tag)) for tag in tags]
        replies = await connection.pipeline(asked)
        for reply in replies:
            if isinstance(reply, hiredis.HiredisError) and not str(reply).startswith("MOVED "):
                raise Unavailable(str(reply))
        own = [
            tag
            for tag, reply in zip(tags, replies, strict=True)
            if not isinstance(reply, hiredis.HiredisError)
        ]
        for tag in own:
            await _plan(config, connection, tag, report, now_s=now_s)
        return own
    finally:
        connection.close()


async def _plan(
    config: PredictorConfig, connection: Connection, tag: bytes, report: Report, *, now_s: float
) -> None:
    """Read one tenant's history and write its plan."""
    retention_s = config.history.retention_s
    fence, history = _read(await connection.pipeline(read_commands(tag)))
    if not history:
        return
    life_s = min(PLAN_LIFE_S, max(retention_s // 2, 1))
    # A plan must not keep a text longer than the history would.
    known = [each for each in history if each.start_s + retention_s >= now_s + life_s]
    ranked = rank(
        known,
        now_s=now_s,
        width_s=width_s(retention_s),
        half_life_s=config.half_life_s,
        horizon_s=config.horizon_s,
    )
    plan = Plan(
        made_at_ms=int(now_s * 1000),
        expires_at_s=int(now_s) + life_s,
        fence=fence,
        predictor="popularity",
        horizon_s=config.horizon_s,
        texts=cut(
            ranked,
            min_worth=config.min_worth,
            max_texts=config.max_texts,
            max_bytes=config.max_bytes,
        ),
    )
    written, *_ = await connection.pipeline(
        [
            plan_command(tag, encode(plan), fence=fence, expires_at_s=plan.expires_at_s),
            *shorten_commands(tag, history, retention_s=retention_s),
        ]
    )
    if isinstance(written, hiredis.HiredisError):
        raise Unavailable(f"a plan was not written: {written}")
    report.tenants += 1
    report.asked += len(ranked)
    if written == 1:
        report.planned += len(plan.texts)
        report.worth += sum(each.worth for each in plan.texts)
    else:
        report.withdrawn += 1


def _read(replies: Sequence[Reply]) -> tuple[Fence, list[Bucket]]:
    """What `read_commands` was answered with.

    Raises:
        Unavailable: Some of it cannot be read.
    """
    for reply in replies:
        if isinstance(reply, hiredis.HiredisError):
            raise Unavailable(f"a history cannot be read: {reply}")
    fence, *buckets = replies
    try:
        read = (read_bucket(buckets[place], place=place) for place in range(BUCKETS))
        return read_fence(fence), [bucket for bucket in read if bucket is not None]
    except ValueError as error:
        raise Unavailable(f"a history cannot be read: {error}") from error


def _nobody_waits() -> None:
    """A lost connection fails what waits for it, which is enough."""
