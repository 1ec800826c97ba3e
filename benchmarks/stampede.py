"""What a cold cache asks of the model: many callers at once, and duplicates in a batch.

    make .venv-peers/ready; apt-get install nginx-light
    .venv-peers/bin/python benchmarks/stampede.py [--quick]

50 callers, each a process of its own, ask for the same 32 texts at the same instant, and nobody
has seen them before; then one asks for 128 texts of which 16 are distinct. The model counts what
it is asked and takes 0.1 s a call, however long. Ideal: 32 texts, and 16.

Writes benchmarks/results/stampede.json and its table in docs/benchmarks.md.
"""

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import http_peers
import peers
from callers import CallerFailed, Callers
from report import COMMITTED, draft, made_on, table
from rig import Rig, Upstream
from turns import Entrant, arguments, say

CALLERS: Final = 50
TEXTS: Final = 32
BATCH: Final = 128
DISTINCT: Final = 16
ROUNDS: Final = 3
MODEL_S: Final = 0.1
"""A call to the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one system did; medians of the rounds."""

    system: str
    callers: int
    texts: int
    """The callers asked for, each."""
    model_calls: float
    model_texts: float
    p50_ms: float
    """Of the callers' waits."""
    max_ms: float
    duplicates_batch: int
    duplicates_distinct: int
    duplicates_model_texts: float


def measured(callers: Callers, entrant: Entrant, upstream: Upstream, *, rounds: int) -> Row:
    """One system, cold in every round.

    Raises:
        CallerFailed: It cannot be asked.
    """
    upstream.delay(0.0)
    callers.open(entrant.name)
    callers.once(entrant.name, [["warm up"]] * callers.number)
    upstream.delay(MODEL_S)
    calls, texts, p50, slowest, duplicates = [], [], [], [], []
    for number in range(rounds):
        upstream.reset()
        cold = [f"{entrant.name} {number}: a text that nobody knows, {n}" for n in range(TEXTS)]
        waits = callers.once(entrant.name, [cold] * callers.number)
        call, text = upstream.counts()
        calls.append(call)
        texts.append(text)
        p50.append(statistics.median(waits))
        slowest.append(max(waits))
        upstream.reset()
        distinct = [f"{entrant.name} {number}: said several times, {n}" for n in range(DISTINCT)]
        batch = distinct * (BATCH // DISTINCT)
        random.Random(number).shuffle(batch)
        callers.once(entrant.name, [batch])
        duplicates.append(upstream.texts())
    return Row(
        system=entrant.name,
        callers=callers.number,
        texts=TEXTS,
        model_calls=statistics.median(calls),
        model_texts=statistics.median(texts),
        p50_ms=round(statistics.median(p50) * 1e3),
        max_ms=round(statistics.median(slowest) * 1e3),
        duplicates_batch=BATCH,
        duplicates_distinct=DISTINCT,
        duplicates_model_texts=statistics.median(duplicates),
    )


def all_of(
    entrants: Sequence[Entrant], upstream: Upstream, left_out: dict[str, str], *, quick: bool
) -> Iterator[Row]:
    """One after the other. One that fails is left out."""
    openers = {entrant.name: entrant.opener for entrant in entrants}
    with Callers(8 if quick else CALLERS, openers, []) as callers:
        for entrant in entrants:
            say(entrant.name)
            try:
                yield measured(callers, entrant, upstream, rounds=1 if quick else ROUNDS)
            except (CallerFailed, OSError) as error:
                left_out[entrant.name] = str(error)
                say(f"left out: {entrant.name}: {error}")


def main() -> None:
    """Measure, keep, and print."""
    quick = arguments(__doc__).quick
    place = draft() if quick else COMMITTED
    with Rig() as rig:
        valkey, upstream = rig.valkey(), rig.upstream(dims=peers.DIMS)
        node = rig.node(upstream.grpc_port, valkey)
        entrants = [
            each
            for each in peers.entrants(upstream, valkey, node, node)
            if (each.system, each.tier) not in {(peers.OURS, "near cache"), (peers.OURS, "Valkey")}
            and each.system != "redis-py MGET"
        ]
        over_http, left_out = http_peers.started(rig, upstream, valkey)
        entrants += [each for each in over_http if each.system.endswith("base64")]
        rows = list(all_of(entrants, upstream, left_out, quick=quick))
        server = valkey.described()
    place.save("stampede", server, rows=[asdict(row) for row in rows], left_out=left_out)
    head = (
        "system",
        f"texts asked of the model by {rows[0].callers} callers of {TEXTS} cold ones",
        "in calls",
        "p50 of a caller, ms",
        "slowest, ms",
        f"of {BATCH} in a batch, {DISTINCT} distinct",
    )
    lines = (
        [
            row.system.removesuffix(", L1").removesuffix(", whole answers"),
            f"{row.model_texts:,.0f}",
            f"{row.model_calls:,.0f}",
            f"{row.p50_ms:,.0f}",
            f"{row.max_ms:,.0f}",
            f"{row.duplicates_model_texts:,.0f}",
        ]
        for row in rows
    )
    out = [f"Left out: {name}: {why.splitlines()[0]}" for name, why in left_out.items()]
    text = "\n\n".join([table(head, lines), *out, made_on(server)])
    place.write("stampede", text)
    print(text)


if __name__ == "__main__":
    main()
