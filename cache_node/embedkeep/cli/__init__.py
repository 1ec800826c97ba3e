"""The `embedkeep` command.

Here live its frame (this module); `embed` with what it reads, writes and asks (`reading`,
`writing`, `parquet`, `asking`; `finding` and `connecting` reach a cache); what long runs add
(`bulk`, `longrun`, `pipeline`, `journal`, `progress`); `importing` with its `pairs`,
`langchain_store` and `sending`; `exporting`; and the commands that run one process (`processes`).
`up` and `status` live in `embedkeep_operator.local`, `operator` in `embedkeep_operator.kubernetes`.
Nothing imports this package but the entry points and tests: what a command does beyond the command
line belongs elsewhere.

The table below says which commands there are. Each is imported only when it is used: help stays
fast, an extra that is not installed is missed by its own command alone, and what lives on the
operator's side needs no import from here.
"""

import importlib
import os
import signal
import sys
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final, NoReturn

import click

from embedkeep.errors import EmbedKeepError, InvalidConfig, InvalidRequest, NotBuilt

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
"""The command line, a file or a field is wrong, or asks for what is not built yet."""
EXIT_INTERRUPTED: Final = 130
"""128 + SIGINT, as shells report it."""


@dataclass(frozen=True, slots=True)
class Command:
    """One line of the help."""

    target: str | None
    """module:attribute of a click command. None: not built yet."""
    help: str
    extra: str | None = None
    """What brings its dependencies: embedkeep[EXTRA]. None: the base installation does."""


COMMANDS: Final = {
    "up": Command("embedkeep_operator.local.up:up", "Run a cache on this machine.", "local"),
    "embed": Command("embedkeep.cli.embed:embed", "Turn texts into vectors through a cache."),
    "import": Command(
        "embedkeep.cli.importing:import_", "Take vectors that exist already into a cache."
    ),
    "export": Command("embedkeep.cli.exporting:export", "Write what is cached for some texts."),
    "status": Command("embedkeep_operator.local.status:status", "Show how local caches are doing."),
    "node": Command("embedkeep.cli.processes:node", "Run one cache node."),
    "embedder": Command("embedkeep.cli.processes:embedder", "Run one embedder.", "embedder-cpu"),
    "predictor": Command("embedkeep.cli.processes:predictor", "Plan what to warm up."),
    "operator": Command(
        "embedkeep_operator.kubernetes.process:operator", "Run the Kubernetes operator.", "operator"
    ),
    "bench": Command(None, "Measure a cache. Not built yet."),
}

EPILOG: Final = """
\b
Begin here:
  embedkeep up examples/quickstart.yaml          start a cache on this machine
  embedkeep embed "how do I reset my password?"  ask it, from another terminal
  embedkeep status                               see what it saved

Every command explains itself: embedkeep COMMAND --help
"""


class _Commands(click.Group):
    """A group that knows its commands from the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        return _load(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table alone: nothing is imported."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in COMMANDS.items()])


def _load(name: str) -> click.Command:
    command = COMMANDS[name]
    if command.target is None:
        return _unbuilt(name)
    module, _, attribute = command.target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        extra = f"[{command.extra}]" if command.extra is not None else ""
        raise InvalidConfig(
            f"`embedkeep {name}` needs {error.name}, which is not installed:"
            f" pip install 'embedkeep{extra}'"
        ) from error
    if not isinstance(found, click.Command):
        raise TypeError(f"{command.target} is no click command")
    return found


def _unbuilt(name: str) -> click.Command:
    """A command that takes whatever it is given, and says that it is not built yet."""

    @click.command(
        name,
        help=COMMANDS[name].help,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def refuse() -> NoReturn:
        raise NotBuilt(f"`embedkeep {name}` is not built yet")

    return refuse


@click.group(cls=_Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("embedkeep"), prog_name="embedkeep")
def cli() -> None:
    """Keep embeddings, so that the same text never costs a forward pass twice.

    A cache stands between services and an embedding model, and answers a text it has seen before
    with the very vector that the model returned. One YAML file describes it; `up` runs it.
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run `embedkeep`, and exit as `run` says.

    Args:
        arguments: None: the process's own.
    """
    run(cli, arguments, prog_name="embedkeep")


def run(command: click.Command, arguments: list[str] | None, *, prog_name: str) -> NoReturn:
    """Run a command, and exit: 0 done, 1 failed, 2 wrong usage or not built, 130 interrupted.

    Interrupted before this began, the process ends by the signal, which shells report as 130 too.

    Args:
        command: What runs.
        arguments: None: the process's own.
        prog_name: How users call it.
    """
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see embedkeep.__main__
            signal.signal(signal.SIGINT, signal.default_int_handler)
        command.main(arguments, prog_name=prog_name, standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.exceptions.Abort):
        sys.exit(EXIT_INTERRUPTED)
    except EmbedKeepError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_USAGE if isinstance(error, InvalidConfig | InvalidRequest) else EXIT_FAILED)
    except ModuleNotFoundError as error:  # met while a command ran, not when it was loaded
        click.echo(
            f"error: {error.name} is not installed: pip install 'embedkeep[local]'", err=True
        )
        sys.exit(EXIT_USAGE)
    except BrokenPipeError:  # the reader of our output left: nothing is wrong with us
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
    sys.exit(0)
