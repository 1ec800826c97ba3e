"""`embedkeep embedder export`: a model's folder with its transformer as ONNX.

The folder is for the onnx backend, by spec.model.source.path: on machines without torch, or for
models that it cannot convert by itself. It appears once it was loaded and compared, or not at all.
"""

import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from embedkeep.config import (
    Backend,
    EmbedderConfig,
    HubSource,
    ModelSpec,
    PackageSource,
    PathSource,
    Quantization,
)
from embedkeep.embedder import canaries, cpu, folder, onnx_bert, onnx_files, quantize, source
from embedkeep.embedder.backends import Backend as LoadedBackend
from embedkeep.embedder.backends import Vectors
from embedkeep.embedder.folder import Dense, Folder
from embedkeep.embedder.main import open_backend
from embedkeep.errors import InvalidConfig

MIN_COSINE: Final = 0.9999
"""Of a float32 export to torch, on each canary."""
MIN_COSINE_INT8: Final = 0.95
"""Of int8 to float32, on each canary: a model that is farther off does not bear rounding."""

_DESCRIBING: Final = {".json", ".txt", ".model", ".md"}
_LEFT: Final = {"model.safetensors.index.json", "pytorch_model.bin.index.json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written, and how near it is to what it was made from."""

    place: Path
    written_by: str
    """embedkeep, torch, or the model itself, which brought an ONNX file."""
    to_torch: float | None
    """Smallest cosine of float32 to torch. None: torch is not installed, nothing was compared."""
    to_float32: float | None
    """Smallest cosine of int8 to float32. None: it was not quantized."""


def export(
    model: str,
    output: Path,
    *,
    quantization: Quantization = Quantization.NONE,
    say: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write *model* to the new folder *output*.

    Args:
        model: A folder, an installed package, or a name on the hub.
        quantization: Int8: with integers for this kind of CPU.
        say: Told of each step, in words.

    Raises:
        InvalidConfig: *output* exists or cannot be written; the model cannot be found, read,
            converted or exported; or what was written computes something else.
    """
    if output.exists() or output.is_symlink():
        raise InvalidConfig(f"{output} exists; give a new folder", field="--output")
    named = Path(model).name if Path(model).is_dir() else model
    spec = ModelSpec(name=named, source=_source(model))
    found = folder.read(source.resolve(spec, backend=Backend.TORCH))
    try:
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=".export-") as part:
            made = Path(part, "model")
            _copy_descriptions(found, made)
            report = _write(found, made, quantization, say)
            made.rename(output)
    except OSError as error:
        raise InvalidConfig(
            f"{output} cannot be written: {error.strerror}", field="--output"
        ) from error
    written_by, to_torch, to_float32 = report
    return Exported(place=output, written_by=written_by, to_torch=to_torch, to_float32=to_float32)


def _source(model: str) -> HubSource | PathSource | PackageSource:
    """A folder goes first, then a package of that name."""
    if Path(model).expanduser().is_dir() or model.startswith((".", "/", "~")):
        return PathSource(path=Path(model))
    if model.isidentifier() and importlib.util.find_spec(model) is not None:
        return PackageSource(package=model)
    return HubSource()


def _write(
    found: Folder, made: Path, quantization: Quantization, say: Callable[[str], None]
) -> tuple[str, float | None, float | None]:
    """Put the ONNX file into *made*, compared; who wrote it, and both cosines of `Exported`."""
    written_by, model = _as_onnx(found, say)
    file = made / found.transformer.relative_to(found.root) / "onnx" / onnx_files.NAME
    file.parent.mkdir(parents=True)
    onnx_files.save(model, file)
    float32 = _canaries(_open(made, Backend.ONNX))
    to_torch: float | None = None
    if _there("torch") and _there("sentence_transformers"):
        say("comparing it with torch")
        to_torch = _worst(float32, _canaries(_open(found.root, Backend.TORCH, device="cpu")))
        _check(to_torch, MIN_COSINE, "torch")
    if quantization is Quantization.NONE:
        return written_by, to_torch, None
    say("making integers of its matrices")
    shutil.rmtree(file.parent)
    file.parent.mkdir()
    bits = cpu.weight_bits(cpu.features())
    onnx_files.save(quantize.quantized(model, bits=bits), file)
    to_float32 = _worst(_canaries(_open(made, Backend.ONNX)), float32)
    _check(to_float32, MIN_COSINE_INT8, "float32")
    return written_by, to_torch, to_float32


def _as_onnx(found: Folder, say: Callable[[str], None]) -> tuple[str, onnx.ModelProto]:
    """The transformer in float32, and who wrote it: the cheapest way that there is."""
    if found.ready_onnx is not None:
        say("taking the ONNX file that the model brings")
        return "the model", onnx_files.load(found.ready_onnx)
    if not found.safetensors:
        raise InvalidConfig(
            f"{found.root} has neither model.safetensors nor onnx/model.onnx", field=folder.FIELD
        )
    if onnx_bert.unlike(found) is None:
        say(f"converting it: model_type {found.config.model_type}")
        return "embedkeep", onnx_bert.build(found.config, onnx_bert.load(found))
    from embedkeep.embedder import onnx_torch  # noqa: PLC0415  # may not be installed

    say(f"exporting it with torch: model_type {found.config.model_type}")
    return "torch", onnx_torch.exported(found)


def _copy_descriptions(found: Folder, made: Path) -> None:
    """All that describes the model, and the weights of what follows pooling."""
    dense = {step.weights for step in found.steps if isinstance(step, Dense)}
    for file in _files(found.root):
        if file in dense or (file.suffix in _DESCRIBING and file.name not in _LEFT):
            place = made / file.relative_to(found.root)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def _files(root: Path) -> Iterator[Path]:
    """Files of a model's folder, without those of other engines."""
    for file in sorted(root.rglob("*")):
        inside = file.relative_to(root).parts
        if file.is_file() and not {"onnx", "openvino", "__pycache__"} & {*inside}:
            yield file


def _open(root: Path, backend: Backend, **fields: str) -> LoadedBackend:
    model = ModelSpec(name=root.name, source=PathSource(path=root))
    return open_backend(EmbedderConfig(model=model, backend=backend, **fields))


def _canaries(backend: LoadedBackend) -> Vectors:
    """Each canary, computed alone."""
    rows = [row.ids for row in backend.tokenize(canaries.TEXTS)]
    return np.concatenate([backend.embed([row]) for row in rows])


def _worst(a: Vectors, b: Vectors) -> float:
    """Smallest cosine of rows."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return float((np.sum(x * y, axis=1) / lengths).min())


def _check(cosine: float, least: float, to: str) -> None:
    if not cosine >= least:  # written so that a NaN fails
        raise InvalidConfig(
            f"what was written lies at cosine {cosine:.6f} to {to} on a canary text, {least:g} is "
            "needed; nothing was kept. Use backend: torch",
            field=folder.FIELD,
        )


def _there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
