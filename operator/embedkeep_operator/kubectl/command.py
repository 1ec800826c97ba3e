"""`kubectl embedkeep status` and `kubectl embedkeep diagnose`."""

import asyncio
import json
import os
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Final, NoReturn

import click
from rich.console import Console

from embedkeep.cli import run
from embedkeep.errors import InvalidConfig
from embedkeep_operator.kubectl import bundle
from embedkeep_operator.kubectl.reading import Kubectl, read
from embedkeep_operator.kubectl.report import Read, as_data, report
from embedkeep_operator.kubectl.showing import shown
from embedkeep_operator.kubectl.tree import Json, items, name, number, text

LINES: Final = 2000
OPERATORS: Final = "app.kubernetes.io/name=embedkeep-operator"

namespace_option = click.option("--namespace", "-n", metavar="NAME", help="As kubectl's.")
context_option = click.option("--context", metavar="NAME", help="As kubectl's.")
kubeconfig_option = click.option("--kubeconfig", metavar="FILE", help="As kubectl's.")
output_option = click.option(
    "--output", "-o", type=click.Choice(["text", "json"]), default="text", show_default=True,
    help="json: for scripts.",
)  # fmt: skip

STATUS_EPILOG: Final = """
\b
Examples:
  kubectl embedkeep status -A
  kubectl embedkeep status docs -n rag -o json | jq '.[].hit_ratio'

\b
Hit ratios are read from the pods, which needs the right to get pods/proxy; without it the rest is
shown all the same. Secrets are never read.
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("embedkeep"), prog_name="kubectl embedkeep")
def plugin() -> None:
    """Look at EmbeddingCaches in a cluster. Nothing is changed."""


@plugin.command(epilog=STATUS_EPILOG)
@click.argument("cache", metavar="[NAME]", required=False)
@namespace_option
@click.option("--all-namespaces", "-A", is_flag=True, help="As kubectl's.")
@context_option
@kubeconfig_option
@output_option
def status(  # noqa: PLR0913  # the command line
    cache: str | None,
    *,
    namespace: str | None,
    all_namespaces: bool,
    context: str | None,
    kubeconfig: str | None,
    output: str,
) -> None:
    """Show how caches are doing: what they own, shards, hit ratio, the last tuning and why.

    NAME is an EmbeddingCache's; without it, all of the namespace are shown.
    """
    if all_namespaces and (cache is not None or namespace is not None):
        raise click.UsageError("--all-namespaces goes with no NAME and no --namespace")
    where = ["--all-namespaces"] if all_namespaces else _namespace(namespace)
    kubectl = _kubectl(context, kubeconfig)
    reports = [report(each) for each in asyncio.run(_read(kubectl, cache, where))]
    if output == "json":
        click.echo(json.dumps([as_data(each) for each in reports], indent=2))
    elif reports:
        Console().print(*(shown(each) for each in reports))
    else:
        click.echo("no EmbeddingCache here", err=True)


@plugin.command()
@click.argument("cache", metavar="NAME")
@namespace_option
@context_option
@kubeconfig_option
@output_option
@click.option(
    "--file", "-f", "target", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="What is written.  [default: embedkeep-NAME-TIME.tar.gz]",
)  # fmt: skip
@click.option(
    "--lines", type=click.IntRange(0, 100_000), default=LINES, show_default=True,
    help="Of each container's log.",
)  # fmt: skip
def diagnose(  # noqa: PLR0913  # the command line
    cache: str,
    *,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
    output: str,
    target: Path | None,
    lines: int,
) -> None:
    """Put together what a bug report needs, without secrets, texts and keys.

    NAME is an EmbeddingCache's. The file says itself what is in it and what was taken out.
    """
    kubectl = _kubectl(context, kubeconfig)
    at_s = int(time.time())
    folder = f"embedkeep-{cache}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(at_s))}"
    path = target if target is not None else Path(f"{folder}.tar.gz")
    made = asyncio.run(_diagnosed(kubectl, cache, _namespace(namespace), lines))
    try:
        path.write_bytes(bundle.packed(made, folder=folder, at_s=at_s))
    except OSError as error:
        raise InvalidConfig(f"--file {path}: {error.strerror}") from error
    missed = made.get("problems.txt", "").splitlines()
    if output == "json":
        click.echo(json.dumps({"file": str(path), "files": [*made], "problems": missed}, indent=2))
        return
    click.echo(f"{path}: {len(made)} files. Have a look before you send it.")
    for problem in missed:
        click.echo(f"not read: {problem}", err=True)


async def _read(kubectl: Kubectl, cache: str | None, where: list[str]) -> list[Read]:
    caches = await kubectl.caches(cache, where)
    return await asyncio.gather(*(read(kubectl, each) for each in caches))


async def _diagnosed(
    kubectl: Kubectl, cache: str, where: list[str], lines: int
) -> dict[str, str]:  # fmt: skip
    """The files of the bundle."""
    (found,) = await _read(kubectl, cache, where)
    operators = await kubectl.ask(
        "get", "pods", "--all-namespaces", f"--selector={OPERATORS}", "--output=json"
    )
    versions = await kubectl.ask("version", "--output=yaml")
    pods = [each for each in found.objects if each.get("kind") == "Pod"]
    logs, missed = await _logs(kubectl, [*pods, *operators.list()], lines)
    if operators.failed:
        missed.append(f"the operator: {operators.failed}")
    told = f"kubectl embedkeep: {version('embedkeep')}\n{versions.printed}{versions.failed}\n"
    return bundle.files(found, logs=logs, versions=told, problems=tuple(missed))


async def _logs(
    kubectl: Kubectl, pods: Iterable[Json], lines: int
) -> tuple[dict[str, str], list[str]]:
    """The last lines of each container, of the one before it too where it was started again."""
    wanted = [
        (text(pod, "metadata", "namespace"), name(pod), text(status, "name"), previous)
        for pod in pods
        for status in (
            *items(pod, "status", "initContainerStatuses"),
            *items(pod, "status", "containerStatuses"),
        )
        for previous in ([False, True] if number(status, "restartCount") else [False])
    ]
    answers = await asyncio.gather(
        *(
            kubectl.ask(
                "logs", pod, f"--namespace={namespace}", f"--container={container}",
                f"--tail={lines}", "--timestamps", *(["--previous"] if previous else []),
            )
            for namespace, pod, container, previous in wanted
        )
    )  # fmt: skip
    logs, missed = {}, []
    for (_, pod, container, previous), answer in zip(wanted, answers, strict=True):
        source = f"{pod}-{container}{'-before' if previous else ''}"
        if answer.failed:
            missed.append(f"log {source}: {answer.failed}")
        else:
            logs[source] = answer.printed
    return logs, missed


def _namespace(given: str | None) -> list[str]:
    return [] if given is None else [f"--namespace={given}"]


def _kubectl(context: str | None, kubeconfig: str | None) -> Kubectl:
    flags = [
        f"--{flag}={value}"
        for flag, value in (("context", context), ("kubeconfig", kubeconfig))
        if value is not None
    ]
    return Kubectl(program=os.environ.get("KUBECTL", "kubectl"), flags=tuple(flags))


def main() -> NoReturn:
    """Run the plugin, and exit as `embedkeep` does."""
    run(plugin, None, prog_name="kubectl embedkeep")
