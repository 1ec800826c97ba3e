"""`make demo`: a cache on this machine, asked real questions in a real order, and what it saved.

    python -m embedkeep_operator.local.demo [FILE] [--svg PICTURE]

Starts FILE (examples/quickstart.yaml) on free ports, replays half of the sample, restarts the node
so that its own memory is empty and Valkey has to answer, replays the rest, prints a table, and
stops all. FILE holds an EmbeddingCache without TLS and tenants.
"""

import argparse
import asyncio
import io
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from embedkeep import AsyncClient, EmbedKeepError, Source
from embedkeep_operator.counts import total
from embedkeep_operator.local.observe import read
from embedkeep_operator.local.replay import IN_FLIGHT, Tally, replay, sample
from embedkeep_operator.local.runner import Local, Running

WIDTH: Final = 80
"""Of the table, columns: fits any terminal."""
LONGEST_S: Final = 115.0
"""Then the demo gives up: it promises to end."""
SETTLE_S: Final = 5.0
"""How long Valkey's own count may take to show what was written."""
TIERS: Final = {
    Source.L1: "L1 (node memory)",
    Source.VALKEY: "Valkey",
    Source.PEER: "another node",
    Source.COALESCED: "coalesced",
    Source.EMBEDDER: "embedder",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a node says of one tier."""

    entries: float = 0
    nbytes: float = 0

    def each(self, before: "Held") -> float | None:
        """Bytes of one entry that came since *before*. None: none came."""
        entries = self.entries - before.entries
        return (self.nbytes - before.nbytes) / entries if entries > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All that the demo measured."""

    cold: Tally
    """From an empty cache on."""
    restarted: Tally
    """After the node's restart."""
    model: str
    dimensions: int
    l1_entry_bytes: float | None
    """None: L1 holds nothing."""
    valkey_entry_bytes: float | None
    """What Valkey's memory grew by, an entry; keys and its own bookkeeping are in it."""


async def demo(file: Path, console: Console) -> Outcome:
    """Run the whole demo; nothing is left running, however it ends.

    Raises:
        EmbedKeepError: The cache cannot be started, or does not answer.
        TimeoutError: It took longer than LONGEST_S.
    """
    texts = sample()
    half = len(texts) // 2
    with tempfile.TemporaryDirectory(prefix="embedkeep-demo-") as state:
        async with asyncio.timeout(LONGEST_S):
            with console.status("starting Valkey, the embedder and the node ..."):
                local = Local(file, state_dir=Path(state), free_ports=True)
                running = await local.__aenter__()
            try:
                empty = await held(running, "valkey")
                cold = await half_replayed(running, texts[:half], "cold cache", console)
                full = await settled(running, entries=len(set(texts[:half])))
                l1 = await held(running, "l1")
                with console.status("restarting the node: its own memory is lost ..."):
                    await restart_node(running)
                restarted = await half_replayed(running, texts[half:], "node restarted", console)
                async with AsyncClient(running.url) as client:
                    info = await client.info()
            finally:
                with console.status("stopping ..."):
                    await local.__aexit__(*sys.exc_info())
    return Outcome(
        cold=cold,
        restarted=restarted,
        model=info.model,
        dimensions=info.dimensions,
        l1_entry_bytes=l1.each(Held()),
        valkey_entry_bytes=full.each(empty),
    )


async def half_replayed(
    running: Running, texts: Sequence[str], name: str, console: Console
) -> Tally:
    """Replay *texts* under a progress bar."""
    bar = Progress(
        TextColumn("{task.description:<15}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[hits]:>4.0%} without computing"),
        TimeElapsedColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task(name, total=len(texts), hits=0.0)

        def on_answer(tally: Tally) -> None:
            bar.update(task, completed=tally.texts.total(), hits=tally.hits())

        async with AsyncClient(running.url) as client:
            return await replay(client, texts, on_answer=on_answer)


async def restart_node(running: Running) -> None:
    """End the node as a rollout would, and wait until its successor answers."""
    node = running.processes["node"]
    starts = node.starts
    os.kill(running.pid("node"), signal.SIGTERM)
    await running.supervisor.board.until(lambda: node.starts > starts)
    await running.ready()


async def settled(running: Running, *, entries: int) -> Held:
    """What Valkey holds, once there are so many *entries*: writing goes on behind the answers."""
    give_up = time.monotonic() + SETTLE_S
    while (found := await held(running, "valkey")).entries < entries:
        if time.monotonic() > give_up:
            break
        await asyncio.sleep(0.1)
    return found


async def held(running: Running, tier: str) -> Held:
    """What the metrics say of *tier*."""
    counts = total(await read(running.ports.metrics_urls))
    return Held(entries=counts.entries.get(tier, 0), nbytes=counts.bytes.get(tier, 0))


def report(outcome: Outcome) -> Group:
    """The tables, and how to read them."""
    total = outcome.cold + outcome.restarted
    tiers = Table("answered by", title="what answered", title_justify="left", width=WIDTH)
    for head in ("cold", "restarted", "all", "share", "p50", "p99"):
        tiers.add_column(head, justify="right")
    for row in tier_rows(outcome, total):
        tiers.add_row(*row)
    facts = Table(title="what it came to", title_justify="left", show_header=False, width=WIDTH)
    for fact in fact_rows(outcome, total):
        facts.add_row(*fact)
    return Group(
        tiers,
        Text(
            "Questions by what answered them: from an empty cache on, and after a restart of the "
            "node. Coalesced: joined a computation under way. p50 and p99: of requests, by the "
            f"slowest tier they needed, on the client's clock, {IN_FLIGHT} requests at once, "
            f"client, cache and model on the same {os.cpu_count()} cores.",
            style="dim",
        ),
        facts,
        Text(
            "The questions are real (BANKING77, CLINC150); the order in which they come again is "
            "that of a real web trace (cache2k web07): its k-th key stands for the k-th question. "
            "Your traffic has a hit ratio of its own.",
            style="dim",
        ),
    )


def tier_rows(outcome: Outcome, total: Tally) -> Iterator[list[str]]:
    """One row a tier. Another node has none where there is no other."""
    for source, name in TIERS.items():
        if source is Source.PEER and not total.texts[source]:
            continue
        seconds = total.seconds.get(source)
        yield [
            name,
            f"{outcome.cold.texts[source]:,}",
            f"{outcome.restarted.texts[source]:,}",
            f"{total.texts[source]:,}",
            f"{total.texts[source] / total.texts.total():.1%}",
            *(
                f"{np.quantile(seconds, part) * 1e3:.1f} ms" if seconds else ""
                for part in (0.5, 0.99)
            ),
        ]


def fact_rows(outcome: Outcome, total: Tally) -> Iterator[tuple[str, str]]:
    """What it came to, for people."""
    spent, saved = total.spent_device_s, total.saved_device_s
    yield "requests", f"{total.requests:,}, with {total.texts.total():,} questions in them"
    yield "hit ratio", f"{total.hits():.1%} of the questions cost no computation"
    yield "embeddings computed", f"{total.texts[Source.EMBEDDER]:,}"
    yield (
        "device-seconds",
        f"{spent:.1f} spent, {saved:.1f} saved: {saved / (spent + saved):.0%} less than without",
    )
    tiers = (("L1", outcome.l1_entry_bytes), ("Valkey", outcome.valkey_entry_bytes))
    sizes = ", ".join(f"{size:,.0f} in {tier}" for tier, size in tiers if size is not None)
    vector = f"{outcome.dimensions} float32, {4 * outcome.dimensions:,} bytes"
    yield "bytes an entry", f"{sizes or 'none were kept'}; its vector: {vector}"
    yield "model", f"{outcome.model} on the CPU"


def picture(shown: Group) -> str:
    """An SVG of *shown* that loads nothing from elsewhere."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(shown)
    drawn = console.export_svg(title="make demo")
    return re.sub(r"@font-face \{.*?\}\s*|<!--.*?-->\s*", "", drawn, flags=re.DOTALL)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="embedkeep_operator.local.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, nargs="?", default=Path("examples/quickstart.yaml"))
    parser.add_argument("--svg", type=Path, help="also draw the result here")
    given = parser.parse_args()
    console = Console()
    try:
        outcome = asyncio.run(demo(given.file, console))
    except EmbedKeepError as error:
        sys.exit(f"demo: {error}")
    except TimeoutError:
        sys.exit(f"demo: gave up after {LONGEST_S:g} s: is this machine very busy?")
    except KeyboardInterrupt:
        sys.exit("demo: stopped")
    console.print(report(outcome))
    if given.svg is not None:
        given.svg.write_text(picture(report(outcome)))


if __name__ == "__main__":
    main()
