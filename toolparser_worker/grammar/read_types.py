"""Texts that a reader takes for a number, a list or another value than the string they are."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from toolparser_worker.machine.coercion import schema_types

_PAD: Final = "[^!-~]*"
TEXTS: Final = {
    "null": rf"{_PAD}[nN][uU][lL][lL]{_PAD}",
    "boolean": rf"{_PAD}([tT][rR][uU][eE]|[fF][aA][lL][sS][eE]|0|1){_PAD}",
    "integer": rf"{_PAD}[+-]?[0-9]+{_PAD}",
    "number": rf"{_PAD}[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?{_PAD}",
    "array": rf"{_PAD}[\[(#\\](?s:.*)",
    "object": rf"{_PAD}[{{(#\\](?s:.*)",
}
"""By type, regular expressions for all texts that may be read as a value of it, and a few more."""


def read_types(schema: Mapping[str, Any], referred: Callable[[Any], Any]) -> set[str]:
    """The types as which a text of a schema may be read.

    Args:
        schema: Of a value that a format writes as text.
        referred: What a `$ref` refers to.
    """
    found: set[str] = set()
    waiting: list[Any] = [schema]
    seen: set[int] = set()
    while waiting:
        part = waiting.pop()
        if not isinstance(part, Mapping) or id(part) in seen:
            continue
        seen.add(id(part))
        if "$ref" in part:
            waiting.append(referred(part["$ref"]))
        own = {key: part[key] for key in ("type", "enum", "const") if key in part}
        found |= schema_types(own)
        for keyword in ("anyOf", "oneOf", "allOf"):
            waiting += part.get(keyword, ())
    # Where no type is named, some formats read whatever is JSON.
    return found or {"string", *TEXTS}


def is_read_as(value: str, kinds: set[str]) -> bool:
    """Whether a text may be read as one of some types."""
    return any(re.fullmatch(TEXTS[kind], value) for kind in kinds)
