"""Exact hits beside what people use today: one machine, one Valkey, TCP for all.

    make .venv-peers/ready
    .venv-peers/bin/python benchmarks/peers.py [--quick]

Every client is a process of its own with one connection; it asks, waits and asks again. Systems
take turns, so that a busy moment hits all alike. Before a system is measured its answers are
compared with the model's; while it is measured, the model must not be asked.

Writes benchmarks/results/peers.json, its tables in docs/benchmarks.md and the one in README.md.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final

import systems
from embedkeep_operator.local.replay import sample
from report import COMMITTED, draft, made_on, table
from rig import Node, Rig, Upstream, Valkey
from turns import Compared, Entrant, Plan, arguments, compare, row_cells, thousands

DIMS: Final = 384
TEXTS: Final = 1024
PLAN: Final = Plan(batches=(1, 8, 32, 128), clients=(1, 16), rounds=4, seconds=0.4)
QUICK: Final = Plan(batches=(1, 32, 128), clients=(1, 4), rounds=1, seconds=0.1)

OURS: Final = "embedkeep Client"
REDISVL: Final = ("RedisVL", "Valkey")
LANGCHAIN: Final = ("LangChain", "Valkey")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What was promised, and what was measured."""

    target: str
    tier: str
    """Which of our tiers answered."""
    clients: int
    wanted: float
    measured: float
    met: bool


def entrants(upstream: Upstream, valkey: Valkey, l1: Node, no_l1: Node) -> list[Entrant]:
    """All that take part. Where embedkeep answers from is known: one node has no L1."""
    port = valkey.port
    client, aio = systems.Embedkeep, systems.EmbedkeepAsync
    return [
        Entrant("redis-py MGET", "Valkey", partial(systems.RawMget, port, upstream)),
        Entrant(OURS, "near cache", partial(client, l1.url, near=True), in_caller=True),
        Entrant(OURS, "L1", partial(client, l1.url)),
        Entrant(OURS, "Valkey", partial(client, no_l1.url)),
        Entrant("embedkeep AsyncClient", "L1", partial(aio, l1.url)),
        Entrant("embedkeep AsyncClient", "Valkey", partial(aio, no_l1.url)),
        Entrant("embedkeep Client, gRPC", "L1", partial(client, l1.address)),
        Entrant("embedkeep Client, gRPC", "Valkey", partial(client, no_l1.address)),
        Entrant(*REDISVL, partial(systems.RedisVL, port, upstream)),
        Entrant("RedisVL, async", "Valkey", partial(systems.RedisVLAsync, port, upstream)),
        Entrant(*LANGCHAIN, partial(systems.LangChain, port, upstream)),
        Entrant("LiteLLM", "its memory, Valkey", partial(systems.LiteLLM, port, upstream)),
    ]


def targets(compared: Compared) -> Iterator[Target]:
    """What was promised, checked against the rows that are there."""
    for tier, clients, (peer, peer_tier) in (
        (tier, clients, peer)
        for tier in ("L1", "Valkey")
        for clients in PLAN.clients
        for peer in (REDISVL, LANGCHAIN)
    ):
        for batch, wanted in ((32, 5.0), (128, 15.0)):
            ours = compared.row(OURS, tier, batch, clients)
            theirs = compared.row(peer, peer_tier, batch, clients)
            if ours is not None and theirs is not None:
                times = ours.vectors_per_s / theirs.vectors_per_s
                yield Target(
                    target=f"b{batch}: throughput over {peer}'s",
                    tier=tier,
                    clients=clients,
                    wanted=wanted,
                    measured=round(times, 2),
                    met=times >= wanted,
                )
    for tier in ("L1", "Valkey", "near cache"):
        ours, theirs = compared.row(OURS, tier, 1, 1), compared.row(*REDISVL, 1, 1)
        if ours is None or theirs is None:
            continue
        near = tier == "near cache"
        times = theirs.p50_us / ours.p50_us if near else ours.p50_us / theirs.p50_us
        wanted = 20.0 if near else 1.5
        yield Target(
            target="b1: RedisVL's p50 over ours" if near else "b1: p50 over RedisVL's, at most",
            tier=tier,
            clients=1,
            wanted=wanted,
            measured=round(times, 2),
            met=times >= wanted if near else times <= wanted,
        )


def summary(compared: Compared) -> str:
    """For the README: the median call of one client, by its size; the fastest first."""
    sizes = (1, 32, 128)
    ways = dict.fromkeys((row.system, row.tier) for row in compared.rows)
    found = {way: [compared.row(*way, size, 1) for size in sizes] for way in ways}
    whole = [(way, [row.p50_us for row in rows if row]) for way, rows in found.items()]
    ordered = sorted(whole, key=lambda each: each[1][-1:])
    return table(
        ("one client, p50 in us", *(f"{n} text{'s' if n > 1 else ''}" for n in sizes)),
        (
            [f"{system}, {tier}", *map(thousands, times)]
            for (system, tier), times in ordered
            if len(times) == len(sizes) and "sync" not in system.lower()
        ),
    )


def main() -> None:
    """Measure, keep, and print."""
    quick = arguments(__doc__).quick
    place = draft() if quick else COMMITTED
    texts = list(dict.fromkeys(sample()))[:TEXTS]
    with Rig() as rig:
        valkey, upstream = rig.valkey(), rig.upstream(dims=DIMS)
        l1 = rig.node(upstream.grpc_port, valkey)
        no_l1 = rig.node(upstream.grpc_port, valkey, l1_bytes=0)
        compared = compare(
            entrants(upstream, valkey, l1, no_l1),
            upstream,
            texts,
            QUICK if quick else PLAN,
        )
        server = valkey.described()
    checked = list(targets(compared))
    place.save(
        "peers",
        server,
        rows=[asdict(row) for row in compared.rows],
        targets=[asdict(target) for target in checked],
        left_out=compared.left_out,
    )
    wanted = table(
        ("target", "our tier", "clients", "wanted", "measured", ""),
        (
            [
                each.target,
                each.tier,
                str(each.clients),
                f"{each.wanted:g}",
                f"{each.measured:g}",
                "met" if each.met else "**missed**",
            ]
            for each in checked
        ),
    )
    text = f"{row_cells(compared)}\n\n{made_on(server)}\n\n{wanted}"
    place.write("peers", text)
    place.write("speed", summary(compared), script="peers", page=place.readme)
    print(text)


if __name__ == "__main__":
    main()
