"""Takes a tool's JSON schema apart into the kinds of value that a format spells differently."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, Literal

from toolparser_worker.errors import UnsupportedToolsError
from toolparser_worker.grammar.keywords import (
    ASSERTIONS,
    STRING_KEYWORDS,
    ConflictError,
    ImpossibleError,
    are_disjoint,
    asserted,
    check_mergeable,
    has_old_references,
    merged_keyword,
)
from toolparser_worker.grammar.lark import ANY_TEXT, regex
from toolparser_worker.machine.tool_schemas import referred_part

JsonType = Literal["string", "number", "integer", "boolean", "null", "object", "array"]
_TYPES: Final = ("string", "number", "integer", "boolean", "null", "object", "array")
_MAX_ALTERNATIVES: Final = 256
_MAX_PLACE: Final = 512
_PATTERN_PARTS: Final = re.compile(r"\\.|\(\?<?[=!]", re.DOTALL)
_UNHELD_PATTERN: Final = re.compile(r"\\[1-9k]|\(\?")
_UNHELD_FORMATS: Final = frozenset(
    ["idn-email", "idn-hostname", "iri", "iri-reference", "regex", "uri-reference", "uri-template"]
)
_BOUNDS: Final = frozenset(
    {
        *("minLength", "maxLength"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    }
)
_HEX: Final = "[0-9a-fA-F]"
_DATE: Final = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
_TIME: Final = (
    r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)
_OCTET: Final = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_LABEL: Final = "[A-Za-z0-9]([A-Za-z0-9-]{0,20}[A-Za-z0-9])?"
_POINTER: Final = "(/([^~/]|~[01]){0,60}){0,16}"
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
    "json-pointer": _POINTER,
    "relative-json-pointer": f"(0|[1-9][0-9]{{0,3}})(#|{_POINTER})",
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
        places: Where its keywords are, as pointers into the tool's parameters.
    """

    type: JsonType | Literal["any"]
    schema: Mapping[str, Any]
    values: tuple[Any, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Where the schema is, as a pointer; that of its type when it is made of several."""
        return (self.places.get("type") or next(iter(self.places.values()), "")).rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class _Placed:
    """A schema's keywords, and where each of them is in the tool's parameters."""

    schema: Mapping[str, Any]
    places: Mapping[str, str]

    def without(self, *keywords: str) -> "_Placed":
        kept = {key: value for key, value in self.schema.items() if key not in keywords}
        return _Placed(kept, self.places)


class SchemaReader:
    """Reads the schemas within the parameters of one tool.

    Args:
        root: The tool's `parameters`; references go into it.
        is_strict: Refuse what would be left to the model.

    Attributes:
        unenforced: Places of the keywords that are left to the model, in order.
    """

    def __init__(self, root: Mapping[str, Any], *, is_strict: bool = False) -> None:
        self._root = root
        self._is_strict = is_strict
        self._has_old_references = has_old_references(root)
        self._pointers = _pointers(root)
        # By the identities of two schemas: the one that a value has to satisfy for both.
        self._made: dict[tuple[int, int], Mapping[str, Any]] = {}
        self.unenforced: dict[str, None] = {}

    def resolved(self, schema: Any) -> Mapping[str, Any]:
        """The schema itself, or what it only refers to.

        Raises:
            UnsupportedToolsError: It refers to nothing, or in a circle.
        """
        for _ in range(_MAX_ALTERNATIVES):
            if schema is True:
                return {}
            if not isinstance(schema, Mapping):
                raise ImpossibleError
            if "$ref" not in schema:
                return schema
            if not self._has_old_references and _asserts_beside_reference(schema):
                return schema
            schema = self._find(schema["$ref"])
        raise UnsupportedToolsError("a schema refers to itself without end.")

    def json_schema(self, form: Form) -> dict[str, Any]:
        """A form's schema that stands alone, with the definitions of the root and its place there."""
        schema = form.schema
        definitions = {
            key: self._root[key] for key in ("$schema", "$defs", "definitions") if key in self._root
        }
        if '"#/' in json.dumps(schema) and not definitions:
            raise UnsupportedToolsError("references within a parameter must go to `$defs`.")
        return {**definitions, **schema, "x-penstock-place": form.place}

    def forms(self, schema: Any) -> list[Form]:
        """The kinds of value that a schema allows, in order.

        Raises:
            UnsupportedToolsError: Nothing satisfies it, or it can't be told apart into kinds.
        """
        # No more are made than are looked at: of alternatives of alternatives there are millions.
        found = list(islice(self._forms(self._placed(schema), 0), _MAX_ALTERNATIVES + 1))
        if len(found) > _MAX_ALTERNATIVES:
            raise UnsupportedToolsError(f"a parameter has more than {_MAX_ALTERNATIVES} forms.")
        if not found:
            raise ImpossibleError
        return found

    def whole_forms(self, schema: Any) -> list[Form]:
        """The same where what is no text is written as JSON: the engine holds such a schema whole."""
        placed = self._placed(schema)
        declared = placed.schema.get("type")
        is_whole = not {"enum", "const", "$ref"} & placed.schema.keys()
        if is_whole and declared in _TYPES and declared != "string":
            return [Form(declared, placed.schema, places=placed.places)]
        return self.forms(schema)

    def hold(self, form: Form, *enforced: str) -> None:
        """Leave to the model what says something about a form's values and isn't enforced.

        Args:
            form: Is about to be written as text.
            enforced: Keywords that what is written satisfies.

        Raises:
            UnsupportedToolsError: The tool is strict.
        """
        for keyword in asserted(form.schema, form.type):
            if keyword not in enforced:
                self.leave_out(form.places, keyword)

    def leave_out(self, places: Mapping[str, str], keyword: str, why: str = "") -> None:
        """Leave a keyword to the model, and name it.

        Raises:
            UnsupportedToolsError: The tool is strict.
        """
        place = places.get(keyword, f"/{keyword}").encode(errors="backslashreplace").decode()
        if self._is_strict:
            raise UnsupportedToolsError(
                f"`{keyword}` at {place[:200]} can't be held in it{why and f': {why}'}."
                " Leave it out, or don't ask for `strict`."
            )
        self.unenforced[place] = None

    def both(self, one: Any, other: Any) -> Any:
        """The schema of values that satisfy two schemas, the same one each time."""
        if one is True or other is True:
            return other if one is True else one
        if not isinstance(one, Mapping) or not isinstance(other, Mapping):
            return False
        made = self._made.setdefault((id(one), id(other)), {"allOf": [one, other]})
        self._pointers.setdefault(id(made), self._pointers.get(id(one), ""))
        return made

    def _placed(self, schema: Any) -> _Placed:
        schema = self.resolved(schema)
        pointer = self._pointers.get(id(schema), "")
        return _Placed(schema, {keyword: f"{pointer}/{keyword}" for keyword in schema})

    def _forms(self, placed: _Placed, depth: int) -> Iterator[Form]:
        placed = self._flat(placed, depth)
        schema = placed.schema
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                yield from self._alternatives(placed, keyword, depth)
                return
        if "const" in schema or "enum" in schema:
            yield from self._listed(placed)
            return
        declared = schema.get("type", "any")
        for name in declared if isinstance(declared, list) else [declared]:
            if name not in (*_TYPES, "any"):
                raise UnsupportedToolsError(f"there is no type {name!r}.")
            kept = {**schema, "type": name} if name != "any" else schema
            yield Form(name, kept, places=placed.places)

    def _alternatives(self, placed: _Placed, keyword: str, depth: int) -> Iterator[Form]:
        """The forms of each part of `anyOf` or `oneOf`, beside what else the schema says."""
        rest = placed.without(keyword)
        parts = []
        for part in placed.schema[keyword]:
            with suppress(ImpossibleError):
                parts.append(self._flat(self._placed(part), depth + 1))
        if keyword == "oneOf" and not are_disjoint([part.schema for part in parts]):
            self.leave_out(placed.places, keyword, "a value may satisfy two of its schemas")
        for part in parts:
            try:
                both = self._merged(rest, part)
            except ImpossibleError:
                continue
            except ConflictError:
                self.leave_out(placed.places, keyword, "it overlaps with what stands beside it")
                both = rest
            yield from self._forms(both, depth + 1)

    def _flat(self, placed: _Placed, depth: int) -> _Placed:
        """A schema with what it refers to and its `allOf` as one, as far as that can be said."""
        for level in range(depth, _MAX_ALTERNATIVES):
            schema = placed.schema
            parts = [self._find(schema["$ref"])] if "$ref" in schema else []
            parts += schema.get("allOf", ())
            if not parts:
                return placed
            places = placed.places
            placed = placed.without("$ref", "allOf")
            apart = []
            for part in parts:
                try:
                    placed = self._merged(placed, self._flat(self._placed(part), level + 1))
                except ConflictError:
                    apart.append(part)
            if apart:
                keyword = "allOf" if "allOf" in places else "$ref"
                place = {**placed.places, "allOf": places[keyword]}
                return _Placed({**placed.schema, "allOf": apart}, place)
        raise UnsupportedToolsError("a schema refers to itself without end.")

    def _merged(self, one: _Placed, other: _Placed) -> _Placed:
        """One schema for two.

        Raises:
            ConflictError: There is none.
            ImpossibleError: Nothing satisfies both.
        """
        check_mergeable(one.schema, other.schema)
        merged = dict(one.schema)
        for keyword, value in other.schema.items():
            if keyword not in merged:
                merged[keyword] = value
            elif keyword == "properties":
                members = dict(merged[keyword])
                for key, schema in value.items():
                    members[key] = self.both(members[key], schema) if key in members else schema
                merged[keyword] = members
            else:
                merged[keyword] = merged_keyword(keyword, merged[keyword], value)
        return _Placed(merged, {**other.places, **one.places})

    def _listed(self, placed: _Placed) -> Iterator[Form]:
        """The listed values by type, without those that the rest of the schema forbids."""
        schema = placed.schema
        values = [schema["const"]] if "const" in schema else list(schema["enum"])
        if "const" in schema and "enum" in schema:
            texts = {json.dumps(value, sort_keys=True) for value in schema["enum"]}
            values = [value for value in values if json.dumps(value, sort_keys=True) in texts]
        declared = schema.get("type")
        names = declared if isinstance(declared, list) else [declared] if declared else _TYPES
        allowed = set(names)
        if "number" in allowed:
            allowed.add("integer")
        by_type: dict[JsonType, list[Any]] = {}
        for value in values:
            kind = type_of(value)
            if kind in allowed and _is_within(schema, value):
                by_type.setdefault(kind, []).append(value)
        if not by_type:
            raise UnsupportedToolsError("an `enum` has no value of its type.")
        listing = "const" if "const" in schema else "enum"
        places = {"enum": placed.places.get(listing, "")}
        for kind, found in by_type.items():
            for keyword in asserted(schema, kind):
                if keyword not in _BOUNDS:
                    self.leave_out(placed.places, keyword, "beside listed values")
            yield Form(kind, {"enum": found}, tuple(found), places)

    def _find(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise UnsupportedToolsError(f"the reference {reference!r} goes outside of the schema.")
        target = referred_part(self._root, reference)
        if target is None:
            raise UnsupportedToolsError(f"the reference {reference!r} goes nowhere.")
        return target


def _asserts_beside_reference(schema: Mapping[str, Any]) -> bool:
    return any(keyword in ASSERTIONS for keyword in schema if keyword != "$ref")


def _pointers(root: Mapping[str, Any]) -> dict[int, str]:
    """Where each object of a JSON value is, by its identity; a long way is cut short."""
    found: dict[int, str] = {}
    waiting: list[tuple[Any, str]] = [(root, "")]
    while waiting:
        node, place = waiting.pop()
        if isinstance(node, Mapping) and id(node) not in found:
            found[id(node)] = place
            waiting += [(value, f"{place}/{key}"[:_MAX_PLACE]) for key, value in node.items()]
        elif isinstance(node, list):
            waiting += [(value, f"{place}/{index}") for index, value in enumerate(node)]
    return found


def _is_within(schema: Mapping[str, Any], value: Any) -> bool:
    """Whether a listed value is within the bounds that a schema sets beside it."""
    if isinstance(value, str):
        size = len(value)
        return bool(schema.get("minLength", 0) <= size <= schema.get("maxLength", size))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    least, most = schema.get("minimum", value), schema.get("maximum", value)
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    return bool(
        least <= value <= most
        and (above is None or value > above)
        and (below is None or value < below)
    )


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
    """A terminal's body for numbers of which nothing else is said; else None.

    Bounded digits: what is written is a number that any reader can hold.
    """
    if asserted(form.schema, form.type) or {"anyOf", "oneOf"} & form.schema.keys():
        return None
    if form.type == "integer":
        return "/-?(0|[1-9][0-9]{0,14})/"
    return "/-?(0|[1-9][0-9]{0,14})(\\.[0-9]{1,9})?/"


def text_terminals(reader: SchemaReader, form: Form, *, is_trimmed: bool = False) -> list[str]:
    """Bodies of terminals that a string's text has to fit, all of them.

    Args:
        reader: Told of what the text isn't held to.
        form: Of type `string` or `any`, without listed values.
        is_trimmed: The reader drops white space around the text, so there must be none.

    Raises:
        UnsupportedToolsError: The tool is strict, and the text can't be held to its schema.
    """
    schema = form.schema
    reader.hold(form, *STRING_KEYWORDS)
    bodies = []
    if "pattern" in schema:
        why = _unheld_pattern(schema["pattern"])
        if why:
            reader.leave_out(form.places, "pattern", why)
        else:
            bodies.append(_pattern(schema["pattern"]))
    # A format that is not known says nothing, as JSON Schema has it.
    if schema.get("format") in _FORMATS:
        bodies.append(regex(_FORMATS[schema["format"]]))
    elif schema.get("format") in _UNHELD_FORMATS:
        reader.leave_out(form.places, "format")
    if "minLength" in schema or "maxLength" in schema:
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        bodies.append(f"/(?s:.){{{least},{most}}}/")
    if bodies and is_trimmed:
        bodies.append("/(\\S((?s:.*)\\S)?)?/")
    return bodies or [ANY_TEXT]


def _unheld_pattern(pattern: str) -> str:
    """Why a text can't be held to a pattern; empty where it can."""
    if any(_UNHELD_PATTERN.match(part[0]) for part in _PATTERN_PARTS.finditer(pattern)):
        return "look-around and back references are no regular expressions"
    starts, ends, inner = _anchored(pattern)
    if "|" in _outermost(inner) and (starts or ends):
        return f"in {pattern[:100]!r}, put the alternatives into parentheses"
    return ""


def _pattern(pattern: str) -> str:
    """A search for a pattern as a match of the whole text."""
    starts, ends, inner = _anchored(pattern)
    return " ".join(
        part
        for part in (
            "" if starts else ANY_TEXT,
            regex(f"({inner})", ascii_words=True),
            "" if ends else ANY_TEXT,
        )
        if part
    )


def _anchored(pattern: str) -> tuple[bool, bool, str]:
    """Whether a pattern begins and ends with an anchor, and what is between."""
    starts = pattern.startswith("^")
    ends = pattern.endswith("$") and not pattern.endswith("\\$")
    return starts, ends, pattern[starts : len(pattern) - ends]


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
