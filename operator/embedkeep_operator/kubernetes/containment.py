"""Whether a live object already is what is wanted, so that nothing need be written. Pure.

Server-side apply would find that out too, but each question is a write request, counted and audited
like any other. Two things must hold: all that is wanted is in the live object, beside defaults and
what others have set; and our field manager owns nothing there that is no longer wanted, which an
apply would take away.

How managedFields are written down: kubernetes.io/docs/reference/using-api/server-side-apply.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Final, cast

Json = Mapping[str, object]

FIELD: Final = "f:"
BY_KEY: Final = "k:"
BY_VALUE: Final = "v:"


def is_applied(wanted: Json, live: Json, *, manager: str) -> bool:
    """Applying *wanted* over *live* as *manager* would change nothing.

    Args:
        wanted: The whole object as it would be applied; its metadata and kind too.
        live: As the API server last showed it, with its managedFields.
    """
    owned = owned_fields(live, manager=manager)
    return owned is not None and contains(live, wanted) and is_all_wanted(owned, wanted)


def contains(live: object, wanted: object) -> bool:
    """Each value that is wanted is there; what is more there is no matter.

    Lists of objects may hold more and stand in another order, as the API server merges them by
    their keys. Lists of plain values are as they are wanted, or they are not.
    """
    if isinstance(wanted, Mapping):
        if not wanted and live is None:
            return True
        return isinstance(live, Mapping) and all(
            contains(live.get(name), value) for name, value in wanted.items()
        )
    if isinstance(wanted, list | tuple):
        if not wanted and live is None:
            return True
        return isinstance(live, list | tuple) and _contains_items(live, wanted)
    return (type(live) is type(wanted) and live == wanted) or _same_number(live, wanted)


def _contains_items(live: Sequence[object], wanted: Sequence[object]) -> bool:
    if not all(isinstance(item, Mapping) for item in wanted):
        return list(live) == list(wanted)
    if len(live) == len(wanted) and all(map(contains, live, wanted)):
        return True
    left = list(live)
    for item in wanted:
        found = next((at for at, other in enumerate(left) if contains(other, item)), None)
        if found is None:
            return False
        del left[found]
    return True


def _same_number(live: object, wanted: object) -> bool:
    """1 and 1.0, but not 1 and True."""
    numbers = (int, float)
    return type(live) in numbers and type(wanted) in numbers and live == wanted


def owned_fields(live: Json, *, manager: str) -> Json | None:
    """What *manager* has applied, in the form of fieldsV1. None: it never has."""
    metadata = live.get("metadata")
    entries = metadata.get("managedFields") if isinstance(metadata, Mapping) else None
    for entry in entries if isinstance(entries, list) else ():
        if (
            entry.get("manager") == manager
            and entry.get("operation") == "Apply"
            and not entry.get("subresource")
        ):
            return cast(Json, entry.get("fieldsV1") or {})
    return None


def is_all_wanted(owned: Json, wanted: object) -> bool:
    """Every field in *owned*, in the form of fieldsV1, has a value in *wanted*."""
    for name, below in owned.items():
        if name == ".":
            continue
        if (found := _named(name, wanted)) is None:
            return False
        if isinstance(below, Mapping) and not is_all_wanted(below, found[0]):
            return False
    return True


def _named(name: str, wanted: object) -> tuple[object] | None:
    """What *name* in fieldsV1 stands for. None: there is nothing."""
    if name.startswith(FIELD):
        field = name.removeprefix(FIELD)
        return (wanted[field],) if isinstance(wanted, Mapping) and field in wanted else None
    if not isinstance(wanted, list | tuple):
        return None
    if name.startswith(BY_KEY):
        keys = json.loads(name.removeprefix(BY_KEY))
        return next(((item,) for item in wanted if _has_keys(item, keys)), None)
    if name.startswith(BY_VALUE):
        value = json.loads(name.removeprefix(BY_VALUE))
        return (value,) if value in wanted else None
    return None


def _has_keys(item: object, keys: Json) -> bool:
    """Of these keys; one with a default, as a port's protocol, may be left out of *item*."""
    return isinstance(item, Mapping) and all(item.get(key, own) == own for key, own in keys.items())
