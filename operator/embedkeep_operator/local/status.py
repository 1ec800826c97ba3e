"""`embedkeep status [NAME]`."""

import asyncio
import json
from collections.abc import Iterable
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
from embedkeep.runs import Run, default_root, find
from embedkeep.v1 import cache_pb2
from embedkeep_operator.local import view
from embedkeep_operator.local.observe import Counts, read
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
one again.

\b
Exit status: 0, everything asked for runs and answers; 1, a cache runs and its node does not
answer; 2, nothing of that name runs.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one running cache says of itself."""

    run: Run
    counts: Counts
    info: cache_pb2.InfoResponse | None
    """None: see problem."""
    problem: str = ""
    """Why there is no info."""


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
    if silent := [report for report in reports if report.info is None]:
        names = ", ".join(f"{report.run.name} ({report.problem})" for report in silent)
        raise Unavailable(f"the node does not answer: {names}")


async def _reports(runs: Iterable[Run]) -> list[Report]:
    return await asyncio.gather(*(_report(run) for run in runs))


async def _report(run: Run) -> Report:
    counts, (info, problem) = await asyncio.gather(
        read(
            f"http://127.0.0.1:{run.ports.metrics}/metrics",
            f"http://127.0.0.1:{run.ports.embedder_metrics}/metrics",
        ),
        _info(run),
    )
    return Report(run=run, counts=counts, info=info, problem=problem)


async def _info(run: Run) -> tuple[cache_pb2.InfoResponse | None, str]:
    """What the node says, or why it says nothing."""
    try:
        async with loopback_channel(run.ports.grpc, run.way_in) as channel:
            ask = channel.unary_unary(
                INFO,
                request_serializer=cache_pb2.InfoRequest.SerializeToString,
                response_deserializer=cache_pb2.InfoResponse.FromString,
            )
            return await ask(cache_pb2.InfoRequest(), timeout=INFO_TIMEOUT_S), ""
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            # It answers, but only tells a tenant: the counts below are everybody's.
            return cache_pb2.InfoResponse(), ""
        return None, f"{error.code().name.lower()}: {error.details()}"
    except EmbedKeepError as error:
        return None, str(error)


def as_data(report: Report) -> dict[str, object]:
    """For programs."""
    return {
        "run": asdict(report.run),
        "info": None if report.info is None else MessageToDict(report.info),
        "problem": report.problem,
        "counts": {
            **asdict(report.counts),
            "answered": report.counts.answered,
            "hit_ratio": report.counts.hit_ratio,
        },
    }


def _shown(report: Report) -> RenderableType:
    run, info = report.run, report.info
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_row("gRPC", f"{run.address}{' (TLS)' if run.tls else ''}")
    facts.add_row("OpenAI, TEI", run.http_url)
    facts.add_row("metrics", f"http://127.0.0.1:{run.ports.metrics}/metrics")
    facts.add_row("file", run.file)
    facts.add_row("process", str(run.pid))
    if info is not None and info.model:
        facts.add_row("model", f"{info.model}, {info.dimensions} dimensions")
        facts.add_row("fingerprint", info.fingerprint or "none yet: no embedder was seen")
        for tier in info.tiers:
            said = "serving" if tier.serving else f"not serving: {tier.message}"
            facts.add_row(f"tier {tier.name}", Text(said, style="" if tier.serving else "yellow"))
    if report.problem:
        facts.add_row("problem", Text(report.problem, style="red"))
    return Group(
        Text(run.name, style="bold"),
        facts,
        Text(),
        view.tiers(report.counts, {}),
        Text(),
        view.totals(report.counts, of="since the embedder's start"),
        Text(),
    )
