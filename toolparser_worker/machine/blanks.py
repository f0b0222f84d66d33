"""White space, as the whole parser means it: JSON's four characters (RFC 8259) and no others.

What only Unicode takes for white space (U+00A0, U+3000, U+0085, U+001C and so on) is text like any
other: between two markers it is something else than white space, and content keeps it.
"""

import re
from typing import Final

BLANKS: Final = " \t\n\r"
BLANK: Final = r"[ \t\n\r]"
"""One of them, as a part of a regular expression."""

_RUN = re.compile(f"{BLANK}*+")


def after_space(text: str, position: int) -> int:
    """The position of the first character, from one on, that isn't white space."""
    return _RUN.match(text, position).end()  # type: ignore[union-attr]


def stripped(text: str) -> str:
    """The text without the white space around it."""
    return text.strip(BLANKS)
