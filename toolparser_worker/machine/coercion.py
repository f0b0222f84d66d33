"""Turns the plain text of a parameter into the JSON that the tool's schema asks for."""

import ast
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from toolparser_worker.machine.blanks import stripped
from toolparser_worker.machine.reading import quoted
from toolparser_worker.machine.tool_schemas import Schema, SchemaNode, alternatives

MAX_VALUE_DEPTH = 128
"""Lists and objects within each other; what nests deeper is text, as Python's stack has an end."""

_MAX_DEPTH = 16
_MAX_DIGITS = 4000
"""Of an integer; Python's own parser reads no more than 4,300."""

_INTEGER = re.compile(rf"[+-]?[0-9]{{1,{_MAX_DIGITS}}}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]++\.?[0-9]*+|\.[0-9]++)(?:[eE][+-]?[0-9]++)?")
"""Python's `float` would take underscores and the digits of every script, too."""
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?")
_TYPE_NAMES = {
    "str": "string",
    "text": "string",
    "varchar": "string",
    "char": "string",
    "enum": "string",
    "int": "integer",
    "int32": "integer",
    "int64": "integer",
    "uint": "integer",
    "long": "integer",
    "short": "integer",
    "unsigned": "integer",
    "num": "number",
    "float": "number",
    "float32": "number",
    "float64": "number",
    "double": "number",
    "bool": "boolean",
    "binary": "boolean",
    "dict": "object",
    "map": "object",
    "list": "array",
    "arr": "array",
    "tuple": "array",
    "none": "null",
}


class _NoValue:
    """Says that a text is no value of a type, where None would be a value."""


_NO_VALUE = _NoValue()


class Number:
    """A JSON number as it is written, as no float has all its digits."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class ExactFloat(float):
    """A float of a schema that `written` writes with the digits it was read with."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def schema_types(schema: Schema) -> frozenset[str]:
    """The JSON types that a schema names anywhere at its top; empty when it names none."""
    if isinstance(schema, SchemaNode):
        if schema.types is None:
            schema.types = frozenset[str]().union(*map(_own_types, alternatives(schema)))
        return schema.types
    return frozenset[str]().union(*map(_own_types, alternatives(schema)))


def _own_types(part: Mapping[str, Any]) -> frozenset[str]:
    """The types that one part of a schema names itself."""
    if isinstance(part, SchemaNode) and part.own_types is not None:
        return part.own_types
    found: set[str] = set()
    declared = part.get("type")
    for name in declared if isinstance(declared, list) else [declared]:
        if isinstance(name, str):
            found.add(_TYPE_NAMES.get(name.lower(), name.lower()))
    values = part.get("enum")
    found.update(map(_type_of, values if isinstance(values, list) else ()))
    if "const" in part:
        found.add(_type_of(part["const"]))
    types = frozenset(found)
    if isinstance(part, SchemaNode):
        part.own_types = types
    return types


def is_plain_text(schema: Schema, undeclared: Literal["text", "json"]) -> bool:
    """Whether a value is the text itself, whatever it says."""
    types = schema_types(schema)
    return types == {"string"} if types else undeclared == "text"


def coerced(
    text: str,
    schema: Schema,
    *,
    undeclared: Literal["text", "json"] = "text",
    reads_python: bool = False,
) -> str:
    """The JSON text of the value that a text stands for.

    Args:
        text: What the model wrote.
        schema: The parameter's JSON schema; None when there is none.
        undeclared: What to make of a text without declared type.
        reads_python: Try Python's literals where JSON fails, for text without declared type, too.
    """
    return written(read_value(text, schema, undeclared=undeclared, reads_python=reads_python))


def read_value(
    text: str,
    schema: Schema,
    *,
    undeclared: Literal["text", "json"] = "text",
    reads_python: bool = False,
) -> Any:
    """The value that a text stands for, as `coerced` has it, for `written`."""
    types = schema_types(schema)
    if not types:
        return text if undeclared == "text" else _json_or_text(text, reads_python)
    for kind in ("null", "integer", "number", "boolean", "object", "array"):
        if kind in types:
            value = _read(text, kind)
            if not isinstance(value, _NoValue):
                return conformed(value, schema)
    return text if "string" in types else _json_or_text(text, reads_python)


def written(value: Any) -> str:
    """The JSON of a value however deep it nests, with the digits of its numbers as they were."""
    found: list[str] = []
    waiting = [value]  # the next one last; text that is written already is a `Number`
    while waiting:
        one = waiting.pop()
        if isinstance(one, Number | ExactFloat):
            found.append(one.text)
        elif isinstance(one, str):
            found.append(quoted(one))
        elif isinstance(one, dict | list):
            start, end = "{}" if isinstance(one, dict) else "[]"
            members = (
                [(f"{quoted(key)}: ", item) for key, item in one.items()]
                if isinstance(one, dict)
                else [("", item) for item in one]
            )
            found.append(start)
            waiting.append(Number(end))
            for index in reversed(range(len(members))):
                key, item = members[index]
                waiting += (item, Number(f", {key}" if index else key))
        else:
            found.append(json.dumps(one))
    return "".join(found)


def loaded(text: str) -> Any:
    """The value of a JSON text, whose numbers keep their digits, for `written`.

    Raises:
        ValueError: It is no JSON, or has an integer of more digits than Python reads.
        RecursionError: It nests too deep.
    """
    return json.loads(text, parse_int=_digits, parse_float=Number, parse_constant=_refuse)


def json_or_text(text: str) -> str:
    """The text itself when it is JSON, otherwise the text as a JSON string."""
    return written(_json_or_text(text, False))


def _json_or_text(text: str, reads_python: bool) -> Any:
    value = _loaded(text)
    if isinstance(value, _NoValue) and reads_python:
        value = _python_value(text)
    return text if isinstance(value, _NoValue) else value


def conformed(value: Any, schema: Schema, depth: int = 0) -> Any:
    """A value whose declared members and items have their declared types, where they can."""
    if schema is None or depth > _MAX_DEPTH:
        return value
    if isinstance(value, dict):
        properties = schema.get("properties")
        if not isinstance(properties, Mapping):
            return value
        return {
            key: _fitted(item, properties.get(key), depth) if key in properties else item
            for key, item in value.items()
        }
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        return [_fitted(item, schema["items"], depth) for item in value]
    return value


def _fitted(value: Any, schema: Any, depth: int) -> Any:
    if not isinstance(schema, Mapping):
        return value
    types = schema_types(schema)
    if isinstance(value, str) and types and "string" not in types:
        for kind in ("null", "integer", "number", "boolean", "object", "array"):
            if kind in types:
                read = _read(value, kind)
                if not isinstance(read, _NoValue):
                    value = read
                    break
    elif types == {"string"} and not isinstance(value, str) and value is not None:
        return written(value)
    return conformed(value, schema, depth + 1)


def _read(text: str, kind: str) -> Any:
    """The value of a text as one JSON type."""
    bare = stripped(text)
    if kind == "null":
        return None if bare.lower() == "null" else _NO_VALUE
    if kind == "integer":
        return _integer(bare)
    if kind == "number":
        return _number(bare)
    if kind == "boolean":
        return {"true": True, "1": True, "false": False, "0": False}.get(bare.lower(), _NO_VALUE)
    wanted = dict if kind == "object" else list
    value = _loaded(text)
    if not isinstance(value, wanted):
        value = _python_value(text)
    return value if isinstance(value, wanted) else _NO_VALUE


def _integer(text: str) -> Any:
    if not _INTEGER.fullmatch(text):
        return _NO_VALUE
    return Number(text) if _JSON_NUMBER.fullmatch(text) else int(text)


def _number(text: str) -> Any:
    if _INTEGER.fullmatch(text):
        return _integer(text)
    if not _NUMBER.fullmatch(text):
        return _NO_VALUE
    number = float(text)
    if not math.isfinite(number):
        return _NO_VALUE
    if _JSON_NUMBER.fullmatch(text):
        return Number(text)
    return int(number) if number.is_integer() else number


def _loaded(text: str) -> Any:
    try:
        value = loaded(text)
    except (ValueError, RecursionError):
        return _NO_VALUE
    return _NO_VALUE if _is_too_deep(value, text) else value


def _is_too_deep(value: Any, text: str) -> bool:
    """Whether the value of a text nests deeper than may be."""
    if sum(map(text.count, "[{(")) <= MAX_VALUE_DEPTH:
        return False
    level = [value]
    for _ in range(MAX_VALUE_DEPTH + 1):
        nested = [one for one in level if isinstance(one, dict | list)]
        if not nested:
            return False
        level = [
            inner for one in nested for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return True


def _digits(text: str) -> Number:
    if len(text) > _MAX_DIGITS:
        raise ValueError("too many digits")
    return Number(text)


def _python_value(text: str) -> Any:
    if len(text) > 65_536:  # Python's own parser is neither linear nor safe with huge text.
        return _NO_VALUE
    try:
        value = ast.literal_eval(stripped(text))
        # Tuples become lists on this way, and all keys strings.
        value = json.loads(json.dumps(value, allow_nan=False))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return _NO_VALUE
    return _NO_VALUE if _is_too_deep(value, text) else value


def _refuse(word: str) -> None:
    raise ValueError(word)


def _type_of(value: object) -> str:
    if value is None:
        return "null"
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string")):
        if isinstance(value, kind):
            return name
    return "array" if isinstance(value, list) else "object"
