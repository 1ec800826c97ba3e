"""ONNX files that are made here: kept under what they were made from, whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import DecodeError

from embedkeep.embedder.folder import FIELD
from embedkeep.errors import InvalidConfig

NAME: Final = "model.onnx"
"""In a folder of its own, as the hub has it; large weights lie beside it as model.onnx_data."""
_WHOLE_BYTES: Final = 1 << 30
"""Weights beyond this go beside the graph: protobuf ends at 2 GiB."""


def kept(work_dir: Path, digest: str, make: Callable[[], onnx.ModelProto]) -> Path:
    """The file under *work_dir* that *make* gave now or before.

    It is written beside its place and then moved there as a whole: of two processes at once, one
    keeps its result.

    Args:
        digest: Of all that the file is made from.

    Raises:
        InvalidConfig: *work_dir* cannot be written.
    """
    place = work_dir / digest
    file = place / NAME
    if file.is_file():
        return file
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work_dir, prefix="converting-") as part:
            built = Path(part, "model")
            built.mkdir()
            save(make(), built / NAME)
            try:
                built.rename(place)
            except OSError:
                if not file.is_file():  # else another process was first; its file is the same
                    shutil.rmtree(place, ignore_errors=True)
                    built.rename(place)
    except OSError as error:
        raise InvalidConfig(
            f"the converted model cannot be written to {work_dir}: {error.strerror}",
            field="work_dir",
        ) from error
    return file


def load(file: Path) -> onnx.ModelProto:
    """The model in *file*, its weights with it.

    Raises:
        InvalidConfig: It cannot be read.
    """
    try:
        return onnx.load(file)
    except (OSError, DecodeError, ValueError) as error:
        raise InvalidConfig(f"{file} cannot be read: {error}", field=FIELD) from error


def save(model: onnx.ModelProto, file: Path) -> None:
    """Write *model*, large weights beside it."""
    onnx.save_model(
        model,
        file,
        save_as_external_data=model.ByteSize() > _WHOLE_BYTES,
        location=file.name + "_data",
    )


def parts(file: Path) -> list[Path]:
    """An ONNX file and what lies beside it of its weights."""
    return sorted(file.parent.glob(file.name + "*"))


def cache_folder() -> Path:
    """Where converted models go unless told otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "embedkeep" / "onnx"
