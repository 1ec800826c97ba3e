"""The files of a bug report, from what was read. Pure; everything goes through `redaction`."""

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import yaml
from rich.console import Console, RenderableType

from embedkeep_operator.kubectl.redaction import redacted, scrubbed
from embedkeep_operator.kubectl.report import Read, as_data, report
from embedkeep_operator.kubectl.showing import shown
from embedkeep_operator.kubectl.tree import kind, name

README: Final = """What `kubectl embedkeep diagnose` found out about {cache}.

  status.txt, status.json   as `kubectl embedkeep status` shows it
  embeddingcache.yaml       the resource
  objects/                  what belongs to it, but for Secrets, which were not read
  events.yaml               of its namespace
  metrics/                  what its pods tell Prometheus
  logs/                     the last lines of its pods, and of the operator
  versions.txt              of the client, the cluster and this plugin
  problems.txt              what could not be read, if anything

Taken out: Secrets; values of environment variables; prompts; fields, lines and words that look like
passwords, tokens, keys or certificates; files of ConfigMaps of which nothing is known. Names of
objects, tenants, models, machines and addresses are in it. Have a look before you send it.
"""


def files(
    read: Read, *, logs: Mapping[str, str], versions: str, problems: tuple[str, ...]
) -> dict[str, str]:
    """What goes into the bundle, by path.

    Args:
        read: Of the cache.
        logs: By a name for the file.
        versions: What kubectl says of itself and the cluster.
        problems: What could not be read beside what *read* says.
    """
    said = report(replace(read, problems=(*read.problems, *problems)))
    made = {
        "README.txt": README.format(cache=name(read.cache)),
        "status.txt": scrubbed(plain(shown(said))),
        "status.json": json.dumps(redacted(as_data(said)), indent=2) + "\n",
        "embeddingcache.yaml": as_yaml(read.cache),
        "events.yaml": as_yaml([*read.events]),
        "versions.txt": scrubbed(versions),
    }
    made |= {f"objects/{kind(each)}-{name(each)}.yaml": as_yaml(each) for each in read.objects}
    made |= {f"metrics/{pod}.txt": scrubbed(told) for pod, told in read.metrics.items()}
    made |= {f"logs/{source}.log": scrubbed(text) for source, text in logs.items()}
    if said.problems:
        made["problems.txt"] = scrubbed("\n".join(said.problems) + "\n")
    return dict(sorted(made.items()))


def as_yaml(value: object) -> str:
    """*value* without secrets, as kubectl would print it."""
    return yaml.safe_dump(redacted(value), sort_keys=False, width=100, allow_unicode=True)


def plain(text: RenderableType) -> str:
    """*text* without colours."""
    console = Console(file=io.StringIO(), width=160, force_terminal=False)
    with console.capture() as captured:
        console.print(text)
    return captured.get()


def packed(made: Mapping[str, str], *, folder: str, at_s: int) -> bytes:
    """A tar.gz of *made* in one folder.

    Args:
        made: Contents, by path.
        folder: Its name.
        at_s: Time of all files, seconds since 1970.
    """
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        for path, content in made.items():
            raw = content.encode()
            member = tarfile.TarInfo(f"{folder}/{path}")
            member.size, member.mtime, member.mode = len(raw), at_s, 0o644
            archive.addfile(member, io.BytesIO(raw))
    return held.getvalue()
