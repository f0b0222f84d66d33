"""A small JSON-schema validator for tests: the keywords that structured outputs allow."""

import re
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_FORMATS = {
    "date": r"\d{4}-\d\d-\d\d",
    "date-time": r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d.*",
    "time": r"\d\d:\d\d:\d\d.*",
    "duration": r"P.+",
    "email": r"[^@]+@[^@]+",
    "uuid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": r"\d+(\.\d+){3}",
    "ipv6": r"[0-9a-fA-F:.]+",
    "hostname": r"[A-Za-z0-9.-]+",
}


def is_valid(value: Any, schema: Any, root: Any = None) -> bool:
    """Whether a value fits a schema."""
    root = schema if root is None else root
    if schema is True or schema == {}:
        return True
    if "$ref" in schema:
        target = root
        for part in schema["$ref"].removeprefix("#").strip("/").split("/"):
            target = target[part] if part else target
        return is_valid(value, target, root)
    return all(
        check(value, schema, root)
        for check in (
            _fits_type,
            _fits_values,
            _fits_number,
            _fits_string,
            _fits_array,
            _fits_object,
        )
    )


def _fits_type(value: Any, schema: Any, root: Any) -> bool:
    if "type" not in schema:
        return True
    names = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    return any(
        isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool))
        for name in names
    )


def _fits_values(value: Any, schema: Any, root: Any) -> bool:
    if "anyOf" in schema and not any(is_valid(value, one, root) for one in schema["anyOf"]):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    return "const" not in schema or value == schema["const"]


def _fits_number(value: Any, schema: Any, root: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    return (
        value >= schema.get("minimum", value)
        and value <= schema.get("maximum", value)
        and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
        and ("multipleOf" not in schema or value % schema["multipleOf"] == 0)
    )


def _fits_string(value: Any, schema: Any, root: Any) -> bool:
    if not isinstance(value, str):
        return True
    return (
        len(value) >= schema.get("minLength", 0)
        and len(value) <= schema.get("maxLength", len(value))
        and ("pattern" not in schema or re.search(schema["pattern"], value) is not None)
        and (
            "format" not in schema
            or re.fullmatch(_FORMATS[schema["format"]], value, re.DOTALL) is not None
        )
    )


def _fits_array(value: Any, schema: Any, root: Any) -> bool:
    if not isinstance(value, list):
        return True
    items = schema.get("items", True)
    return (
        len(value) >= schema.get("minItems", 0)
        and len(value) <= schema.get("maxItems", len(value))
        and all(is_valid(item, items, root) for item in value)
    )


def _fits_object(value: Any, schema: Any, root: Any) -> bool:
    if not isinstance(value, dict):
        return True
    properties = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    return all(name in value for name in schema.get("required", ())) and all(
        is_valid(item, properties[name], root)
        if name in properties
        else others is not False and is_valid(item, others, root)
        for name, item in value.items()
    )
