"""Which image each part runs: the one that the resource names, or else the one it began with. Pure.

An upgraded operator brings newer images. A resource that names none keeps those that it began
with, which its workloads say in an annotation, until its upgradePolicy is Automatic; so upgrading
an operator rolls nothing. Naming an image, and leaving it out again, resolves it anew.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from embedkeep.config import Backend
from embedkeep_operator.api import Spec, UpgradePolicy
from embedkeep_operator.api_nodes import Nodes
from embedkeep_operator.kubernetes.containment import Json
from embedkeep_operator.kubernetes.store import metadata_of
from embedkeep_operator.resources import Images

RESOLVED: Final = "embedkeep.dev/resolved-images"
"""Annotation of a workload: JSON, an image by the field of the resource that was left out."""
NODE: Final = "spec.nodes.image"
VALKEY: Final = "spec.nodes.valkeyImage"
EMBEDDER: Final = "spec.embedder.managed.image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What to run."""

    node: str
    valkey: str
    embedder: str
    chosen: Mapping[str, str] = field(default_factory=dict)
    """Images that the resource left out, by field; to be kept in the annotation."""
    newer: Mapping[str, str] = field(default_factory=dict)
    """What would be chosen today, by field, where that is another."""

    @property
    def annotation(self) -> str:
        """To be kept."""
        return json.dumps(dict(self.chosen), sort_keys=True)


def resolve(spec: Spec, ours: Images, *, kept: Mapping[str, str]) -> Resolved:
    """Decide.

    Args:
        ours: The operator's own.
        kept: What was chosen before, by field.
    """
    nodes = spec.nodes or Nodes()
    managed = spec.embedder.managed
    onnx = managed is None or managed.backend is Backend.ONNX
    wanted = {
        NODE: (nodes.image, ours.node),
        VALKEY: (nodes.valkey_image, ours.valkey),
        EMBEDDER: (
            managed.image if managed is not None else None,
            ours.embedder_cpu if onnx else ours.embedder,
        ),
    }
    if managed is not None and _backend_changed(kept.get(EMBEDDER), ours, onnx=onnx):
        kept = {name: image for name, image in kept.items() if name != EMBEDDER}
    stays = spec.upgrade_policy is UpgradePolicy.MANUAL
    images: dict[str, str] = {}
    chosen: dict[str, str] = {}
    for name, (given, default) in wanted.items():
        if given is not None:
            images[name] = given
        else:
            images[name] = chosen[name] = kept.get(name, default) if stays else default
    return Resolved(
        node=images[NODE],
        valkey=images[VALKEY],
        embedder=images[EMBEDDER],
        chosen=chosen,
        newer={name: wanted[name][1] for name in chosen if chosen[name] != wanted[name][1]},
    )


def _backend_changed(kept: str | None, ours: Images, *, onnx: bool) -> bool:
    """The image that was kept is for the other backend: spec has changed what it must run."""
    if kept is None:
        return False
    mine, others = (ours.embedder_cpu, ours.embedder)[:: 1 if onnx else -1]
    return _repository(kept) == _repository(others) != _repository(mine)


def _repository(image: str) -> str:
    """Without tag and digest."""
    name = image.partition("@")[0]
    head, _, tag = name.rpartition(":")
    return head if head and "/" not in tag else name


def kept_images(workloads: Iterable[Json]) -> dict[str, str]:
    """What workloads say that was chosen for them."""
    found: dict[str, str] = {}
    for each in workloads:
        annotations = metadata_of(each).get("annotations")
        text = annotations.get(RESOLVED) if isinstance(annotations, Mapping) else None
        try:
            said = json.loads(text) if isinstance(text, str) else {}
        except ValueError:
            continue  # somebody has edited it: as if nothing had been kept
        if isinstance(said, dict):
            found |= {str(name): str(image) for name, image in said.items()}
    return found
