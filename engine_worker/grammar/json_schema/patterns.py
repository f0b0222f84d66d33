"""Regular expressions of JSON Schema as llguidance reads them."""

import json
import re
from typing import Final

from llguidance import LLMatcher, regex_to_lark

_ANY: Final = "/(?s:.*)/"
# Classes and other escapes are passed over.
_SPACE: Final = re.compile(r"\[(?:[^\]\\]|\\.)*\]|\\(?:([sS])|.)", re.DOTALL)
_SPACES: Final = {"s": "[\\s\ufeff]", "S": "[^\\s\ufeff]"}


class Patterns:
    """Says which patterns can be enforced; asks llguidance once for each."""

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}

    def are_known(self, pattern: str) -> bool:
        """Whether a string can be held to a pattern."""
        schema = json.dumps({"type": "string", "pattern": self.as_rust(pattern)})
        return self._compiles(f"start: %json {schema}\n")

    @staticmethod
    def as_rust(pattern: str) -> str:
        """A pattern in which white space is what ECMA-262 counts as such: U+FEFF too."""
        return _SPACE.sub(
            lambda match: match[0] if match[1] is None else _SPACES[match[1]], pattern
        )

    def terminal(self, pattern: str) -> str | None:
        """A terminal's body for the whole texts that have a pattern somewhere; None for unknown.

        The texts stand as they are, without the escapes of JSON.
        """
        bodies = []
        for part in _alternatives(pattern):
            starts = part.startswith("^")
            ends = part.endswith("$") and not part.endswith("\\$")
            inner = part[starts : len(part) - ends]
            if any(anchor in _unescaped(inner) for anchor in "^$"):
                return None
            body = f"/({regex_to_lark(inner, use_ascii='dw')})/" if inner else '""'
            bodies.append(
                " ".join(one for one in ("" if starts else _ANY, body, "" if ends else _ANY) if one)
            )
        whole = " | ".join(f"({body})" for body in bodies)
        return whole if self._compiles(f"start: T\nT: {whole}\n") else None

    def _compiles(self, source: str) -> bool:
        known = self._known.get(source)
        if known is None:
            known = self._known[source] = not LLMatcher.validate_grammar(source)
        return known


def _alternatives(pattern: str) -> list[str]:
    """A pattern at its outermost `|`."""
    parts, depth, in_class, is_escaped = [""], 0, False, False
    for character in pattern:
        if not is_escaped and not in_class and depth == 0 and character == "|":
            parts.append("")
            continue
        parts[-1] += character
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
    return parts


def _unescaped(pattern: str) -> str:
    """The characters of a pattern that are neither escaped nor in a class."""
    found, in_class, is_escaped = "", False, False
    for character in pattern:
        if is_escaped:
            is_escaped = False
        elif character == "\\":
            is_escaped = True
        elif in_class:
            in_class = character != "]"
        elif character == "[":
            in_class = True
        else:
            found += character
    return found
