"""What a valid resource may ask and this version does not do yet, and what only pods need.

Asking for something unbuilt is an error and never a silent no-op; what means nothing on one
machine is said in a note.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel

from embedkeep.errors import NotBuilt
from embedkeep_operator.api import EmbeddingCache, Spec, UpgradePolicy
from embedkeep_operator.api_embedder import Embedder
from embedkeep_operator.api_policies import Predictor, Security, SimilarityMode, TuningMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Unbuilt:
    """One wish that cannot be fulfilled."""

    field: str
    """Path, as the user writes it."""
    given: str
    """What is wished for."""
    works: str
    """What can be had instead."""

    def __str__(self) -> str:
        return f"{self.field}: {self.given} is not built yet; {self.works}"


def refuse_unbuilt(resource: EmbeddingCache) -> None:
    """Say all that is asked for and not built.

    Raises:
        NotBuilt: One line a field.
    """
    _refuse(unbuilt(resource))


def refuse_unbuilt_on_kubernetes(resource: EmbeddingCache) -> None:
    """The same for what the operator cannot do yet.

    Raises:
        NotBuilt: One line a field.
    """
    _refuse(unbuilt_on_kubernetes(resource))


def _refuse(wishes: tuple[Unbuilt, ...]) -> None:
    if wishes:
        raise NotBuilt("\n".join(map(str, wishes)))


def unbuilt(resource: EmbeddingCache) -> tuple[Unbuilt, ...]:
    """What *resource* asks for that one machine cannot do yet, in the order of the fields."""
    spec = resource.spec
    return (*_model(spec), *_embedder(spec.embedder), *_later(spec), *_monitoring(spec),
            *_security(spec.security))  # fmt: skip


def unbuilt_on_kubernetes(resource: EmbeddingCache) -> tuple[Unbuilt, ...]:
    """What *resource* asks for that the operator cannot do yet."""
    return (*_storage(resource.spec), *_later(resource.spec))


def _storage(spec: Spec) -> Iterator[Unbuilt]:
    storage = spec.nodes.storage if spec.nodes is not None else None
    if storage is not None and storage.size is not None:
        yield Unbuilt(
            field="spec.nodes.storage.size",
            given="keeping entries on a claim",
            works="leave it out: what is lost is computed again",
        )


def _model(spec: Spec) -> Iterator[Unbuilt]:
    source = spec.model.source
    if source is None:
        return
    if source.hub is not None and source.hub.cache_claim is not None:
        yield Unbuilt(
            field="spec.model.source.hub.cacheClaim",
            given=source.hub.cache_claim,
            works="leave it out: downloads are kept in your own hub cache",
        )
    if source.volume is not None:
        yield Unbuilt(
            field="spec.model.source.volume",
            given="a volume",
            works="leave it out: path is then a folder on this machine",
        )


def _embedder(embedder: Embedder) -> Iterator[Unbuilt]:
    managed = embedder.managed
    if managed is None:
        return
    if managed.replicas not in {None, 1}:
        yield Unbuilt(
            field="spec.embedder.managed.replicas",
            given=str(managed.replicas),
            works="use 1, or leave it out",
        )


def _later(spec: Spec) -> Iterator[Unbuilt]:
    if spec.similarity is not None and spec.similarity.mode is not SimilarityMode.OFF:
        yield Unbuilt(
            field="spec.similarity.mode", given=spec.similarity.mode, works='use "Off": exact hits'
        )
    if spec.warmup is not None and spec.warmup.predictor is not Predictor.POPULARITY:
        yield Unbuilt(
            field="spec.warmup.predictor", given=spec.warmup.predictor, works="use Popularity"
        )
    if spec.tuning is not None and spec.tuning.mode is not TuningMode.OFF:
        yield Unbuilt(field="spec.tuning.mode", given=spec.tuning.mode, works='use "Off"')


def _monitoring(spec: Spec) -> Iterator[Unbuilt]:
    if spec.monitoring is not None:
        for field in sorted(spec.monitoring.model_fields_set):
            if getattr(spec.monitoring, field):
                name = type(spec.monitoring).model_fields[field].alias
                yield Unbuilt(
                    field=f"spec.monitoring.{name}",
                    given="true",
                    works="use false: every process serves /metrics",
                )


def _security(security: Security | None) -> Iterator[Unbuilt]:
    if security is not None and security.tls is not None and security.tls.issuer_ref is not None:
        yield Unbuilt(
            field="spec.security.tls.issuerRef",
            given=security.tls.issuer_ref.name,
            works="use secretName with --secrets",
        )


_POD_FIELDS = ("image", "image_pull_secrets", "priority_class_name", "resources", "pod_template")
_NODE_FIELDS = (*_POD_FIELDS, "storage", "valkey_image", "valkey_resources")
_EMBEDDER_FIELDS = (*_POD_FIELDS, "gpu", "rollout")


def kubernetes_only(resource: EmbeddingCache) -> tuple[str, ...]:
    """Paths of the fields that are given and change nothing on one machine."""
    spec = resource.spec
    found = [*_given(spec, "spec", ("paused",))]
    if spec.nodes is not None:
        found += _given(spec.nodes, "spec.nodes", _NODE_FIELDS)
    if spec.embedder.managed is not None:
        found += _given(spec.embedder.managed, "spec.embedder.managed", _EMBEDDER_FIELDS)
    if spec.upgrade_policy is not UpgradePolicy.MANUAL:
        found.append("spec.upgradePolicy")
    return tuple(found)


def _given(part: BaseModel, path: str, names: tuple[str, ...]) -> list[str]:
    """Those of *names* that the user gave something other than nothing for."""
    given = [name for name in names if name in part.model_fields_set and getattr(part, name)]
    return [f"{path}.{type(part).model_fields[name].alias}" for name in given]
