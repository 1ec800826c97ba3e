"""What the watches have shown, so that a steady state costs no request.

kopf tells of each event; the store keeps the newest state of each object, by the resource that owns
it. A watch that was cut off long enough may miss a deletion: `replace_all` puts a fresh list in.
Nothing here waits; one event loop uses it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from embedkeep_operator.kubernetes.containment import Json
from embedkeep_operator.resources.names import INSTANCE


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """An EmbeddingCache."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, order=True)
class Id:
    """One object."""

    kind: str
    namespace: str
    name: str


class Store:
    """Objects by kind, namespace and name."""

    def __init__(self) -> None:
        self._objects: dict[Id, Json] = {}
        self._owned: dict[Key, set[Id]] = {}

    def get(self, kind: str, namespace: str, name: str) -> Json | None:
        """One object as it was seen last. None: it is not there."""
        return self._objects.get(Id(kind, namespace, name))

    def put(self, found: Json) -> Key | None:
        """Keep *found*, unless something newer is kept. Returns whose it is."""
        where = identity(found)
        before = self._objects.get(where)
        if before is not None and version(before) > version(found):
            return owner(before)
        self._objects[where] = found
        if (key := owner(found)) is not None:
            self._owned.setdefault(key, set()).add(where)
        return key

    def drop(self, gone: Json) -> Key | None:
        """Forget what was deleted. Returns whose it was."""
        where = identity(gone)
        self._objects.pop(where, None)
        key = owner(gone)
        if key is not None and (owned := self._owned.get(key)) is not None:
            owned.discard(where)
            if not owned:
                del self._owned[key]
        return key

    def owned(self, key: Key, kind: str | None = None) -> Iterator[Json]:
        """What belongs to a resource."""
        for where in sorted(self._owned.get(key, ())):
            if kind is None or where.kind == kind:
                yield self._objects[where]

    def keys(self, kind: str) -> Iterator[Key]:
        """Of all objects of a kind."""
        return (Key(each.namespace, each.name) for each in self._objects if each.kind == kind)

    def replace_all(self, kind: str, namespace: str | None, found: Iterable[Json]) -> set[Key]:
        """Keep just these of a kind, in one namespace or in all. Returns whose were gone."""
        there = {identity(each): each for each in found}
        gone = [
            each
            for where, each in self._objects.items()
            if where.kind == kind and namespace in {None, where.namespace} and where not in there
        ]
        lost = {key for each in gone if (key := self.drop(each)) is not None}
        for each in there.values():
            self.put(each)
        return lost


def identity(found: Json) -> Id:
    """Which object it is."""
    metadata = metadata_of(found)
    return Id(str(found.get("kind")), str(metadata.get("namespace", "")), str(metadata["name"]))


def metadata_of(found: Json) -> Json:
    """Its metadata."""
    metadata = found.get("metadata")
    return metadata if isinstance(metadata, Mapping) else {}


def version(found: Json) -> int:
    """Its resourceVersion, which grows with each write."""
    given = str(metadata_of(found).get("resourceVersion", ""))
    return int(given) if given.isdigit() else 0


def labels_of(found: Json) -> Mapping[str, str]:
    """Its labels."""
    labels = metadata_of(found).get("labels")
    return labels if isinstance(labels, Mapping) else {}


def owner(found: Json) -> Key | None:
    """The EmbeddingCache that its labels name. None: none."""
    name = labels_of(found).get(INSTANCE)
    namespace = metadata_of(found).get("namespace")
    return Key(str(namespace), name) if name and namespace else None
