"""Which fields an object has that no model of ours describes, and which of a value are others."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TypeAlias, Union

MAX_LISTED_FIELDS: Final = 32
"""Fields without meaning that are named to the client; a body can hold a million of them."""

Shape: TypeAlias = Union["Fields", "ByType", "ListOf", None]
"""None is anything, with whatever is in it: a JSON schema, arguments, labels."""
Fields: TypeAlias = Mapping[str, Shape]
"""An object with these fields."""


@dataclass(frozen=True, slots=True)
class ByType:
    """An object whose `type` says what fields it has.

    Attributes:
        kinds: By type; of a type that isn't there anything is known.
        default: The type of an object that says none.
    """

    kinds: Mapping[str, Fields]
    default: str = ""

    def fields_of(self, value: Mapping[str, Any]) -> "Fields | None":
        """The fields of one object."""
        kind = value.get("type")
        kind = self.default if kind is None else kind
        return self.kinds.get(kind) if isinstance(kind, str) else None


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of such values; something else in its place, a text for one, has no fields."""

    member: Shape


def fields(*names: str, **inner: Shape) -> Fields:
    """Fields of any value, and fields whose values have a shape."""
    return {**dict.fromkeys(names), **inner}


def unknown_keys(value: Iterable[str], known: frozenset[str], prefix: str = "") -> list[str]:
    """The first keys that no schema knows, sorted, with a prefix."""
    unknown = (key for key in value if key not in known)
    return [f"{prefix}{key}" for key in sorted(islice(unknown, MAX_LISTED_FIELDS))]


def unknown_within(value: Any, shape: Shape, path: str) -> Iterator[str]:
    """The places of fields that a shape doesn't have; null is the same as leaving a field out."""
    if isinstance(shape, ListOf):
        if shape.member is not None and isinstance(value, list):
            for index, one in enumerate(value):
                yield from unknown_within(one, shape.member, f"{path}[{index}]")
        return
    if not isinstance(value, dict):
        return
    known = shape.fields_of(value) if isinstance(shape, ByType) else shape
    if known is None:
        return
    for key, one in value.items():
        if key not in known:
            if one is not None:
                yield f"{path}.{key}"
        elif (inner := known[key]) is not None:
            yield from unknown_within(one, inner, f"{path}.{key}")
