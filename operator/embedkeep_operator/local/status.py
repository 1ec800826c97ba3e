"""`embedkeep status [NAME]`."""

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click
import grpc
from google.protobuf.json_format import MessageToDict
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from embedkeep.errors import EmbedKeepError, Unavailable
from embedkeep.runs import Run, default_root, find, numbered
from embedkeep.v1 import cache_pb2
from embedkeep_operator.counts import Counts, total
from embedkeep_operator.local import view
from embedkeep_operator.local.observe import read
from embedkeep_operator.local.probes import loopback_channel

INFO_TIMEOUT_S: Final = 2.0
INFO: Final = f"/{cache_pb2.DESCRIPTOR.services_by_name['EmbeddingCache'].full_name}/Info"

EPILOG: Final = """
\b
Examples:
  embedkeep status
  embedkeep status quickstart --json | jq .quickstart.counts.saved_device_s

\b
Counts are those of the processes that run now: each begins anew where `embedkeep up` had to start
one again. Valkey's entries are all its keys, with up to three that the nodes keep in each.

\b
Exit status: 0, everything asked for runs and answers; 1, a cache runs and a node of it does
not answer; 2, nothing of that name runs.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What one node says of itself."""

    info: cache_pb2.InfoResponse | None
    """None: see problem."""
    problem: str = ""
    """Why there is no info."""
    untold: str = ""
    """Why the info is empty of a node that answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one running cache says of itself."""

    run: Run
    counts: Mapping[str, Counts]
    """By process."""
    nodes: Mapping[str, Said]
    """By process."""

    @property
    def info(self) -> cache_pb2.InfoResponse | None:
        """Of the first node that answers: what concerns the model is the same on all."""
        return next((said.info for said in self.nodes.values() if said.info is not None), None)

    @property
    def shards(self) -> dict[int, dict[str, str]]:
        """By shard, and by node, what the Valkey beside it is now. Empty: there are no replicas."""
        nodes = self.run.ports.nodes
        found: dict[int, dict[str, str]] = {}
        for name, at in zip(numbered("node", len(nodes)), nodes, strict=True):
            counts = self.counts[name]
            role = "replica" if counts.is_replica else "primary"
            found.setdefault(at.shard, {})[name] = role if counts.answers else "unknown"
        return found if len(found) < len(nodes) else {}

    @property
    def problem(self) -> str:
        """Why nodes do not answer; empty: all do."""
        several = len(self.nodes) > 1
        return "; ".join(
            f"{name}: {said.problem}" if several else said.problem
            for name, said in self.nodes.items()
            if said.info is None
        )


@click.command("status", epilog=EPILOG)
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, by name.")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where `embedkeep up` keeps its state.  [default: $XDG_STATE_HOME/embedkeep]",
)
def status(name: str | None, *, as_json: bool, state_dir: Path | None) -> None:
    """Show what the caches that `embedkeep up` runs on this machine are doing.

    NAME is the resource's name; without it, all that run are shown.
    """
    runs = find(state_dir if state_dir is not None else default_root(), name)
    reports = asyncio.run(_reports(runs))
    if as_json:
        click.echo(json.dumps({each.run.name: as_data(each) for each in reports}, indent=2))
    else:
        Console().print(Group(*(_shown(report) for report in reports)))
    if silent := [report for report in reports if report.problem]:
        names = ", ".join(f"{report.run.name} ({report.problem})" for report in silent)
        raise Unavailable(f"the node does not answer: {names}")


async def _reports(runs: Iterable[Run]) -> list[Report]:
    return await asyncio.gather(*(_report(run) for run in runs))


async def _report(run: Run) -> Report:
    nodes = dict(zip(numbered("node", len(run.ports.nodes)), run.ports.nodes, strict=True))
    counts, said = await asyncio.gather(
        read(run.ports.metrics_urls),
        asyncio.gather(*(_said(node.grpc, run) for node in nodes.values())),
    )
    return Report(run=run, counts=counts, nodes=dict(zip(nodes, said, strict=True)))


async def _said(port: int, run: Run) -> Said:
    """What a node says, or why it says nothing."""
    try:
        async with loopback_channel(port, run.way_in) as channel:
            ask = channel.unary_unary(
                INFO,
                request_serializer=cache_pb2.InfoRequest.SerializeToString,
                response_deserializer=cache_pb2.InfoResponse.FromString,
            )
            metadata = await asyncio.to_thread(_credentials, run)
            info = await ask(cache_pb2.InfoRequest(), timeout=INFO_TIMEOUT_S, metadata=metadata)
            return Said(info=info)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            # It answers, but only tells a tenant: the counts below are everybody's.
            untold = f"told to tenants alone, and {run.api_key_file} holds none's API key"
            return Said(info=cache_pb2.InfoResponse(), untold=untold)
        return Said(info=None, problem=f"{error.code().name.lower()}: {error.details()}")
    except EmbedKeepError as error:
        return Said(info=None, problem=str(error))


def _credentials(run: Run) -> tuple[tuple[str, str], ...]:
    """Of the first tenant, whose key file whoever started the cache may read; empty: none."""
    if run.api_key_file is None:
        return ()
    try:
        keys = Path(run.api_key_file).read_text().split()
    except (OSError, ValueError):
        return ()
    return (("x-api-key", keys[0]),) if keys and _sendable(keys[0]) else ()


def _sendable(key: str) -> bool:
    """GRPC takes nothing else, and the node would refuse it."""
    return key.isascii() and key.isprintable()


def as_data(report: Report) -> dict[str, object]:
    """For programs; docs/operations.md says what stands where."""
    processes: dict[str, dict[str, object]] = {
        name: {"counts": _counts_as_data(counts)} for name, counts in report.counts.items()
    }
    for name, said in report.nodes.items():
        processes[name] |= {"info": _info_as_data(said.info), "problem": said.problem}
    for shard, roles in report.shards.items():
        for name, role in roles.items():
            processes[name] |= {"shard": shard, "role": role}
    return {
        "run": asdict(report.run),
        "info": _info_as_data(report.info),
        "problem": report.problem,
        "counts": _counts_as_data(total(report.counts)),
        "processes": processes,
    }


def _info_as_data(info: cache_pb2.InfoResponse | None) -> dict[str, object] | None:
    return None if info is None else MessageToDict(info)


def _counts_as_data(counts: Counts) -> dict[str, object]:
    return {**asdict(counts), "answered": counts.answered, "hit_ratio": counts.hit_ratio}


def _shown(report: Report) -> RenderableType:
    run, info, counts = report.run, report.info, total(report.counts)
    facts = Table.grid(padding=(0, 2, 0, 0))
    for what, where in run.places():
        facts.add_row(what, where)
    facts.add_row("file", run.file)
    facts.add_row("process", str(run.pid))
    if info is not None and info.model:
        facts.add_row("model", f"{info.model}, {info.dimensions} dimensions")
        facts.add_row("fingerprint", info.fingerprint or "none yet: no embedder was seen")
    for shard, roles in report.shards.items():
        facts.add_row(f"shard {shard}", ", ".join(f"{role} {name}" for name, role in roles.items()))
    for name, said in report.nodes.items():
        of = f" of {name}" if len(report.nodes) > 1 else ""
        for tier in said.info.tiers if said.info is not None else ():
            state = "serving" if tier.serving else f"not serving: {tier.message}"
            facts.add_row(
                f"tier {tier.name}{of}", Text(state, style="" if tier.serving else "yellow")
            )
        if said.untold:
            facts.add_row(f"model and tiers{of}", Text(said.untold, style="yellow"))
        if said.problem:
            facts.add_row(f"problem{of}", Text(said.problem, style="red"))
    return Group(
        Text(run.name, style="bold"),
        facts,
        Text(),
        view.tiers(counts, {}),
        Text(),
        view.totals(counts, of="since the embedder's start"),
        Text(),
    )
