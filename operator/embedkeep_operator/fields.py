"""What the resource's types are made of: bounded leaves, and rules said once.

A `Rule` is enforced here, by pydantic, and in the cluster, as CEL: a file gets the same answer
from `embedkeep up` and from the API server.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

FORMAT_MARK: Final = "x-embedkeep-format"
"""Says how a default is written in YAML; the CRD's generator takes it out again."""

CEL_RESERVED: Final = frozenset(
    {"as", "break", "const", "continue", "else", "false", "for", "function", "if", "import", "in"}
    | {"let", "loop", "namespace", "null", "package", "return", "true", "var", "void", "while"}
)
"""Field names that CEL wants between double underscores."""

_QUANTITY: Final = re.compile(r"^([0-9]+(?:\.[0-9]{1,3})?)([kMGT]|[KMGT]i)?$")
_UNITS: Final = {
    "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40,
}  # fmt: skip
_DURATION: Final = re.compile(r"^([1-9][0-9]{0,6})([smhd])$")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_quantity(given: object) -> int:
    """Bytes of a Kubernetes quantity: 268435456, "256Mi", "1.5Gi", "500M".

    Raises:
        ValueError: Not a quantity of whole bytes.
    """
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given
    found = _QUANTITY.match(given) if isinstance(given, str) else None
    if found is None:
        raise ValueError("must be a size such as 500M, 256Mi, 1.5Gi or a number of bytes")
    number = Decimal(found[1]) * _UNITS[found[2] or ""]
    if number != number.to_integral_value():
        raise ValueError("must be a whole number of bytes")
    return int(number)


def format_quantity(size: int) -> str:
    """The shortest exact spelling with a binary unit: 256Mi."""
    for unit in ("Ti", "Gi", "Mi", "Ki"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)


def parse_duration(given: object) -> int:
    """Seconds of one number with one unit: 45s, 90m, 12h, 30d.

    Raises:
        ValueError: Another spelling.
    """
    found = _DURATION.match(given) if isinstance(given, str) else None
    if found is None:
        raise ValueError("must be a whole number and one of s, m, h, d: 45s, 90m, 12h, 30d")
    return int(found[1]) * _SECONDS[found[2]]


def format_duration(seconds: int) -> str:
    """The shortest exact spelling: 30d."""
    for unit in ("d", "h", "m"):
        if seconds % _SECONDS[unit] == 0:
            return f"{seconds // _SECONDS[unit]}{unit}"
    return f"{seconds}s"


@dataclass(frozen=True, slots=True)
class Quantity:
    """Marks an int as bytes that are written as a Kubernetes quantity, within bounds."""

    minimum: str
    maximum: str

    def __get_pydantic_core_schema__(self, _: object, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.parse,
            serialization=core_schema.plain_serializer_function_ser_schema(
                format_quantity, when_used="json"
            ),
        )

    def __get_pydantic_json_schema__(
        self, _: CoreSchema, __: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "pattern": _QUANTITY.pattern,
            "x-kubernetes-validations": [
                {
                    "rule": f"quantity(string(self)).compareTo(quantity('{self.minimum}')) >= 0"
                    f" && quantity(string(self)).compareTo(quantity('{self.maximum}')) <= 0",
                    "message": self.allowed,
                }
            ],
            FORMAT_MARK: "quantity",
        }

    @property
    def allowed(self) -> str:
        """For people."""
        return f"must be from {self.minimum} to {self.maximum}"

    def parse(self, given: object) -> int:
        """Bytes.

        Raises:
            ValueError: No quantity, or out of bounds.
        """
        size = parse_quantity(given)
        if not parse_quantity(self.minimum) <= size <= parse_quantity(self.maximum):
            raise ValueError(self.allowed)
        return size


@dataclass(frozen=True, slots=True)
class _Duration:
    def __get_pydantic_core_schema__(self, _: object, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            parse_duration,
            serialization=core_schema.plain_serializer_function_ser_schema(
                format_duration, when_used="json"
            ),
        )

    def __get_pydantic_json_schema__(
        self, _: CoreSchema, __: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "pattern": _DURATION.pattern, FORMAT_MARK: "duration"}


Seconds = Annotated[int, _Duration()]
"""Seconds, written as one number with one unit: 45s, 90m, 12h, 30d."""

Label = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", max_length=63)]
"""A DNS label."""

ObjectName = Annotated[
    str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$", max_length=253)
]
"""The name of another object in the resource's namespace."""

Key = Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]{1,253}$", max_length=253)]
"""A key of a Secret or a ConfigMap."""

Text = Annotated[str, Field(min_length=1, max_length=512)]
"""A short text that is not empty."""

Port = Annotated[int, Field(ge=1, le=65535)]
"""A TCP port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Something that several fields must keep to together."""

    cel: str | None
    """For the API server. None: it has another way to say the same."""
    message: str
    """What is allowed, naming the fields as the user writes them."""
    check: Callable[[Any], bool] | None = None
    """The same in Python, given the part. None: a rule on changes, which one file cannot break."""


class Part(BaseModel):
    """Base of every object in the resource: camelCase in YAML, frozen, unknown fields ignored.

    Ignored, because an older operator must read a newer resource. The command line forbids them.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        broken = [rule.message for rule in self.rules if rule.check and not rule.check(self)]
        if broken:
            raise ValueError("; ".join(broken))
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Add the rules, and the class's docstring, which a field's own replaces."""
        found = handler.resolve_ref_schema(handler(schema))
        if any(rule.cel for rule in cls.rules):
            found["x-kubernetes-validations"] = [
                {"rule": rule.cel, "message": rule.message} for rule in cls.rules if rule.cel
            ]
        return found


def exactly_one(*names: str) -> Rule:
    """One of these fields is there, the others are not."""
    said = [to_camel(name) for name in names]
    count = " + ".join(f"({there(name)} ? 1 : 0)" for name in said)
    return Rule(
        cel=f"{count} == 1",
        message=f"give exactly one of {', '.join(said[:-1])} and {said[-1]}",
        check=lambda part: sum(getattr(part, name) is not None for name in names) == 1,
    )


def ordered(*names: str) -> Rule:
    """These numbers do not fall from left to right."""
    said = [to_camel(name) for name in names]
    pairs = itertools.pairwise(said)
    return Rule(
        cel=" && ".join(f"self.{low} <= self.{high}" for low, high in pairs),
        message=f"{' <= '.join(said)} must hold",
        check=lambda part: sorted(values := [getattr(part, name) for name in names]) == values,
    )


def different(one: str, other: str) -> Rule:
    """These two are not the same, where both are given."""
    first, second = to_camel(one), to_camel(other)
    return Rule(
        cel=f"!{there(first)} || !{there(second)} || self.{first} != self.{second}",
        message=f"{first} and {second} must differ",
        check=lambda part: getattr(part, one) is None or getattr(part, one) != getattr(part, other),
    )


def each_name_once(field: str) -> Rule:
    """No two items of this list have one name; x-kubernetes-list-map-keys says it in the CRD."""
    return Rule(
        cel=None,
        message=f"{to_camel(field)}: each name once",
        check=lambda part: (
            len({item.name for item in getattr(part, field)}) == len(getattr(part, field))
        ),
    )


def there(name: str) -> str:
    """CEL: the field is given, and not as null, for which has() holds too."""
    name = f"__{name}__" if name in CEL_RESERVED else name
    return f"(has(self.{name}) && dyn(self.{name}) != null)"


def unchanging(path: str, message: str) -> Rule:
    """The optional object at *path*, two names deep, stays as it was created."""
    parent, child = path.split(".")

    def given(root: str) -> str:
        return f"(has({root}.{parent}) && has({root}.{parent}.{child}))"

    return Rule(
        cel=f"{given('self')} == {given('oldSelf')}"
        f" && (!{given('self')} || self.{path} == oldSelf.{path})",
        message=message,
    )
