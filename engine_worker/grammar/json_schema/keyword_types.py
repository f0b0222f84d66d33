"""What the value of each keyword has to be: checked before anything reads it."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

TYPES: Final = ("object", "array", "string", "number", "integer", "boolean", "null")

_MAY_BE_NULL: Final = frozenset(
    {
        *("type", "enum", "items", "prefixItems", "additionalProperties", "uniqueItems"),
        *("$id", "$anchor"),
    }
)
"""Generators write what was left out as null."""

Fault = tuple[str, str]
"""A place within a keyword's value, empty for the whole, and what has to be there."""
_Check = Callable[[Any], Fault | None]


def first_fault(schema: dict[str, Any]) -> tuple[str, str] | None:
    """The place within a schema of the first value that is of a wrong type, and what it has to be.

    The schemas within it are not looked into. Annotations may be anything.
    """
    for keyword, value in schema.items():
        check = None if value is None and keyword in _MAY_BE_NULL else _CHECKS.get(keyword)
        fault = None if check is None else check(value)
        if fault is not None:
            return f"{keyword}{fault[0]}", fault[1]
    return None


def _is(why: str, test: Callable[[Any], bool]) -> _Check:
    return lambda value: None if test(value) else ("", why)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_SCHEMA: Final = _is(
    "a schema is an object, true or false.", lambda value: isinstance(value, dict | bool)
)
_STRING: Final = _is("it is a string.", lambda value: isinstance(value, str))
_NUMBER: Final = _is("it is a number.", _is_number)
_COUNT: Final = _is("it is an integer from 0 on.", _is_count)
_NAMES: Final = _is("it is a list of names.", _are_names)


def _list_of(why: str, check: _Check) -> _Check:
    def checked(value: Any) -> Fault | None:
        if not isinstance(value, list):
            return "", why
        return _first_within(enumerate(value), check)

    return checked


def _map_of(check: _Check) -> _Check:
    def checked(value: Any) -> Fault | None:
        if not isinstance(value, dict):
            return "", "it is an object."
        return _first_within(value.items(), check)

    return checked


def _first_within(parts: Any, check: _Check) -> Fault | None:
    for key, part in parts:
        fault = check(part)
        if fault is not None:
            return f"/{key}{fault[0]}", fault[1]
    return None


def _one_type(value: Any) -> Fault | None:
    if isinstance(value, str) and value in TYPES:
        return None
    return "", f"there is no type {str(value)[:50]!r}."


def _type(value: Any) -> Fault | None:
    if value == "any":  # of draft 3
        return None
    for name in value if isinstance(value, list) else [value]:
        fault = _one_type(name)
        if fault is not None:
            return fault
    return None


def _multiple(value: Any) -> Fault | None:
    return _NUMBER(value) or (None if value > 0 else ("", "it is above 0."))


_SCHEMAS: Final = _list_of("it is a list of schemas.", _SCHEMA)
_CHECKS: Final[dict[str, _Check]] = {
    **dict.fromkeys(
        [
            *("$ref", "$dynamicRef", "$recursiveRef", "$id", "$anchor", "$dynamicAnchor"),
            *("pattern", "format"),
        ],
        _STRING,
    ),
    "type": _type,
    "enum": _is("it is a list of values.", lambda value: isinstance(value, list)),
    **dict.fromkeys(["allOf", "anyOf", "oneOf", "prefixItems"], _SCHEMAS),
    **dict.fromkeys(
        [
            *("not", "if", "then", "else", "contains", "propertyNames", "additionalProperties"),
            *("additionalItems", "unevaluatedProperties", "unevaluatedItems"),
        ],
        _SCHEMA,
    ),
    "items": lambda value: _SCHEMAS(value) if isinstance(value, list) else _SCHEMA(value),
    **dict.fromkeys(["properties", "patternProperties", "dependentSchemas"], _map_of(_SCHEMA)),
    "dependentRequired": _map_of(_NAMES),
    "dependencies": _map_of(
        lambda value: _NAMES(value) if isinstance(value, list) else _SCHEMA(value)
    ),
    # A boolean in draft 3.
    "required": lambda value: None if isinstance(value, bool) else _NAMES(value),
    "minimum": _NUMBER,
    "maximum": _NUMBER,
    # A boolean in draft 4.
    **dict.fromkeys(
        ["exclusiveMinimum", "exclusiveMaximum"],
        lambda value: None if isinstance(value, bool) else _NUMBER(value),
    ),
    "multipleOf": _multiple,
    **dict.fromkeys(
        [
            *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
            *("minContains", "maxContains"),
        ],
        _COUNT,
    ),
    "uniqueItems": _is("it is true or false.", lambda value: isinstance(value, bool)),
}
