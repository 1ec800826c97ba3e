"""`embedkeep node`, `embedder` and `predictor`: the processes that `embedkeep up` starts.

Beside the second of them, `embedkeep embedder export`, which prepares a model for it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from embedkeep.config import (
    EmbedderConfig,
    NodeConfig,
    PredictorConfig,
    Quantization,
    as_member,
    load,
)

Command = TypeVar("Command", bound=Callable[..., object])


def _config(*, required: bool) -> Callable[[Command], Command]:
    return click.option(
        "--config",
        "file",
        type=click.Path(path_type=Path, dir_okay=False),
        required=required,
        metavar="FILE",
        help="JSON file with what the process is told, as `embedkeep up` writes it.",
    )


@click.command(
    epilog="\b\nExample:\n  embedkeep node --config ~/.local/state/embedkeep/quickstart/node.json"
)
@_config(required=True)
@click.option(
    "--member",
    metavar="NAME",
    help="Which of cluster.members in FILE this node is, where FILE does not say so.",
)
def node(file: Path, member: str | None) -> None:
    """Run one cache node until SIGTERM or Ctrl-C.

    It serves gRPC (embedkeep.v1, health, reflection) and /metrics. `embedkeep up` starts it; by
    hand it is of use to look at one process alone.
    """
    from embedkeep.node.main import main  # noqa: PLC0415  # --help needs none of it

    main(as_member(load(NodeConfig, file), member))


@click.command(
    epilog="\b\nExample:\n"
    "  embedkeep predictor --config ~/.local/state/embedkeep/warmup/predictor.json\n\n"
    "Exit status: 0, all tenants' plans are written; 1, some history could not be read; 2, the file"
    " is wrong."
)
@_config(required=True)
def predictor(file: Path) -> None:
    """Read what a cache was asked for, plan what to compute ahead of time, and end.

    Plans go to Valkey, where nodes find them and carry them out within their budget. `embedkeep
    up` runs this by spec.warmup.schedule; by hand it plans at once.
    """
    from embedkeep.predictor.main import main  # noqa: PLC0415  # --help needs none of it

    main(load(PredictorConfig, file))


@click.group(
    invoke_without_command=True,
    epilog="\b\nExamples:\n"
    "  embedkeep embedder --config ~/.local/state/embedkeep/quickstart/embedder.json\n"
    "  embedkeep embedder export sentence-transformers/all-MiniLM-L6-v2 --output ./minilm",
)
@_config(required=False)
@click.pass_context
def embedder(context: click.Context, file: Path | None) -> None:
    """Run one embedder until SIGTERM or Ctrl-C, or prepare a model for one.

    It loads the model, says it is ready when it is warm, and computes vectors for nodes.
    """
    if context.invoked_subcommand is not None:
        if file is not None:
            raise click.UsageError(f"--config does not go with {context.invoked_subcommand}.")
        return
    if file is None:
        raise click.UsageError("Missing option '--config', or a command: export.")
    from embedkeep.embedder.main import main  # noqa: PLC0415  # --help needs none of it

    main(load(EmbedderConfig, file))


@embedder.command(
    epilog="\b\nExamples:\n"
    "  embedkeep embedder export sentence-transformers/all-MiniLM-L6-v2 --output ./minilm\n"
    "  embedkeep embedder export ./my-model --output ./my-model-int8 --quantize int8"
)
@click.argument("model")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FOLDER",
    help="Folder to make. It appears once it was loaded and compared, or not at all.",
)
@click.option(
    "--quantize",
    type=click.Choice([Quantization.INT8.lower()]),
    help="With integers for this kind of CPU. Mostly it is better to export without, and to set"
    " spec.embedder.managed.quantization: each embedder then makes its own.",
)
def export(model: str, output: Path, quantize: str | None) -> None:
    """Write a sentence-transformers MODEL as ONNX, for embedders without torch.

    MODEL is a folder, an installed package, or a name on the Hugging Face hub. BERT, RoBERTa,
    XLM-R, MPNet and DistilBERT need no torch; other models are exported by it, which
    embedkeep[embedder] brings. Where torch is installed the result is compared with it.
    """
    from embedkeep.embedder import export as exporting  # noqa: PLC0415  # as above

    done = exporting.export(
        model,
        output,
        quantization=Quantization.INT8 if quantize else Quantization.NONE,
        say=lambda step: click.echo(f"{step} ...", err=True),
    )
    click.echo(f"{done.place}: written by {done.written_by}")
    click.echo(
        f"cosine to torch, at worst: {done.to_torch:.7f}"
        if done.to_torch is not None
        else "not compared with torch, which is not installed"
    )
    if done.to_float32 is not None:
        click.echo(f"cosine of int8 to float32, at worst: {done.to_float32:.7f}")
    click.echo(f"use it: spec.model.source.path: {done.place.absolute()}")
