"""Makes a report text for a terminal."""

from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from embedkeep_operator.counts import Counts
from embedkeep_operator.kubectl.report import Event, Report
from embedkeep_operator.kubectl.tree import Owned, State

COLOURS: Final = {State.FINE: "green", State.WAITING: "yellow", State.BAD: "bold red"}
SILENT: Final = frozenset({"ConfigMap", "ServiceAccount", "Service", "NetworkPolicy"})
"""Kinds of which one line says that they are there: nothing goes wrong with one alone."""


def shown(report: Report) -> RenderableType:
    """The whole of one cache."""
    return Group(*(part for part in (
        _title(report),
        _facts(report),
        _conditions(report),
        _owned(report),
        _counts(report.all_counts),
        _events(report.events),
        *(Text(f"not read: {problem}", style="yellow") for problem in report.problems),
        Text(),
    ) if part is not None))  # fmt: skip


def _title(report: Report) -> Text:
    said = {State.FINE: "ready", State.WAITING: "not ready yet", State.BAD: "in trouble"}
    title = Text.assemble(
        (f"{report.namespace}/{report.name}", "bold"), "  ",
        (said[report.state], COLOURS[report.state]),
    )  # fmt: skip
    if report.paused:
        title.append("  paused: the operator leaves everything as it is", style="yellow")
    if report.behind:
        title.append("  the operator has not answered the newest spec yet", style="yellow")
    return title


def _facts(report: Report) -> Table:
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_row("model", Text(report.model))
    facts.add_row("fingerprint", Text(report.fingerprint or "none agreed yet"))
    facts.add_row("endpoint", Text(report.endpoint or "none yet"))
    for name, count in (("shards", report.shards), ("nodes", report.nodes)):
        if count:
            facts.add_row(name, f"{count.get('ready', 0)} of {count.get('wanted', '?')} ready")
    for name, value in _tuned(report):
        facts.add_row(name, Text(value))
    return facts


def _tuned(report: Report) -> list[tuple[str, str]]:
    tuning = report.tuning
    if not tuning:
        return []
    decided = [
        f"{what} {tuning[field]}"
        for field, what in (("threshold", "threshold"), ("warmupBudget", "warm-up budget"))
        if field in tuning
    ]
    rows = [("last tuning", f"{', '.join(decided)} at {tuning.get('decidedAt', '?')}")]
    evidence = tuning.get("evidence")
    seen = evidence.items() if isinstance(evidence, dict) else ()
    told = ", ".join(f"{name} {value}" for name, value in sorted(seen))
    why = str(tuning.get("reason", "no reason given"))
    return [*rows, ("why", f"{why}: {told}" if told else why)]


def _conditions(report: Report) -> RenderableType | None:
    if not report.conditions:
        return None
    table = Table.grid(padding=(0, 2, 0, 0))
    for each in report.conditions:
        bad = each.status == "True" and each.type in {"Stalled", "Degraded", "ModelDrift"}
        style = COLOURS[State.BAD] if bad else ""
        table.add_row(
            Text(each.type, style=style), each.status, Text(each.reason), Text(each.message),
            Text(each.since, style="dim"),
        )  # fmt: skip
    return Group(Text(), table)


def _owned(report: Report) -> RenderableType | None:
    if not report.owned:
        return None
    root = Tree(Text(f"EmbeddingCache/{report.name}"))
    _grow(root, report.owned)
    return Group(Text(), root)


def _grow(branch: Tree, owned: tuple[Owned, ...]) -> None:
    for each in owned:
        if each.kind not in SILENT:
            label = Text.assemble(f"{each.kind}/{each.name}  ", (each.says, COLOURS[each.state]))
            _grow(branch.add(label), each.below)
    for kind in dict.fromkeys(each.kind for each in owned if each.kind in SILENT):
        names = ", ".join(each.name for each in owned if each.kind == kind)
        branch.add(Text(f"{kind}: {names}", style="dim"))


def _counts(counts: Counts | None) -> RenderableType | None:
    if counts is None:
        return None
    table = Table.grid(padding=(0, 2, 0, 0))
    ratio = counts.hit_ratio
    asked = f"{ratio:.1%} of {counts.answered:,.0f}" if ratio is not None else "nothing was asked"
    table.add_row("hit ratio", Text(f"{asked} since the pods' start"))
    table.add_row("device time saved", f"{counts.saved_device_s:,.1f} s")
    for tier, entries in counts.entries.items():
        table.add_row(f"entries in {tier}", f"{entries:,.0f}")
    if counts.open_breakers:
        table.add_row("left alone", Text(", ".join(counts.open_breakers), style="yellow"))
    if counts.corrupt:
        table.add_row("corrupt records", Text(f"{counts.corrupt:,.0f}", style="red"))
    return Group(Text(), table)


def _events(events: tuple[Event, ...]) -> RenderableType | None:
    if not events:
        return None
    table = Table.grid(padding=(0, 2, 0, 0))
    for each in events:
        times = f" ({each.times} times)" if each.times > 1 else ""
        table.add_row(
            Text(each.at, style="dim"), Text(each.about),
            Text(each.reason, style="yellow" if each.warning else ""), Text(each.message + times),
        )  # fmt: skip
    return Group(Text(), table)
