"""Whether a value that a schema lists is one that the rest of it allows."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Protocol

from engine_worker.grammar.json_schema.document import Schema
from engine_worker.grammar.json_schema.formats import UNENFORCED_FORMATS
from engine_worker.grammar.json_schema.patterns import Patterns
from engine_worker.grammar.json_schema.shape import Shape, is_whole, same, type_of


@dataclass(frozen=True, slots=True, eq=False)
class Doubt:
    """A keyword of which can't be told whether a value has it.

    Attributes:
        schema: Where it stands.
        why: It can't be told.
    """

    schema: Schema
    keyword: str
    why: str


Verdict = tuple[Doubt, ...] | None
"""None: a value doesn't fit. Else it does, as far as it can be told: all but these keywords."""


class Judge(Protocol):
    """What is asked about the parts of a value."""

    @property
    def patterns(self) -> Patterns:
        """Knows which texts have them."""

    def verdict(self, schemas: tuple[Schema, ...], value: Any) -> Verdict:
        """Whether a value is what all of some schemas allow."""


def any_of(verdicts: Iterable[Verdict]) -> Verdict:
    """Of a value that has to fit once."""
    doubts: list[Doubt] = []
    fits_at_all = False
    for verdict in verdicts:
        if verdict is None:
            continue
        if not verdict:
            return ()
        fits_at_all = True
        doubts += verdict
    return tuple(doubts) if fits_at_all else None


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """Of a value that has to fit each time."""
    doubts: list[Doubt] = []
    for verdict in verdicts:
        if verdict is None:
            return None
        doubts += verdict
    return tuple(doubts)


def fits(shape: Shape, value: Any, judge: Judge, *, is_listed: bool = False) -> Verdict:
    """Whether a value has a shape.

    Args:
        shape: The shape.
        value: The value.
        judge: Says it of what is within the value.
        is_listed: It is known to be one of the shape's values.
    """
    name = type_of(value)
    if name not in shape.types and not (
        name == "number" and "integer" in shape.types and is_whole(value)
    ):
        return None
    if (
        shape.values is not None
        and not is_listed
        and not any(same(value, one) for one in shape.values)
    ):
        return None
    if any(same(value, one) for one, _ in shape.excluded):
        return None
    match name:
        case "number":
            return () if _fits_number(shape, Decimal(value)) else None
        case "string":
            return _fits_string(shape, value, judge.patterns)
        case "array":
            return _fits_array(shape, value, judge)
        case "object":
            return _fits_object(shape, value, judge)
    return ()


def _fits_number(shape: Shape, value: Decimal) -> bool:
    if shape.is_fraction and is_whole(value):
        return False
    if shape.low is not None:
        bound, is_left_out = shape.low
        if value < bound or (is_left_out and value == bound):
            return False
    if shape.high is not None:
        bound, is_left_out = shape.high
        if value > bound or (is_left_out and value == bound):
            return False
    # As fractions: a `Decimal` has 28 digits for what is divided.
    return all(Fraction(value) % Fraction(multiple) == 0 for multiple, _ in shape.multiples)


def _fits_string(shape: Shape, value: str, patterns: Patterns) -> Verdict:
    if len(value) < shape.min_length or (
        shape.max_length is not None and len(value) > shape.max_length
    ):
        return None

    def verdicts() -> Iterator[Verdict]:
        for pattern, schema in shape.patterns:
            has = patterns.matches(pattern, value)
            yield _told(has, schema, "pattern", f"{pattern[:100]!r} can't be followed.")
        for name, schema in shape.formats:
            if name in UNENFORCED_FORMATS:
                yield (Doubt(schema, "format", f"{name!r} is none that is enforced."),)
            else:
                has = patterns.has_format(name, value)
                yield _told(has, schema, "format", f"it can't be told what is a {name!r}.")

    return all_of(verdicts())


def _told(has: bool | None, schema: Schema, keyword: str, why: str) -> Verdict:
    if has is None:
        return (Doubt(schema, keyword, why),)
    return () if has else None


def _fits_array(shape: Shape, value: list[Any], judge: Judge) -> Verdict:
    if len(value) < shape.min_items or (
        shape.max_items is not None and len(value) > shape.max_items
    ):
        return None
    if shape.unique and any(
        same(one, other) for index, one in enumerate(value) for other in value[:index]
    ):
        return None
    items = all_of(judge.verdict(shape.item(index), item) for index, item in enumerate(value))
    if items is None:
        return None
    contained = (_contains(value, schema, least, judge) for schema, least, _ in shape.contains)
    return all_of((items, *contained))


def _contains(value: list[Any], schema: Schema, least: int, judge: Judge) -> Verdict:
    verdicts = [judge.verdict((schema,), item) for item in value]
    if verdicts.count(()) >= least:
        return ()
    fitting = [verdict for verdict in verdicts if verdict is not None]
    return all_of(fitting) if len(fitting) >= least else None


def _fits_object(shape: Shape, value: dict[str, Any], judge: Judge) -> Verdict:
    if not shape.required.keys() <= value.keys():
        return None
    if len(value) < shape.min_properties or (
        shape.max_properties is not None and len(value) > shape.max_properties
    ):
        return None

    def verdicts() -> Iterator[Verdict]:
        for name in value:
            yield from (judge.verdict((schema,), name) for schema, _ in shape.names)
        for name, item in value.items():
            matches = name_matches(shape, name, judge.patterns)
            yield unknown_matches(shape, matches)
            yield judge.verdict(shape.member(name, matches), item)

    return all_of(verdicts())


def name_matches(shape: Shape, name: str, patterns: Patterns) -> dict[str, bool | None]:
    """For each pattern of names whether a name has it; None where that can't be told."""
    known = {pattern for part in shape.objects for pattern in part.patterns}
    return {pattern: patterns.matches(pattern, name) for pattern in known}


def unknown_matches(shape: Shape, matches: dict[str, bool | None]) -> tuple[Doubt, ...]:
    """The keywords of patterns that a name may have or not."""
    return tuple(
        Doubt(part.schema, "patternProperties", f"{pattern[:100]!r} can't be followed.")
        for part in shape.objects
        for pattern in part.patterns
        if matches[pattern] is None and pattern in part.schema.get("patternProperties", ())
    )
