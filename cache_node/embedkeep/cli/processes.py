"""`embedkeep node` and `embedkeep embedder`: the processes that `embedkeep up` starts."""

from pathlib import Path

import click

from embedkeep.config import EmbedderConfig, NodeConfig, load

_CONFIG = click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="JSON file with what the process is told, as `embedkeep up` writes it.",
)


@click.command(
    epilog="\b\nExample:\n  embedkeep node --config ~/.local/state/embedkeep/quickstart/node.json"
)
@_CONFIG
def node(file: Path) -> None:
    """Run one cache node until SIGTERM or Ctrl-C.

    It serves gRPC (embedkeep.v1, health, reflection) and /metrics. `embedkeep up` starts it; by
    hand it is of use to look at one process alone.
    """
    from embedkeep.node.main import main  # noqa: PLC0415  # --help needs none of it

    main(load(NodeConfig, file))


@click.command(
    epilog="\b\nExample:\n"
    "  embedkeep embedder --config ~/.local/state/embedkeep/quickstart/embedder.json"
)
@_CONFIG
def embedder(file: Path) -> None:
    """Run one embedder until SIGTERM or Ctrl-C.

    It loads the model, says it is ready when it is warm, and computes vectors for nodes.
    """
    from embedkeep.embedder.main import main  # noqa: PLC0415  # --help needs none of it

    main(load(EmbedderConfig, file))
