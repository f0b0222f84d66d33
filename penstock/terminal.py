"""Text of others made harmless for a terminal: what would steer it is shown instead."""

import re
from typing import Final

_CONTROLS: Final = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and line feed, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what turns the direction of writing
    "\u2028\u2029"  # line breaks that are no line feed
    "\ud800-\udfff"  # no characters: writing one would fail
)
_UNSAFE: Final = re.compile(f"[{_CONTROLS}]")
_UNSAFE_IN_LINE: Final = re.compile(f"[\t\n{_CONTROLS}]")


def visible(text: str) -> str:
    r"""The text with `\x1b` and the like in place of control characters but tab and line feed."""
    return _UNSAFE.sub(_escaped, text)


def visible_line(text: str) -> str:
    """As `visible`, with tabs and line feeds escaped too, for what must stay one line."""
    return _UNSAFE_IN_LINE.sub(_escaped, text)


def visible_json(text: str) -> str:
    """The same JSON with such characters as JSON's escapes; the layout's line feeds stay."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _escaped(match: re.Match[str]) -> str:
    number = ord(match[0])
    short = {9: "\\t", 10: "\\n"}.get(number)
    return short or (f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}")
