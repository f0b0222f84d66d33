"""Whether a value that a schema lists is one that the rest of it allows."""

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from engine_worker.grammar.json_schema.document import Schema
from engine_worker.grammar.json_schema.shape import Shape, is_whole, same, type_of

Admits = Callable[[tuple[Schema, ...], Any], bool]
"""Whether a value within another one is what some schemas allow."""


def fits(shape: Shape, value: Any, admits: Admits, *, is_listed: bool = False) -> bool:
    """Whether a value has a shape; formats are not looked at.

    Args:
        shape: The shape.
        value: The value.
        admits: Says it of what is within the value.
        is_listed: It is known to be one of the shape's values.
    """
    name = type_of(value)
    if name not in shape.types and not (
        name == "number" and "integer" in shape.types and is_whole(value)
    ):
        return False
    if (
        shape.values is not None
        and not is_listed
        and not any(same(value, one) for one in shape.values)
    ):
        return False
    if any(same(value, one) for one, _ in shape.excluded):
        return False
    match name:
        case "number":
            return _fits_number(shape, Decimal(value))
        case "string":
            return (
                len(value) >= shape.min_length
                and (shape.max_length is None or len(value) <= shape.max_length)
                and all(has_pattern(value, pattern) for pattern, _ in shape.patterns)
            )
        case "array":
            return _fits_array(shape, value, admits)
        case "object":
            return _fits_object(shape, value, admits)
    return True


def has_pattern(text: str, pattern: str) -> bool:
    """Whether a text has a pattern of JSON Schema; true when Python can't read the pattern."""
    try:
        # In JSON Schema `$` is the very end, and digits are those of ASCII.
        return re.search(re.sub(r"(?<!\\)\$$", r"\\Z", pattern), text, re.ASCII) is not None
    except (re.error, RecursionError, OverflowError):
        return True


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
    return all(value % multiple == 0 for multiple, _ in shape.multiples if abs(value) < 10**20)


def _fits_array(shape: Shape, value: list[Any], admits: Admits) -> bool:
    if len(value) < shape.min_items or (
        shape.max_items is not None and len(value) > shape.max_items
    ):
        return False
    if shape.unique is not None and any(
        same(one, other) for index, one in enumerate(value) for other in value[:index]
    ):
        return False
    if not all(admits(shape.item(index), item) for index, item in enumerate(value)):
        return False
    return all(
        sum(admits((schema,), item) for item in value) >= least
        for schema, least, _ in shape.contains
    )


def _fits_object(shape: Shape, value: dict[str, Any], admits: Admits) -> bool:
    if not shape.required.keys() <= value.keys():
        return False
    if len(value) < shape.min_properties or (
        shape.max_properties is not None and len(value) > shape.max_properties
    ):
        return False
    if not all(admits((schema,), name) for schema, _ in shape.names for name in value):
        return False
    patterns = {pattern for part in shape.objects for pattern in part.patterns}
    return all(
        admits(shape.member(name, {one: has_pattern(name, one) for one in patterns}), item)
        for name, item in value.items()
    )
