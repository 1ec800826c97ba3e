"""Draws docs/images/*.svg from benchmarks/results/*.json, and shows them in docs/benchmarks.md.

    .venv-peers/bin/python benchmarks/charts.py [--quick]

--quick draws what --quick measured, in .bench/. Text and lines are of a grey, and bars of colours,
that read on white as on black; the ground is left clear. What was not measured is not drawn.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from report import COMMITTED, Place, draft
from turns import arguments, say

INK: Final = "#7a828c"
COLOURS: Final = {
    "embedkeep": ("#2f81f7", "#1f9d8f", "#8a63d2", "#6cc0b6", "#b394ea"),
    "RedisVL": ("#d9534f", "#e98a86"),
    "LangChain": ("#c98a00",),
    "CacheBackedEmbeddings": ("#c98a00",),
    "LiteLLM": ("#b0569c", "#cf8bc0"),
    "nginx": ("#4d9a3a", "#8abf7c"),
    "redis-py": (INK,),
    "raw": (INK,),
    "no cache": (INK,),
}
"""By how a system's name begins; its lines take turns."""
STYLE: Final = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "font.size": 9,
    "grid.alpha": 0.25,
    "grid.color": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "embedkeep",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}

Rows = Sequence[Mapping[str, object]]


def colours(names: Iterable[str]) -> dict[str, str]:
    """One for each name, the same for the same list."""
    used: dict[str, int] = {}
    found: dict[str, str] = {}
    for name in names:
        family = next((family for family in COLOURS if name.startswith(family)), "raw")
        shades = COLOURS[family]
        found[name] = shades[used.get(family, 0) % len(shades)]
        used[family] = used.get(family, 0) + 1
    return found


def number(row: Mapping[str, object], name: str) -> float:
    """A field that is a number."""
    return float(cast(float, row[name]))


def line_of(row: Mapping[str, object]) -> str:
    """A system and its tier, as a legend names it."""
    return f"{row['system']}, {row['tier']}"


def lines(ax: Axes, rows: Rows, *, x: str, y: str) -> None:
    """A line for each system and tier, both axes logarithmic."""
    names = list(dict.fromkeys(map(line_of, rows)))
    shade = colours(names)
    for name in names:
        points = sorted((number(row, x), number(row, y)) for row in rows if line_of(row) == name)
        ours = name.startswith("embedkeep")
        ax.plot(
            *zip(*points, strict=True),
            label=name,
            color=shade[name],
            marker="o" if ours else "s",
            markersize=4,
            linewidth=2 if ours else 1.2,
        )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ticks = sorted({number(row, x) for row in rows})
    ax.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One field of some rows, against another."""

    x: str
    y: str
    label: str | None
    colour: str
    dotted: bool = False
    per: float = 1.0
    """Divides y."""

    def draw(self, ax: Axes, rows: Rows) -> None:
        """In the order of the rows."""
        ax.plot(
            [number(row, self.x) for row in rows],
            [number(row, self.y) / self.per for row in rows],
            "o:" if self.dotted else "o-",
            color=self.colour,
            label=self.label,
            markersize=4,
        )


def by_batch(found: Mapping[str, object]) -> Figure:
    """Throughput by texts a call: one panel for each number of clients."""
    rows = cast(Rows, found["rows"])
    counts = sorted({number(row, "clients") for row in rows})
    figure, axes = plt.subplots(1, len(counts), figsize=(9, 4.2), sharey=True, squeeze=False)
    for ax, count in zip(axes[0], counts, strict=True):
        of = [row for row in rows if number(row, "clients") == count]
        lines(ax, of, x="batch", y="vectors_per_s")
        ax.set_title(f"{count:.0f} client{'s' if count > 1 else ''}")
        ax.set_xlabel("texts a call")
    axes[0][0].set_ylabel("vectors a second")
    _legend(figure, axes[0][-1])
    return figure


def sizes(found: Mapping[str, object]) -> Figure:
    """Latency of hits and memory by entries."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    hits = cast(Rows, found["hits"])
    ways = sorted({(str(hit["tier"]), int(number(hit, "batch"))) for hit in hits})
    for (tier, batch), colour in zip(ways, COLOURS["embedkeep"], strict=False):
        of = [hit for hit in hits if (hit["tier"], hit["batch"]) == (tier, batch)]
        label = f"{tier}, b{batch}"
        Curve(x="entries", y="p50_us", label=label, colour=colour).draw(left, of)
        Curve(x="entries", y="p99_us", label=None, colour=colour, dotted=True).draw(left, of)
    left.set(xscale="log", yscale="log", xlabel="entries", ylabel="us a call")
    left.set_title("hits: p50, and p99 dotted")
    left.legend(ncols=2)
    kept = cast(Rows, found["sizes"])
    blue, red = COLOURS["embedkeep"][0], COLOURS["RedisVL"][0]
    Curve(x="entries", y="node_rss_mib", label="node, all in L1", colour=blue).draw(right, kept)
    Curve(x="entries", y="valkey_mib", label="Valkey", colour=red).draw(right, kept)
    right.set(xscale="log", yscale="log", xlabel="entries", ylabel="MiB")
    right.set_title("memory")
    right.legend()
    return figure


def clients(found: Mapping[str, object]) -> Figure:
    """Throughput and latency by calls in flight."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    rows = cast(Rows, found["clients"])
    for tier, colour in zip(("L1", "Valkey"), COLOURS["embedkeep"], strict=False):
        of = [row for row in rows if row["tier"] == tier]
        Curve(x="clients", y="vectors_per_s", label=tier, colour=colour).draw(left, of)
        for y, dotted in (("p50_us", False), ("p99_us", True)):
            label = f"{tier}, {y[:3]}"
            curve = Curve(x="clients", y=y, label=label, colour=colour, dotted=dotted, per=1e3)
            curve.draw(right, of)
    ticks = sorted({number(row, "clients") for row in rows})
    for ax in (left, right):
        ax.set_xscale("log", base=4)
        ax.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        ax.set_xlabel("calls in flight, 8 texts each")
        ax.legend()
    left.set_ylim(bottom=0)
    left.set_ylabel("vectors a second")
    right.set(yscale="log", ylabel="ms a call")
    return figure


def entry_bytes(found: Mapping[str, object]) -> Figure:
    """Bytes an entry, beside the vector's own."""
    rows = cast(Rows, found["rows"])
    dims = sorted({number(row, "dims") for row in rows})
    figure, axes = plt.subplots(1, len(dims), figsize=(9, 2.6), squeeze=False, sharey=True)
    for ax, size in zip(axes[0], dims, strict=True):
        of = [row for row in rows if number(row, "dims") == size]
        names = [str(row["system"]) for row in of]
        bars = ax.barh(
            names,
            [number(row, "bytes_an_entry") for row in of],
            color=list(colours(names).values()),
        )
        ax.bar_label(bars, fmt="{:,.0f}", padding=3, color=INK)
        ax.axvline(4 * size, color=INK, linestyle="--", linewidth=1)
        ax.set_title(f"{size:,.0f} dimensions; dashed: the vector")
        ax.set_xlabel("bytes an entry in Valkey")
        ax.margins(x=0.18)
    axes[0][0].invert_yaxis()
    return figure


def end_to_end(found: Mapping[str, object]) -> Figure:
    """Where the time of an ingest and its queries goes."""
    rows = cast(Rows, found["rows"])
    figure, ax = plt.subplots(figsize=(9, 2.6))
    names = [str(row["way"]) for row in rows]
    start = [0.0] * len(rows)
    for part, label, colour in (
        ("ingest_s", "ingest", COLOURS["embedkeep"][0]),
        ("again_s", "ingest again", COLOURS["LangChain"][0]),
        ("queries_s", "queries", COLOURS["embedkeep"][1]),
    ):
        width = [number(row, part) for row in rows]
        ax.barh(names, width, left=start, color=colour, label=label)
        start = [a + b for a, b in zip(start, width, strict=True)]
    for place, (end, row) in enumerate(zip(start, rows, strict=True)):
        ax.text(end, place, f"  {number(row, 'computed'):,.0f} computed", va="center")
    ax.margins(x=0.2)
    ax.invert_yaxis()
    ax.set_xlabel("seconds")
    _legend(figure, ax)
    return figure


CHARTS: Final[Mapping[str, tuple[str, Callable[[Mapping[str, object]], Figure], str]]] = {
    "peers": ("peers", by_batch, "Throughput of exact hits by texts a call, beside the peers"),
    "http_peers": ("http_peers", by_batch, "Throughput over HTTP by texts a call"),
    "bytes": ("bytes", entry_bytes, "Bytes an entry in Valkey, beside the peers"),
    "sizes": ("curves", sizes, "Latency of hits and memory by entries"),
    "clients": ("curves", clients, "Throughput and latency by calls in flight"),
    "end_to_end": ("end_to_end", end_to_end, "Time of an ingest and its queries, by way"),
}
"""By the image's name: the result, what draws it, and what it shows."""


def draw(place: Place) -> None:
    """Draw all that was measured."""
    place.images.mkdir(parents=True, exist_ok=True)
    for name, (result, drawn, shows) in CHARTS.items():
        if (found := place.load(result)) is None:
            say(f"{name}: not measured")
            continue
        figure = drawn(found)
        figure.tight_layout()
        figure.savefig(place.images / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
        plt.close(figure)
        place.write(f"{name} chart", f"![{shows}](images/{name}.svg)", script="charts")
        say(f"{name}: {place.images / f'{name}.svg'}")


def _legend(figure: Figure, ax: Axes) -> None:
    """Below the panels: names are long."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3)


def main() -> None:
    """Draw."""
    quick = arguments(__doc__).quick
    mpl.use("svg")
    mpl.rcParams.update(STYLE)
    draw(draft() if quick else COMMITTED)


if __name__ == "__main__":
    main()
