"""Lets systems take turns, and makes rows of what they did. What all comparisons share."""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Final

import numpy as np

from callers import Asking, CallerFailed, Callers, Opener, Window
from report import table
from rig import Upstream
from upstream import matrix

FILL: Final = 128
"""Texts a call while a cache is filled."""
PASSES: Final = 20
"""Passes over all texts until none is asked of the model any more; half a second between them."""


class NeverHits(Exception):
    """A cache still asks the model after it was given everything, or answers something else."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """One line of a comparison."""

    system: str
    tier: str
    opener: Opener
    in_caller: bool = False
    """It keeps what it has seen in the caller's own process: each must see everything first."""

    @property
    def name(self) -> str:
        """As callers know it."""
        return f"{self.system}, {self.tier}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured, and for how long."""

    batches: Sequence[int]
    """Texts a call."""
    clients: Sequence[int]
    rounds: int
    """Measured; one more goes before them to warm up."""
    seconds: float
    """Of each window: one system, at one size, in one round."""
    fixed: bool = False
    """Each client asks for the same few batches again and again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one system did at one size."""

    system: str
    tier: str
    batch: int
    """Texts a call."""
    clients: int
    """Processes that asked at once."""
    p50_us: float
    p99_us: float
    vectors_per_s: float
    """Of all clients together: the median of the rounds."""
    n: int
    """Calls."""
    misses: int
    """Texts that the model was asked for meanwhile; must be 0."""


@dataclass(slots=True)
class Compared:
    """All rows, and who dropped out."""

    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Why, by system."""

    def row(self, system: str, tier: str, batch: int, clients: int) -> Row | None:
        """One row. None: it is not there."""
        wanted = (system, tier, batch, clients)
        return next(
            (row for row in self.rows if (row.system, row.tier, row.batch, row.clients) == wanted),
            None,
        )


def compare(
    entrants: Sequence[Entrant], upstream: Upstream, texts: Sequence[str], plan: Plan
) -> Compared:
    """Fill and check every cache, then measure hits in turns. One that fails is left out."""
    compared = Compared()
    cells: dict[tuple[Entrant, int, int], list[_Cell]] = {}
    openers = {entrant.name: entrant.opener for entrant in entrants}

    with Callers(max(plan.clients), openers, texts) as callers:
        for entrant in entrants:
            say(f"filling {entrant.name}")
            with _left_out(entrant, compared):
                fill(callers, entrant, upstream, texts)
        for number in range(plan.rounds + 1):
            say(f"round {number} of {plan.rounds}")
            for count, batch, entrant in product(plan.clients, plan.batches, entrants):
                if entrant.name in compared.left_out:
                    continue
                with _left_out(entrant, compared):
                    upstream.reset()
                    asking = Asking(
                        batch=batch, seconds=plan.seconds, callers=count, fixed=plan.fixed
                    )
                    window = callers.window(entrant.name, asking)
                    cell = _Cell(window, upstream.texts())
                    if number:  # the first round connects and warms up
                        cells.setdefault((entrant, batch, count), []).append(cell)
    compared.rows = [_row(*where, found) for where, found in cells.items()]
    return compared


@dataclass(frozen=True, slots=True)
class _Cell:
    """One system, at one size, in one round."""

    window: Window
    misses: int


@contextmanager
def _left_out(entrant: Entrant, compared: Compared) -> Iterator[None]:
    """Whoever fails drops out with its reason; the others go on."""
    try:
        yield
    except (CallerFailed, NeverHits, OSError) as error:
        compared.left_out[entrant.name] = str(error)
        say(f"left out: {entrant.name}: {error}")


def fill(callers: Callers, entrant: Entrant, upstream: Upstream, texts: Sequence[str]) -> None:
    """Have a cache take in all *texts*, check what it answers, and warm up every caller.

    Raises:
        NeverHits: It still asks the model, or its vectors are not the model's.
        CallerFailed: It cannot be asked.
    """
    callers.open(entrant.name)
    parts = [list(texts[at : at + FILL]) for at in range(0, len(texts), FILL)]
    for _ in range(PASSES):
        upstream.reset()
        for part in parts:
            if not np.array_equal(callers.first(entrant.name, part), matrix(part, upstream.dims)):
                raise NeverHits("its vectors are not the model's")
        if not upstream.texts():
            break
        time.sleep(0.5)
    else:
        raise NeverHits(f"the model is still asked after {PASSES} passes over all texts")
    for part in parts if entrant.in_caller else parts[:1]:
        callers.once(entrant.name, [part] * callers.number)


def _row(entrant: Entrant, batch: int, clients: int, cells: Sequence[_Cell]) -> Row:
    seconds = [second for cell in cells for second in cell.window.seconds]
    return Row(
        system=entrant.system,
        tier=entrant.tier,
        batch=batch,
        clients=clients,
        p50_us=round(float(np.median(seconds)) * 1e6, 1),
        p99_us=round(float(np.quantile(seconds, 0.99)) * 1e6, 1),
        vectors_per_s=round(statistics.median(cell.window.vectors_per_s for cell in cells)),
        n=len(seconds),
        misses=sum(cell.misses for cell in cells),
    )


def row_cells(compared: Compared) -> str:
    """The rows as a table, one a size and system, the fastest first; then who was left out."""
    head = ("clients", "texts a call", "system", "tier", "p50, us", "p99, us", "vectors/s")
    ordered = sorted(compared.rows, key=lambda row: (row.clients, row.batch, -row.vectors_per_s))
    text = table(
        head,
        (
            [
                str(row.clients),
                str(row.batch),
                row.system,
                row.tier,
                thousands(row.p50_us),
                thousands(row.p99_us),
                thousands(row.vectors_per_s),
            ]
            for row in ordered
        ),
    )
    out = [f"Left out: {name}: {_first_line(why)}" for name, why in compared.left_out.items()]
    return "\n\n".join([text, *out])


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0]


def arguments(about: str | None) -> argparse.Namespace:
    """The command line that all these scripts have: `.quick`."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="short and not to be believed, while you work on it: results go to .bench/",
    )
    return parser.parse_args()


def say(line: str) -> None:
    """Progress, apart from what is printed at the end."""
    print(f"  {line}", file=sys.stderr, flush=True)


def thousands(number: float) -> str:
    """For tables."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"
