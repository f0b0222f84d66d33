"""Regular expressions of JSON Schema as llguidance reads them."""

import json
import re
import warnings
from functools import cache
from typing import Any, Final

from llguidance import LLMatcher, LLTokenizer, regex_to_lark

from engine_worker.grammar.json_schema.formats import (
    MAX_LENGTHS,
    NATIVE_FORMATS,
    OWN_FORMATS,
    UNDECIDED,
)
from engine_worker.grammar.json_schema.style import dumped

_ANY: Final = "/(?s:.*)/"
# Classes and other escapes are passed over.
_SPACE: Final = re.compile(r"\[(?:[^\]\\]|\\.)*\]|\\(?:([sS])|.)", re.DOTALL)
_END: Final = re.compile(r"\[(?:[^\]\\]|\\.)*\]|\\.|(\$)", re.DOTALL)
_SHARED: Final = re.compile(
    r"(?:[^\\]|\\(?:[dDwWsSbBnrtfv]|[1-9](?![0-9])|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[^a-zA-Z0-9]))*"
)
"""Escapes that mean the same to Python and in ECMA-262."""
_OTHER: Final = re.compile(r"\(\?(?![:=!]|<[=!])|[*+?}]\+|\[\^?\]")
"""Groups, quantifiers and classes that don't."""
_LIKELY_BYTES: Final = b'"0123456789.-abAB'
"""What texts are tried of; the first ones first."""
_ALL_BYTES: Final = 2**256 - 1
_MAX_LOOKED: Final = 64
_SPACES: Final = {"s": "[\\s\ufeff]", "S": "[^\\s\ufeff]"}


class Patterns:
    """Says which patterns can be enforced, and which texts have them; asks llguidance for both."""

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}
        self._matchers: dict[str, LLMatcher | None] = {}
        self._native: dict[str, LLMatcher] = {}
        self._inhabited: dict[str, bool] = {}

    def matches(self, pattern: str, text: str) -> bool | None:
        """Whether a text has a pattern somewhere; None when that can't be told."""
        if pattern not in self._matchers:
            schema = {"type": "string", "pattern": self.as_rust(pattern)}
            self._matchers[pattern] = self._matcher(schema) if self.are_known(pattern) else None
        matcher = self._matchers[pattern]
        return _by_python(pattern, text) if matcher is None else _is_written(matcher, text)

    def has_format(self, name: str, text: str) -> bool | None:
        """Whether a text has a format; None when that can't be told."""
        if name in OWN_FORMATS:
            is_short = len(text) <= MAX_LENGTHS.get(name, len(text))
            has = is_short and self.matches(f"^({OWN_FORMATS[name]})$", text)
        elif name in NATIVE_FORMATS:
            if name not in self._native:
                self._native[name] = self._matcher({"type": "string", "format": name})
            has = _is_written(self._native[name], text)
        else:
            return True  # an annotation
        if has is False and any(part in text for part in UNDECIDED.get(name, ())):
            return None
        return has

    def _matcher(self, schema: dict[str, Any]) -> LLMatcher:
        source = f"start: %json {json.dumps(schema)}\n"
        return LLMatcher(_byte_tokenizer(), source, log_level=0)

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

    def has_texts(self, body: str) -> bool:
        """Whether a terminal with this body matches any text; true when in doubt."""
        source = f"start: T\nT: {body}\n"
        if source not in self._inhabited:
            matcher = LLMatcher(_byte_tokenizer(), source, log_level=0)
            self._inhabited[source] = _may_match(matcher)
        return self._inhabited[source]

    def has_values(self, schema: str) -> bool:
        """Whether a schema that llguidance compiles allows any value."""
        source = f"start: %json {schema}\n"
        if source not in self._inhabited:
            message = LLMatcher.validate_grammar(source)
            self._inhabited[source] = "Unsatisfiable schema" not in message
        return self._inhabited[source]

    def _compiles(self, source: str) -> bool:
        known = self._known.get(source)
        if known is None:
            known = self._known[source] = not LLMatcher.validate_grammar(source)
        return known


@cache
def _byte_tokenizer() -> LLTokenizer:
    return LLTokenizer("byte")


def _may_match(matcher: LLMatcher) -> bool:
    """Whether a matcher accepts any text: looks at a few, since an empty mask comes too late."""
    waiting, is_all = [matcher], True
    for _ in range(_MAX_LOOKED):
        if not waiting:
            return not is_all
        one = waiting.pop()
        if one.is_error() or one.is_accepting():
            return True
        mask = int.from_bytes(one.compute_bitmask(), "little")
        allowed = [byte for byte in _LIKELY_BYTES if mask >> byte & 1]
        is_all = is_all and len(allowed) == (mask & _ALL_BYTES).bit_count()
        for byte in reversed(allowed):
            longer = one.deep_copy()
            longer.consume_token(byte)
            waiting.append(longer)
    return True


def _is_written(matcher: LLMatcher, text: str) -> bool | None:
    """Whether a text is one that llguidance writes; None when it gives up."""
    try:
        written = dumped(text).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return None
    matcher.reset()
    taken = matcher.try_consume_tokens(list(written))
    if matcher.is_error():
        return None
    return bool(taken == len(written)) and matcher.is_accepting()


def _by_python(pattern: str, text: str) -> bool | None:
    """Whether a text has a pattern with look-around or back references, as Python reads it.

    None where Python might read it in another way than ECMA-262.
    """
    is_plain = text.isascii() and text.isprintable()
    if not is_plain or not _SHARED.fullmatch(pattern) or _OTHER.search(pattern):
        return None
    # There `$` is the very end.
    python = _END.sub(lambda match: match[0] if match[1] is None else r"\Z", pattern)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of what later versions may read otherwise
            return re.search(python, text, re.ASCII) is not None
    except (re.error, RecursionError, OverflowError, Warning):
        return None


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
