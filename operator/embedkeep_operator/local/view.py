"""How a running cache is shown: one picture for a terminal, one line where there is none."""

import time
from collections.abc import Iterable, Mapping
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from embedkeep_operator.counts import Counts
from embedkeep_operator.local.supervisor import Child, Event, State

TIERS: Final = {
    "l1": "L1 (memory)",
    "valkey": "Valkey",
    "replica": "its replicas",
    "peer": "another node",
    "coalesced": "joined a miss",
    "embedder": "embedder",
}
_COLOURS: Final = {
    State.READY: "green",
    State.FAILED: "red",
    State.PAUSING: "red",
    State.SILENT: "yellow",
    State.STARTING: "yellow",
    State.WAITING: "yellow",
}
SHOWN_EVENTS: Final = 8


def ratio(share: float | None) -> str:
    """Per cent, or a dash where there is nothing to divide by."""
    return "-" if share is None else f"{share:.1%}"


def size(count: float) -> str:
    """Bytes for people, with a binary unit: 3.1 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:  # the next unit
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def line(counts: Counts, rate: Mapping[str, float]) -> str:
    """One line with what matters, for logs."""
    entries = ", ".join(f"{name} {held:.0f}" for name, held in counts.entries.items())
    money = f" | {_books(counts)}" if counts.upstream_tokens else ""
    warmed = (
        f" | warmed {counts.warmed:.0f}, asked for {counts.warmed_hits:.0f}"
        if counts.warmed
        else ""
    )
    extra = f" | left alone: {', '.join(counts.open_breakers)}" if counts.open_breakers else ""
    return (
        f"hits {ratio(counts.hit_ratio)} of {counts.answered:.0f} | {sum(rate.values()):.0f}/s"
        f" | entries: {entries or '-'} | device: spent {sum(counts.spent_device_s.values()):.1f} s,"
        f" saved {counts.saved_device_s:.1f} s{money}{warmed} | waiting {counts.waiting_inputs:.0f}"
        f" + {counts.queued_inputs:.0f}{extra}"
    )


def picture(  # noqa: PLR0913  # what is on the screen
    title: str,
    children: Iterable[Child],
    counts: Counts,
    rate: Mapping[str, float],
    events: Iterable[Event],
    *,
    hint: str,
    now_s: float,
) -> RenderableType:
    """The whole screen.

    Args:
        hint: What to do next.
        now_s: On the monotonic clock.
    """
    return Group(
        Text(title, style="bold"),
        Text(),
        _processes(children, now_s),
        Text(),
        tiers(counts, rate),
        Text(),
        totals(counts),
        Text(),
        *map(_event, [*events][-SHOWN_EVENTS:]),
        Text(hint, style="dim"),
    )


def _processes(children: Iterable[Child], now_s: float) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("process", "state", "for", "pid", "starts", ""):
        table.add_column(column, header_style="dim")
    for child in children:
        table.add_row(
            child.name,
            Text(child.state, style=_COLOURS.get(child.state, "")),
            f"{now_s - child.since:.0f} s",
            str(child.pid or "-"),
            str(child.starts),
            Text(child.reason[:60], style="dim"),
        )
    return table


def tiers(counts: Counts, rate: Mapping[str, float]) -> Table:
    """Where answers came from, and what is held there."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("answered by", header_style="dim")
    for column in ("inputs", "share", "now/s", "entries", "bytes", "evicted"):
        table.add_column(column, justify="right", header_style="dim")
    for tier, name in TIERS.items():
        found = counts.lookups.get(tier, 0)
        if tier == "peer" and not found:  # seldom, and never where there is one node
            continue
        if tier == "replica" and not counts.bytes.get(tier):  # they answer nobody
            continue
        table.add_row(
            name,
            f"{found:,.0f}",
            ratio(found / counts.answered if counts.answered else None),
            f"{rate.get(tier, 0):,.0f}",
            f"{counts.entries[tier]:,.0f}" if tier in counts.entries else "",
            size(counts.bytes[tier]) if tier in counts.bytes else "",
            f"{counts.evictions[tier]:,.0f}" if tier in counts.evictions else "",
        )
    return table


def totals(counts: Counts, *, of: str = "") -> Table:
    """The books.

    Args:
        of: What the spent device time counts from, where that is not the beginning.
    """
    spent = ", ".join(
        f"{seconds:.2f} s {purpose}"
        for purpose, seconds in sorted(counts.spent_device_s.items())
        if seconds
    )
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_row("hit ratio", Text(ratio(counts.hit_ratio), style="bold green"))
    table.add_row("device time saved", f"{counts.saved_device_s:.2f} s")
    table.add_row("device time spent", (spent or "0 s") + (f", {of}" if of else ""))
    if counts.upstream_tokens:
        table.add_row("upstream", _books(counts))
    if (warming := _warming(counts)) is not None:
        table.add_row("warming up", warming)
    table.add_row(
        "waiting", f"{counts.waiting_inputs:.0f} at the node, {counts.queued_inputs:.0f} embedding"
    )
    for name, count in counts.lookups.items():
        if name not in TIERS and count:
            table.add_row(name.replace("_", " "), f"{count:,.0f}")
    if counts.corrupt:
        table.add_row("corrupt records", f"{counts.corrupt:.0f}")
    if counts.open_breakers:
        table.add_row("left alone", Text(", ".join(counts.open_breakers), style="yellow"))
    return table


def _warming(counts: Counts) -> str | None:
    """What warming did. Each text that was warmed avoids one computation at most: its first hit."""
    if counts.plan_texts is None:
        return None
    if not counts.plan_made_at:
        return "no plan yet"
    made = time.strftime("%H:%M", time.localtime(counts.plan_made_at))
    return (
        f"plan of {made} names {counts.plan_texts:,.0f} texts; {counts.warmed:,.0f} warmed in "
        f"{counts.warm_device_s:.2f} s, {counts.warmed_hits:,.0f} of them asked for since, which "
        f"saved {counts.warmed_saved_s:.2f} s"
    )


def _books(counts: Counts) -> str:
    """Tokens, and money where there is a price."""
    spent = sum(counts.upstream_tokens.values())
    said = f"tokens: spent {spent:,.0f}, saved {counts.saved_tokens:,.0f}"
    if counts.money is None:
        return said
    saved, paid = counts.money
    return f"{said}; money: spent {paid:,.6f}, saved {saved:,.6f}"


def _event(event: Event) -> Text:
    at = time.strftime("%H:%M:%S", time.localtime(event.at))
    style = "red" if event.bad else ""
    return Text.assemble((f"{at} ", "dim"), f"{event.process}: ", (event.message, style))
