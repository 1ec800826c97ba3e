"""Reads a resource from a YAML file, and says all that is wrong with it at once.

Stricter than the API server where a person at a keyboard is helped by it: unknown fields and
keys given twice are errors, with the line they stand in and the name that was probably meant.
"""

import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Final, Literal, TypeGuard

import yaml
from pydantic import ValidationError

from embedkeep.errors import InvalidConfig
from embedkeep_operator.api import API_VERSION, KIND, EmbeddingCache, Metadata
from embedkeep_operator.crd import Json, structural
from embedkeep_operator.patterns import IN_WORDS

MAX_BYTES: Final = 1 << 20
"""The API server takes no larger object either."""
MAX_DEPTH: Final = 64

Where = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong."""

    path: Where
    message: str

    def line(self, lines: dict[Where, int]) -> int:
        """Of the field, or of its nearest parent where it is absent."""
        near = self.path
        while near and near not in lines:
            near = near[:-1]
        return lines.get(near, 1)

    def at(self, line: int, source: str) -> str:
        """file:line: field: message."""
        said = (f"{source}:{line}", spelled(self.path), self.message)
        return ": ".join(part for part in said if part)


class _Loader(yaml.SafeLoader):
    """Plain values as kubectl reads them, but a date stays text, as in JSON."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load(file: Path) -> EmbeddingCache:
    """The one resource in *file*.

    Raises:
        InvalidConfig: Cannot be read, or says something that is not allowed; one line a problem.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise InvalidConfig(f"is larger than {MAX_BYTES} bytes", source=str(file))
        return parse(file.read_text(encoding="utf-8"), source=str(file))
    except OSError as error:
        raise InvalidConfig(f"cannot be read: {error.strerror}", source=str(file)) from error
    except UnicodeDecodeError as error:
        raise InvalidConfig(f"is not UTF-8: {error}", source=str(file)) from error


def parse(text: str, *, source: str) -> EmbeddingCache:
    """The one resource in *text*.

    Raises:
        InvalidConfig: As `load`.
    """
    node = _one_document(text, source)
    lines: dict[Where, int] = {}
    problems = list(_read_lines(node, (), lines))
    if problems:
        raise _invalid(problems, lines, source)
    loader = _Loader("")
    try:
        data = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise InvalidConfig(_yaml_message(error), source=source) from error
    if problems := list(_identity(data)):
        raise _invalid(problems, lines, source)
    data = _without_nulls(data, _schema())
    problems = list(_shape(data, _schema(), ()))
    try:
        resource = EmbeddingCache.model_validate_json(json.dumps(data), strict=True)
    except (TypeError, ValueError) as error:
        problems += _from_pydantic(error, data)
    else:
        if not problems:
            return resource
    raise _invalid(problems, lines, source)


def spelled(path: Where) -> str:
    """A field's path as users write it: spec.security.tenants[0].name."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _one_document(text: str, source: str) -> yaml.Node:
    try:
        documents = [node for node in yaml.compose_all(text, Loader=_Loader) if not _empty(node)]
    except yaml.YAMLError as error:
        raise InvalidConfig(_yaml_message(error), source=_marked(error, source)) from error
    if not documents:
        raise InvalidConfig(
            f"is empty: it must hold one {KIND}, see examples/quickstart.yaml", source=source
        )
    if len(documents) > 1:
        second = documents[1].start_mark.line + 1
        raise InvalidConfig(
            f"holds {len(documents)} documents, must hold one {KIND}", source=f"{source}:{second}"
        )
    return documents[0]


def _empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _marked(error: yaml.YAMLError, source: str) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{source}:{mark.line + 1}" if mark is not None else source


def _yaml_message(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        said = [error.problem, error.context]
        return "is no YAML: " + ", ".join(part for part in said if part)
    return f"is no YAML: {error}"


def _read_lines(node: yaml.Node, path: Where, lines: dict[Where, int]) -> Iterator[Problem]:
    """Note the line of every field; keys that are given twice or are not text are problems."""
    lines[path] = node.start_mark.line + 1
    if len(path) > MAX_DEPTH:  # an anchor that holds itself, too
        yield Problem(path=path[:4], message=f"is nested deeper than {MAX_DEPTH} levels")
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            yield from _read_lines(child, (*path, index), lines)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, child in node.value:
            here = (*path, key.value if isinstance(key.value, str) else "?")
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag not in _KEY_TAGS:
                lines[here] = line
                yield Problem(path=here, message="a name must be text; quote it")
                continue
            yield from _read_lines(child, here, lines)
            lines[here] = line
            if (first := seen.get(key.value)) is not None:
                yield Problem(path=here, message=f"is given twice, first in line {first}")
            seen.setdefault(key.value, line)


_KEY_TAGS: Final = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"}


def _identity(data: object) -> Iterator[Problem]:
    """Another kind of object is said at once, before its fields are called unknown."""
    if not _is_mapping(data):
        yield Problem(path=(), message=f"must hold one {KIND}, got {_shown(data)}")
        return
    for name, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        if name not in data:
            yield Problem(path=(name,), message=f"is missing, must be {wanted}")
        elif data[name] != wanted:
            yield Problem(path=(name,), message=f"must be {wanted}, got {_shown(data[name])}")


@cache
def _schema() -> Json:
    """The resource's schema with metadata in it. What the API server adds there is free."""
    schema = structural(EmbeddingCache)
    properties = schema["properties"]
    assert isinstance(properties, dict)  # noqa: S101  # narrows the type
    metadata = {**structural(Metadata), "x-kubernetes-preserve-unknown-fields": True}
    return {**schema, "properties": {**properties, "metadata": metadata}}


def _without_nulls(data: object, schema: Json) -> object:
    """As the API server does: a null where none is allowed is as good as nothing."""
    if isinstance(data, list):
        return [_without_nulls(item, _known(index, schema)) for index, item in enumerate(data)]
    if not _is_mapping(data):
        return data
    children = ((name, child, _known(name, schema)) for name, child in data.items())
    return {
        name: _without_nulls(child, known)
        for name, child, known in children
        if child is not None or known.get("nullable") or not known
    }


def _known(step: str | int, schema: Json) -> Json:
    known = _schema_of(step, schema)
    return known if isinstance(known, dict) else {}


def _shape(data: object, schema: Json, path: Where) -> Iterator[Problem]:
    """Unknown fields."""
    children: Iterable[tuple[str | int, object]] = ()
    if isinstance(data, list):
        children = enumerate(data)
    elif _is_mapping(data):
        children = data.items()
    for step, child in children:
        known = _schema_of(step, schema)
        if isinstance(known, dict):
            yield from _shape(child, known, (*path, step))
        elif known is None:
            names = schema.get("properties")
            message = _unknown(str(step), list(names) if isinstance(names, dict) else ())
            yield Problem(path=(*path, step), message=message)


def _schema_of(step: str | int, schema: Json) -> Json | Literal["anything"] | None:
    """The schema of one child; None: there is no such field."""
    properties = schema.get("properties")
    if isinstance(properties, dict) and isinstance(known := properties.get(step), dict):
        return known
    more = schema.get("items" if isinstance(step, int) else "additionalProperties")
    if isinstance(more, dict):
        return more
    if "x-kubernetes-preserve-unknown-fields" in schema or not isinstance(properties, dict):
        return "anything"  # of another type than allowed: pydantic says so
    return None


def _unknown(name: str, known: Sequence[str]) -> str:
    folded = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.replace("_", "").lower(), list(folded), n=1)
    if near:
        return f"there is no such field; did you mean {folded[near[0]]}?"
    return f"there is no such field; there are {', '.join(sorted(known))}"


def _from_pydantic(error: Exception, data: object) -> Iterator[Problem]:
    if not isinstance(error, ValidationError):
        yield Problem(path=(), message=f"cannot be read as JSON: {error}")
        return
    for item in error.errors(include_url=False):
        path = tuple(item["loc"])
        if item["type"] == "missing":
            yield Problem(path=path, message="is missing")
        elif (value := _value_at(data, path)) is not None:
            pattern = item.get("ctx", {}).get("pattern", "")
            message = (
                f"must be {IN_WORDS[pattern]}" if pattern in IN_WORDS
                else item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            )  # fmt: skip
            boolean = isinstance(value, bool) and item["type"] in {"enum", "literal_error"}
            hint = "; without quotes YAML reads Off and On as booleans: quote it" if boolean else ""
            shown = "" if _is_mapping(value) else f", got {_shown(value)}"
            yield Problem(path=path, message=f"{message}{shown}{hint}")


def _value_at(data: object, path: Where) -> object:
    """What stands at *path*; None also where nothing does (`_shape` reports that)."""
    for step in path:
        if _is_mapping(data) and isinstance(step, str):
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int):
            data = data[step]
    return data


def _is_mapping(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."  # a terminal's width


def _invalid(
    problems: Sequence[Problem], lines: dict[Where, int], source: str
) -> InvalidConfig:  # fmt: skip
    placed = sorted(((problem.line(lines), problem) for problem in problems), key=itemgetter(0))
    said = dict.fromkeys(problem.at(line, source) for line, problem in placed)
    error = InvalidConfig("\n".join(said))
    error.source = source
    error.field = spelled(placed[0][1].path)
    return error
