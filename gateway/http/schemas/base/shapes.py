"""Which fields an object has that no model of ours describes, and which of a value are others."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final, TypeAlias, Union

MAX_LISTED_FIELDS: Final = 32
"""Fields without meaning that are named to the client; a body can hold a million of them."""
MAX_NAME_CHARACTERS: Final = 100
"""Of a client's own name that an error or a list repeats."""

Shape: TypeAlias = Union["Fields", "ByType", "ListOf"]


@dataclass(frozen=True, slots=True)
class Fields:
    """An object with certain fields.

    Attributes:
        known: Their names.
        inner: Those whose values have a shape. Others are anything, with whatever is in it: a JSON
            schema, arguments, labels.
        neutral: Of fields that have no meaning here, the values that change nothing.
    """

    known: frozenset[str]
    inner: tuple[tuple[str, Shape], ...] = ()
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def is_neutral(self, name: str, value: Any) -> bool:
        """Whether a field without a meaning has a value that changes nothing, as null does."""
        return value is None or any(
            value == one and type(value) is type(one) for one in self.neutral.get(name, ())
        )


@dataclass(frozen=True, slots=True)
class ByType:
    """An object whose `type` says what fields it has.

    Attributes:
        kinds: By type; of a type that isn't there anything is known.
        default: The type of an object that says none.
    """

    kinds: Mapping[str, Fields]
    default: str = ""


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of such values; something else in its place, a text for one, has no fields."""

    member: Fields | ByType


def fields(*names: str, **inner: Shape) -> Fields:
    """Fields of any value, and fields whose values have a shape."""
    return Fields(frozenset(names) | inner.keys(), tuple(inner.items()))


def with_neutral(shape: Fields, neutral: Mapping[str, tuple[Any, ...]]) -> Fields:
    """The same fields, and others that are unknown unless they have one of certain values."""
    return replace(shape, neutral={**shape.neutral, **neutral})


def given_fields(value: Mapping[str, Any]) -> Iterable[str]:
    """The fields that are not null, which is the same as leaving one out."""
    return (key for key, one in value.items() if one is not None)


def unknown_keys(value: Iterable[str], known: frozenset[str], prefix: str = "") -> list[str]:
    """The first keys that no schema knows, sorted, with a prefix."""
    unknown = (key for key in value if key not in known)
    return [
        f"{prefix}{key[:MAX_NAME_CHARACTERS]}" for key in sorted(islice(unknown, MAX_LISTED_FIELDS))
    ]


def add_unknown(value: Any, shape: Shape, path: str, found: list[str]) -> None:
    """Add the places of fields that a shape doesn't have, unless they are null or neutral.

    Args:
        value: Of the client.
        shape: That it has.
        path: Of the value.
        found: More is added until it has `MAX_LISTED_FIELDS`, or a few more.
    """
    if isinstance(shape, ListOf):
        if isinstance(value, list):
            member = shape.member
            for index, one in enumerate(value):
                if len(found) >= MAX_LISTED_FIELDS:
                    return
                add_unknown(one, member, f"{path}[{index}]", found)
        return
    if not isinstance(value, dict):
        return
    if isinstance(shape, ByType):
        kind = value.get("type")
        kind = shape.default if kind is None else kind
        known = shape.kinds.get(kind) if isinstance(kind, str) else None
        if known is None:
            return
        shape = known
    if not value.keys() <= shape.known:
        given = (key for key, one in value.items() if not shape.is_neutral(key, one))
        found += unknown_keys(given, shape.known, f"{path}.")
    for name, inner in shape.inner:
        if name in value:
            add_unknown(value[name], inner, f"{path}.{name}", found)
