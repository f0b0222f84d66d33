"""What a schema asks of one kind of value: a conjunction without alternatives."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Final

from engine_worker.grammar.json_schema.document import Schema
from engine_worker.grammar.json_schema.keyword_types import TYPES

ALL_TYPES: Final = frozenset(TYPES) - {"integer"}

Bound = tuple[Decimal, bool]
"""A number, and whether it is itself left out."""


@dataclass(frozen=True, slots=True)
class ObjectPart:
    """What one schema says of an object's members.

    Attributes:
        owners: Identities of the schemas that it is part of, its own included.
        additional: Of members that neither names nor patterns describe; None says nothing, and
            leaves them unevaluated.
    """

    owners: frozenset[int]
    schema: dict[str, Any]
    properties: dict[str, Schema]
    patterns: dict[str, Schema]
    additional: Schema | None


@dataclass(frozen=True, slots=True)
class ArrayPart:
    """What one schema says of an array's items.

    Attributes:
        owners: As in `ObjectPart`.
        prefix: Of the first items.
        rest: Of the others; None says nothing, and leaves them unevaluated.
    """

    owners: frozenset[int]
    schema: dict[str, Any]
    prefix: tuple[Schema, ...]
    rest: Schema | None


@dataclass(slots=True)
class Shape:
    """All that has to be true of a value at once.

    Attributes:
        values: The only values; None for any.
        excluded: Values that are forbidden, and the schema that said so.
        fraction_origin: The schema that said that its numbers are no integers; None for none.
        low_origin: The schema and the keyword that said so; `high_origin` likewise.
        patterns: Of strings, with the schema that said so; formats likewise.
        unique: The schemas that said that no two items are equal.
        contains: Schemas of items, with how many of them there must be, 0 or more.
        counted_by: The schemas and keywords that say how many members there are.
        names: What the names of an object's members have to be.
    """

    types: frozenset[str] = ALL_TYPES
    values: list[Any] | None = None
    excluded: list[tuple[Any, Schema]] = field(default_factory=list)
    fraction_origin: Schema | None = None
    low: Bound | None = None
    high: Bound | None = None
    low_origin: tuple[Schema, str] = (True, "minimum")
    high_origin: tuple[Schema, str] = (True, "maximum")
    multiples: list[tuple[Decimal, Schema]] = field(default_factory=list)
    min_length: int = 0
    max_length: int | None = None
    patterns: list[tuple[str, Schema]] = field(default_factory=list)
    formats: list[tuple[str, Schema]] = field(default_factory=list)
    arrays: list[ArrayPart] = field(default_factory=list)
    min_items: int = 0
    max_items: int | None = None
    unique: list[Schema] = field(default_factory=list)
    contains: list[tuple[Schema, int, Schema]] = field(default_factory=list)
    objects: list[ObjectPart] = field(default_factory=list)
    required: dict[str, None] = field(default_factory=dict)
    min_properties: int = 0
    max_properties: int | None = None
    counted_by: list[tuple[Schema, str]] = field(default_factory=list)
    names: list[tuple[Schema, Schema]] = field(default_factory=list)

    def copy(self) -> "Shape":
        """A shape that grows on its own."""
        shape = replace(self)
        for name in _GROWING:
            setattr(shape, name, getattr(self, name).copy())
        return shape

    @property
    def is_hopeless(self) -> bool:
        """Whether the bounds alone leave nothing."""
        return not self.types or self.values == []

    def member(self, name: str | None, matches: Mapping[str, bool | None]) -> tuple[Schema, ...]:
        """The schemas of a member.

        Args:
            name: Of the member; None for one that no schema declares.
            matches: For each pattern whether the name has it; what belongs to a pattern of which
                that can't be told says nothing.
        """
        found: list[Schema] = []
        for part in self.objects:
            hit = [part.properties[name]] if name in part.properties else []
            hit += [schema for pattern, schema in part.patterns.items() if matches[pattern]]
            is_told = all(matches[pattern] is not None for pattern in part.patterns)
            if not hit and part.additional is not None and is_told:
                hit = [part.additional]
            found += hit
        return conjunction(found)

    @property
    def is_fraction(self) -> bool:
        """Whether its numbers are no integers."""
        return self.fraction_origin is not None

    def item(self, index: int) -> tuple[Schema, ...]:
        """The schemas of the item at an index."""
        found: list[Schema] = []
        for part in self.arrays:
            if index < len(part.prefix):
                found.append(part.prefix[index])
            elif part.rest is not None:
                found.append(part.rest)
        return conjunction(found)

    @property
    def num_prefix(self) -> int:
        """Items that have a schema of their own."""
        return max((len(part.prefix) for part in self.arrays), default=0)


_GROWING: Final = [
    "excluded",
    "multiples",
    "patterns",
    "formats",
    "arrays",
    "unique",
    "contains",
    "objects",
    "required",
    "counted_by",
    "names",
]
"""Attributes of a shape that are added to; the others are replaced."""


def conjunction(schemas: list[Schema]) -> tuple[Schema, ...]:
    """Some schemas at once, each counted once; `(False,)` when one allows nothing."""
    if any(schema is False for schema in schemas):
        return (False,)
    distinct = {id(schema): schema for schema in schemas if schema is not True and schema != {}}
    return tuple(distinct.values())


def meet_types(left: frozenset[str], right: frozenset[str]) -> frozenset[str]:
    """Types that both allow; an integer is a number."""
    found = set(left & right)
    for one, other in ((left, right), (right, left)):
        if "integer" in one and "number" in other:
            found.add("integer")
    if "number" in found:
        found.discard("integer")
    return frozenset(found)


def higher(left: Bound | None, right: Bound) -> Bound:
    """The narrower of two lower bounds."""
    return right if left is None else max(left, right)


def lower(left: Bound | None, right: Bound) -> Bound:
    """The narrower of two upper bounds."""
    if left is None:
        return right
    return min(left, right, key=lambda bound: (bound[0], not bound[1]))


def same(left: Any, right: Any) -> bool:
    """Whether two JSON values are equal; numbers by value, and no number is a boolean."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return type_of(left) == type_of(right) and bool(left == right)


def type_of(value: Any) -> str:
    """The JSON type of a value; any number is `number`."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | Decimal():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def is_whole(value: Any) -> bool:
    """Whether a number is an integer, as JSON Schema counts 1.0."""
    return isinstance(value, int) or value == value.to_integral_value()
