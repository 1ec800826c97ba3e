"""An EmbeddingCache as the API server shows it, and what it asks for. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from embedkeep.errors import InvalidConfig
from embedkeep_operator.api import API_VERSION, KIND, EmbeddingCache
from embedkeep_operator.kubernetes.conditions import Count, Report, Type, is_true
from embedkeep_operator.kubernetes.containment import Json
from embedkeep_operator.kubernetes.store import Key, metadata_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One resource."""

    key: Key
    raw: Json

    @property
    def uid(self) -> str:
        """Its own."""
        return str(metadata_of(self.raw).get("uid", ""))

    @property
    def generation(self) -> int:
        """Of its spec."""
        given = metadata_of(self.raw).get("generation")
        return given if isinstance(given, int) else 0

    @property
    def status(self) -> Json:
        """As it was written last."""
        status = self.raw.get("status")
        return status if isinstance(status, Mapping) else {}

    @property
    def leaves(self) -> bool:
        """It is being deleted."""
        return metadata_of(self.raw).get("deletionTimestamp") is not None

    def last(self) -> Report:
        """What was said last, as far as it is still so while nothing is done."""
        status = self.status
        endpoint = status.get("endpoint")
        return Report(
            generation=self.generation,
            shards=_count(status.get("shards")),
            nodes=_count(status.get("nodes")),
            forming=None if is_true(status, Type.READY) else "not looked at",
            endpoint=endpoint if isinstance(endpoint, str) else None,
        )


def _count(found: object) -> Count:
    numbers = found if isinstance(found, Mapping) else {}
    return Count(wanted=int(numbers.get("wanted", 0)), ready=int(numbers.get("ready", 0)))


def read(seen: Seen) -> EmbeddingCache:
    """What the resource asks for. Fields that are not known are no matter.

    Raises:
        InvalidConfig: It breaks a rule that the API server does not know of; names the fields.
    """
    try:
        return EmbeddingCache.model_validate(
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "metadata": {"name": seen.key.name, "namespace": seen.key.namespace},
                "spec": seen.raw.get("spec"),
            }
        )
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg'].removeprefix('Value error, ')}"
            for each in error.errors()
        )
        raise InvalidConfig(f"{wrong}; correct the resource, or upgrade the operator") from error
