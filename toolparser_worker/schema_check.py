"""Checks that a tool's parameters are a JSON schema, in time linear in their size."""

from collections.abc import Mapping
from typing import Any, Final

from toolparser_worker.machine.tool_schemas import referred_part

MAX_SCHEMA_DEPTH: Final = 128
"""Schemas within schemas; deeper ones are refused, as whoever follows them would recurse."""

_TYPES: Final = frozenset({"null", "boolean", "object", "array", "number", "string", "integer"})
_IN_OBJECT: Final = frozenset(
    {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
)
_IN_LIST: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_IN_PLACE: Final = frozenset(
    {
        *("additionalProperties", "additionalItems", "unevaluatedItems", "unevaluatedProperties"),
        *("items", "contains", "propertyNames", "not", "if", "then", "else"),
    }
)
_TEXTS: Final = frozenset({"format", "pattern", "$ref", "$id", "$schema", "$anchor"})
_NUMBERS: Final = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_FLAGS_OF_DRAFT_4: Final = frozenset({"exclusiveMinimum", "exclusiveMaximum"})
_SIZES: Final = frozenset(
    {
        *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
        *("minContains", "maxContains"),
    }
)
Place = tuple[str | int, ...]


class SchemaError(Exception):
    """A part of a schema that cannot be.

    Args:
        place: The keys that lead to it.
        message: What is wrong with it.
    """

    def __init__(self, place: Place, message: str) -> None:
        where = ".".join(map(str, place))[:200]
        super().__init__(f"`{where}` {message}" if where else message)


def check_parameters(schema: Mapping[str, Any]) -> None:
    """Checks the parameters of a tool, which are a JSON schema (draft 2020-12, or 7) of an object.

    Keywords that the drafts don't know are fine, and what `format` and `pattern` say is not
    looked at, nor what only describes (`title`, `description`, `$comment`; some clients send null).
    `exclusiveMinimum` and `exclusiveMaximum` may be true or false, as in draft 4 and OpenAPI 3.0.

    Raises:
        SchemaError: They are none; says where.
    """
    declared = schema.get("type", "object")
    if declared != "object" and declared != ["object"]:
        raise SchemaError(("type",), "must be 'object', as parameters have names")
    open_parts: list[tuple[Place, Any, int]] = [((), schema, 0)]
    targets: list[tuple[Place, Any, int]] = []
    seen: set[int] = set()
    while open_parts or targets:
        # What references lead to comes last: most of it is checked where it stands.
        place, part, depth = (open_parts or targets).pop()
        if isinstance(part, bool) or id(part) in seen:
            continue
        seen.add(id(part))
        if not isinstance(part, Mapping):
            raise SchemaError(place, "must be a schema: an object, true or false")
        if depth > MAX_SCHEMA_DEPTH:
            raise SchemaError(place[:4], f"nests more than {MAX_SCHEMA_DEPTH} schemas")
        for keyword, value in part.items():
            inner = _inner(keyword, value, (*place, keyword))
            open_parts += [(*found, depth + 1) for found in inner]
            _check(keyword, value, (*place, keyword))
        reference = part.get("$ref")
        if isinstance(reference, str):
            targets += _target(reference, schema, (*place, "$ref"))


def _inner(keyword: str, value: Any, place: Place) -> list[tuple[Place, Any]]:
    """The schemas that stand under a keyword."""
    if keyword in _IN_OBJECT:
        if not isinstance(value, Mapping):
            raise SchemaError(place, "must be an object")
        return [((*place, name), inner) for name, inner in value.items()]
    if keyword in _IN_LIST or (keyword == "items" and isinstance(value, list)):
        if not isinstance(value, list) or not value:
            raise SchemaError(place, "must be a list with at least one schema")
        return [((*place, index), inner) for index, inner in enumerate(value)]
    return [(place, value)] if keyword in _IN_PLACE else []


def _check(keyword: str, value: Any, place: Place) -> None:
    """Checks a keyword that holds no schema."""
    if keyword == "type":
        names = value if isinstance(value, list) else [value]
        wrong = [name for name in names if not isinstance(name, str) or name not in _TYPES]
        if wrong or not names:
            shown = f"{wrong[0]!r:.60}" if wrong else "an empty list"
            raise SchemaError(place, f"is {shown}, not one of {', '.join(sorted(_TYPES))}")
    elif keyword == "required":
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise SchemaError(place, "must be a list of names")
    elif keyword == "enum":
        if not isinstance(value, list) or not value:
            raise SchemaError(place, "must be a list with at least one value")
    elif keyword in _TEXTS:
        if not isinstance(value, str):
            raise SchemaError(place, "must be a string")
    elif keyword in _FLAGS_OF_DRAFT_4 and isinstance(value, bool):
        pass
    elif keyword in _NUMBERS or keyword == "multipleOf":
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise SchemaError(place, "must be a number")
        if keyword == "multipleOf" and value <= 0:
            raise SchemaError(place, "must be more than 0")
    elif keyword in _SIZES and not _is_size(value):
        raise SchemaError(place, "must be an integer that is not negative")


def _is_size(value: Any) -> bool:
    """A whole number, however it is written: to JSON Schema 1.0 is an integer."""
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return is_whole and not isinstance(value, bool) and value >= 0


def _target(
    reference: str, root: Mapping[str, Any], place: Place
) -> tuple[tuple[Place, Any, int], ...]:
    """The schema that a reference to the schema itself points to, with its place.

    Nothing for an anchor, whose schema is checked where it stands.
    """
    if not reference.startswith("#"):
        raise SchemaError(place, "must begin with '#'; other documents are not fetched")
    if reference != "#" and not reference.startswith("#/"):
        return ()
    target = referred_part(root, reference)
    if target is None:
        raise SchemaError(place, f"points to nothing: {reference!r:.100}")
    return ((tuple(reference[2:].split("/")), target, 0),)
