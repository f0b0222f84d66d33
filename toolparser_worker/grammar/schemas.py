"""Takes a tool's JSON schema apart into the kinds of value that a format spells differently."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal

from toolparser_worker.errors import UnsupportedToolsError
from toolparser_worker.grammar.lark import ANY_TEXT, quoted, regex
from toolparser_worker.machine.tool_schemas import referred_part

JsonType = Literal["string", "number", "integer", "boolean", "null", "object", "array"]
_TYPES: Final = ("string", "number", "integer", "boolean", "null", "object", "array")
_MAX_ALTERNATIVES: Final = 256
_NUMERIC_KEYWORDS: Final = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
)
_REFUSED_KEYWORDS: Final = ("allOf", "oneOf", "not", "if", "dependentSchemas", "prefixItems")
_HEX: Final = "[0-9a-fA-F]"
_DATE: Final = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
_TIME: Final = (
    r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)
_OCTET: Final = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_LABEL: Final = "[A-Za-z0-9]([A-Za-z0-9-]{0,20}[A-Za-z0-9])?"
_FORMATS: Final = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": r"P([0-9]{1,4}D(T[0-9]{1,4}H)?|T[0-9]{1,4}[HMS]|[0-9]{1,4}[WMY])",
    "email": rf"[A-Za-z0-9_+-]{{1,30}}(\.[A-Za-z0-9_+-]{{1,30}}){{0,2}}@{_LABEL}(\.{_LABEL}){{1,3}}",
    "hostname": rf"{_LABEL}(\.{_LABEL}){{0,3}}",
    "ipv4": rf"{_OCTET}(\.{_OCTET}){{3}}",
    "ipv6": f"({_HEX}{{1,4}}:){{7}}{_HEX}{{1,4}}",
    "uuid": f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
    "uri": r"https?://[a-z0-9.-]{1,60}(/[A-Za-z0-9._~-]{0,30}){0,8}",
}
"""Subsets are fine: what is written fits the format."""


@dataclass(frozen=True, slots=True)
class Form:
    """One kind of value that a schema allows.

    Attributes:
        type: The JSON type; `any` for a value about which nothing is said.
        schema: What is left to say about it, with the definitions that it refers to.
        values: The only values, when the schema lists them; all of the type.
    """

    type: JsonType | Literal["any"]
    schema: Mapping[str, Any]
    values: tuple[Any, ...] = ()


class SchemaReader:
    """Reads the schemas within the parameters of one tool.

    Args:
        root: The tool's `parameters`; references go into it.
    """

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root

    def resolved(self, schema: Any) -> Mapping[str, Any]:
        """The schema itself, or what it refers to.

        Raises:
            UnsupportedToolsError: It refers to nothing, or in a circle.
        """
        for _ in range(_MAX_ALTERNATIVES):
            if schema is True:
                return {}
            if not isinstance(schema, Mapping):
                raise UnsupportedToolsError("a schema that allows nothing can't be written.")
            reference = schema.get("$ref")
            if reference is None:
                return schema
            schema = self._find(reference)
        raise UnsupportedToolsError("a schema refers to itself without end.")

    def json_schema(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """A schema that stands alone, with the definitions of the root."""
        definitions = {
            key: self._root[key] for key in ("$defs", "definitions") if key in self._root
        }
        if '"#/' in json.dumps(schema) and not definitions:
            raise UnsupportedToolsError("references within a parameter must go to `$defs`.")
        return {**definitions, **schema}

    def forms(self, schema: Any) -> list[Form]:
        """The kinds of value that a schema allows, in order.

        Raises:
            UnsupportedToolsError: A keyword that plain text can't be held to.
        """
        # No more are made than are looked at: of alternatives of alternatives there are millions.
        found = list(islice(self._forms(schema, 0), _MAX_ALTERNATIVES + 1))
        if len(found) > _MAX_ALTERNATIVES:
            raise UnsupportedToolsError(f"a parameter has more than {_MAX_ALTERNATIVES} forms.")
        return found

    def _forms(self, schema: Any, depth: int) -> Iterator[Form]:
        if depth > _MAX_ALTERNATIVES:
            raise UnsupportedToolsError("a schema refers to itself without end.")
        schema = self.resolved(schema)
        for keyword in _REFUSED_KEYWORDS:
            if keyword in schema:
                raise UnsupportedToolsError(f"`{keyword}` can't be written in this format.")
        if "anyOf" in schema:
            rest = {key: value for key, value in schema.items() if key != "anyOf"}
            for part in schema["anyOf"]:
                yield from self._forms({**rest, **self.resolved(part)}, depth + 1)
            return
        if "const" in schema or "enum" in schema:
            yield from _listed(schema)
            return
        declared = schema.get("type", "any")
        for name in declared if isinstance(declared, list) else [declared]:
            if name not in (*_TYPES, "any"):
                raise UnsupportedToolsError(f"there is no type {name!r}.")
            yield Form(name, {**schema, "type": name} if name != "any" else schema)

    def _find(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise UnsupportedToolsError(f"the reference {reference!r} goes outside of the schema.")
        target = referred_part(self._root, reference)
        if target is None:
            raise UnsupportedToolsError(f"the reference {reference!r} goes nowhere.")
        return target


def _listed(schema: Mapping[str, Any]) -> Iterator[Form]:
    values = [schema["const"]] if "const" in schema else list(schema["enum"])
    declared = schema.get("type")
    allowed = set(declared if isinstance(declared, list) else [declared] if declared else _TYPES)
    if "number" in allowed:
        allowed.add("integer")
    by_type: dict[JsonType, list[Any]] = {}
    for value in values:
        kind = type_of(value)
        if kind in allowed or (kind == "integer" and "number" in allowed):
            by_type.setdefault(kind, []).append(value)
    if not by_type:
        raise UnsupportedToolsError("an `enum` has no value of its type.")
    for kind, found in by_type.items():
        yield Form(kind, {"enum": found}, tuple(found))


def type_of(value: Any) -> JsonType:
    """The JSON type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def number_terminal(form: Form) -> str | None:
    """A terminal's body for numbers without bounds; None when the schema bounds them.

    Bounded digits: what is written is a number that any reader can hold.
    """
    if _NUMERIC_KEYWORDS & form.schema.keys():
        return None
    if form.type == "integer":
        return "/-?(0|[1-9][0-9]{0,14})/"
    return "/-?(0|[1-9][0-9]{0,14})(\\.[0-9]{1,9})?/"


def text_terminals(form: Form, *, is_trimmed: bool = False) -> list[str]:
    """Bodies of terminals that a string's text has to fit, all of them.

    Args:
        form: Of type `string`, without listed values.
        is_trimmed: The reader drops white space around the text, so there must be none.

    Raises:
        UnsupportedToolsError: A pattern or format that can't be followed.
    """
    schema = form.schema
    bodies = []
    if "pattern" in schema:
        bodies.append(_pattern(schema["pattern"]))
    # A format that is not known says nothing, as JSON Schema has it.
    if schema.get("format") in _FORMATS:
        bodies.append(regex(_FORMATS[schema["format"]]))
    if "minLength" in schema or "maxLength" in schema:
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        bodies.append(f"/(?s:.){{{least},{most}}}/")
    if bodies and is_trimmed:
        bodies.append("/(\\S((?s:.*)\\S)?)?/")
    return bodies or [ANY_TEXT]


def _pattern(pattern: str) -> str:
    """A search for a pattern as a match of the whole text."""
    starts = pattern.startswith("^")
    ends = pattern.endswith("$") and not pattern.endswith("\\$")
    inner = pattern[starts : len(pattern) - ends]
    if "|" in _outermost(inner) and (starts or ends):
        raise UnsupportedToolsError(
            f"in the pattern {pattern[:100]!r}, put the alternatives into parentheses."
        )
    return " ".join(
        part
        for part in (
            "" if starts else ANY_TEXT,
            regex(f"({inner})", ascii_words=True),
            "" if ends else ANY_TEXT,
        )
        if part
    )


def _outermost(pattern: str) -> str:
    """The characters of a pattern that stand in no parentheses or brackets."""
    found = []
    depth, in_class, is_escaped = 0, False, False
    for character in pattern:
        if is_escaped:
            is_escaped = False
        elif character == "\\":
            is_escaped = True
        elif in_class:
            in_class = character != "]"
        elif character == "[":
            in_class = True
        elif character in "()":
            depth += 1 if character == "(" else -1
        elif depth == 0:
            found.append(character)
    return "".join(found)


def literals(values: tuple[Any, ...]) -> str:
    """An expression for one of some texts."""
    return " | ".join(quoted(value) for value in values)
