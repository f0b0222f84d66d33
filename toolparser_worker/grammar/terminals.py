"""Bodies of terminals for the numbers and texts of a schema."""

import re
from typing import Final

from toolparser_worker.grammar.keywords import STRING_KEYWORDS, asserted
from toolparser_worker.grammar.lark import ANY_TEXT, regex
from toolparser_worker.grammar.read_types import TEXTS
from toolparser_worker.grammar.schemas import Form, SchemaReader

_PATTERN_PARTS: Final = re.compile(r"\\.|\(\?<?[=!]", re.DOTALL)
_UNHELD_PATTERN: Final = re.compile(r"\\[1-9k]|\(\?")
_UNHELD_FORMATS: Final = frozenset(
    ["idn-email", "idn-hostname", "iri", "iri-reference", "regex", "uri-reference", "uri-template"]
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
    "email": (
        r"[A-Za-z0-9_+-]{1,30}(\.[A-Za-z0-9_+-]{1,30}){0,2}"
        rf"@{_LABEL}(\.{_LABEL}){{1,3}}"
    ),
    "hostname": rf"{_LABEL}(\.{_LABEL}){{0,3}}",
    "ipv4": rf"{_OCTET}(\.{_OCTET}){{3}}",
    "ipv6": f"({_HEX}{{1,4}}:){{7}}{_HEX}{{1,4}}",
    "uuid": f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
    "json-pointer": _POINTER,
    "relative-json-pointer": f"(0|[1-9][0-9]{{0,3}})(#|{_POINTER})",
    "uri": r"https?://[a-z0-9.-]{1,60}(/[A-Za-z0-9._~-]{0,30}){0,8}",
}
"""Subsets are fine: what is written fits the format."""


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
    bodies += [f"~({regex(TEXTS[kind])})" for kind in sorted(form.unlike)]
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
