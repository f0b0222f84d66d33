"""Reads a header value with parameters, `form-data; name="a"; filename*=utf-8''b`.

RFC 9110 §5.6.6, and RFC 8187 for a `*` behind the name of a parameter. Python's own parser for
e-mail knows far more, of which no client of a form sends anything, and fails in as many ways.
"""

import re
from typing import Final
from urllib.parse import unquote_to_bytes

from gateway.errors import InvalidRequestError

_PARAMETER: Final = re.compile(
    r"[ \t]*;[ \t]*(?:([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*="
    r'[ \t]*(?:"((?:[^"\\]|\\.)*+)"|([^";]*+))[ \t]*(?=;|\Z))?',
    re.DOTALL,
)
_ESCAPED: Final = re.compile(r'\\(["\\])')
_EXTENDED: Final = re.compile(r"(utf-8|iso-8859-1)'[^']*'([^']*)", re.IGNORECASE)


def header_parameters(value: str, name: str) -> tuple[str, dict[str, str]]:
    """What stands before the parameters, in small letters, and the parameters by name.

    The extended form of a parameter (`filename*`) goes before the plain one.

    Args:
        value: Of the header.
        name: Of the header, for errors.

    Raises:
        InvalidRequestError: It is malformed, or says something twice.
    """
    head, _, _ = value.partition(";")
    place = len(head)
    found: dict[str, str] = {}
    while place < len(value):
        match = _PARAMETER.match(value, place)
        if match is None or match.end() == place:
            raise _malformed(name)
        place = match.end()
        if match[1] is None:
            continue  # nothing between two semicolons
        key = match[1].lower()
        text = match[3].rstrip(" \t") if match[2] is None else _ESCAPED.sub(r"\1", match[2])
        if key in found:
            raise _malformed(name)
        found[key] = _extended(text, name) if key.endswith("*") else text
    extended = {key[:-1]: text for key, text in found.items() if key.endswith("*")}
    return head.strip().lower(), found | extended


def _extended(text: str, name: str) -> str:
    match = _EXTENDED.fullmatch(text)
    if match is None:
        raise _malformed(name)
    try:
        return unquote_to_bytes(match[2]).decode(match[1])
    except UnicodeDecodeError:
        raise _malformed(name) from None


def _malformed(name: str) -> InvalidRequestError:
    return InvalidRequestError(f"The {name} is malformed.")
