"""Writes a Lark grammar of llguidance's dialect rule by rule; knows nothing of formats."""

import json
import re
from collections.abc import Iterable
from typing import Any, Final

from protocol.wire.messages import Grammar
from toolparser_worker.errors import UnsupportedToolsError
from toolparser_worker.machine.coercion import written

MAX_UNENFORCED: Final = 32
"""As many as the header names."""
MAX_WRITTEN_CHARS: Final = 2**20
"""Engines take a quarter of that; what is longer isn't written to its end, it may have none."""
ANY_TEXT: Final = "/(?s:.*)/"
JSON_STYLE: Final = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
"""How JSON is written: as the templates of most models do, and with nothing left to choose."""
FREE_OBJECT: Final = json.dumps(
    {
        "x-guidance": {"whitespace_flexible": True, "whitespace_pattern": "\\n {0,32}| "},
        "type": "object",
    }
)
"""Any object, which may be indented; engines know this text and leave it to llguidance."""

_REGEX_PART: Final = re.compile(r"\\(.?)|([/\n\r\t])", re.DOTALL)
_BETWEEN_SLASHES: Final = {"/": "\\/", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ASCII_DIGITS: Final = {"d": "[0-9]", "D": "[^0-9]"}
_ASCII_WORDS: Final = {"w": "[0-9a-zA-Z_]", "W": "[^0-9a-zA-Z_]"}


class LarkWriter:
    """Collects the rules of one grammar.

    Args:
        markers: Texts that may be special tokens of the model; only the engine knows.

    Attributes:
        is_strict: A schema that is written now is refused by an engine that can't enforce it all.
        unenforced: Places of keywords that the rules leave to the model, in order.
    """

    def __init__(self, markers: Iterable[str]) -> None:
        self._special = tuple(dict.fromkeys(marker for marker in markers if marker.strip()))
        self._lines: list[str] = []
        self._markers: dict[str, int] = {}
        self._terminals: dict[str, str] = {}
        self._num_names = 0
        self._num_chars = 0
        self.is_strict = False
        self.unenforced: dict[str, None] = {}

    def text(self, text: str) -> str:
        """An expression for exactly this text; the empty text is the empty expression."""
        if not text:
            return '""'
        if any(marker in text for marker in self._special):
            return self._marker(text)
        return quoted(text)

    def sequence(self, *parts: str) -> str:
        """An expression for one after the other."""
        return " ".join(part for part in parts if part != '""') or '""'

    def rule(self, body: str, name: str | None = None) -> str:
        """Adds a rule, under a new name when none is given; its name.

        Raises:
            UnsupportedToolsError: The grammar becomes too long.
        """
        name = name or self.new_name()
        self._count(body)
        self._lines.append(f"{name}: {body}")
        return name

    def new_name(self) -> str:
        """A name that no rule has yet."""
        self._num_names += 1
        return f"r{self._num_names}"

    def terminal(self, body: str) -> str:
        """The name of a terminal with this body."""
        name = self._terminals.get(body)
        if name is None:
            name = self._terminals[body] = f"T{len(self._terminals)}"
            self._lines.append(f"{name}: {body}")
        return name

    def until(self, end: str, body: str = ANY_TEXT, without: Iterable[str] = ()) -> str:
        """A rule for text up to and with the first `end`.

        Args:
            end: Ends the text.
            body: What the text looks like, a terminal's body.
            without: Texts that don't occur in it.
        """
        name = self.new_name()
        terminal = self.terminal(without_texts(body, without))
        self._lines.append(f"{name}[suffix={self._marker(end)}]: {terminal}")
        return name

    def json(self, schema: dict[str, Any], style: dict[str, Any] | None = None) -> str:
        """An expression for the JSON values of a schema, in a style or that of most templates.

        Raises:
            UnsupportedToolsError: The grammar becomes too long: definitions are in each schema.
        """
        options = self._options() | (style or {})
        expression = f"%json {written({**schema, **options})}"
        self._count(expression)
        return expression

    def json_text(self, source: str) -> str:
        """The same for the text of a schema, an object, which is handed on as it is written."""
        options = json.dumps(self._options())[1:]
        members = source.strip()[:-1].rstrip()
        # Of members of one name the last one counts.
        return f"%json {members}{'' if members == '{' else ', '}{options}"

    def _options(self) -> dict[str, Any]:
        """How values are written and how strictly; not for the schema's client to choose."""
        strict = {"x-penstock-strict": True} if self.is_strict else {}
        return {"x-guidance": JSON_STYLE, **strict}

    def grammar(self, start: str, after_marker: str | None = None) -> Grammar:
        """What was collected, beginning with an expression."""
        return Grammar(
            kind="lark",
            source="\n".join([f"start: {start}", *self._lines, ""]),
            after_marker=after_marker,
            markers=tuple(self._markers),
            unenforced=tuple(self.unenforced)[:MAX_UNENFORCED],
        )

    def _count(self, text: str) -> None:
        self._num_chars += len(text)
        if self._num_chars > MAX_WRITTEN_CHARS:
            raise UnsupportedToolsError(
                f"the grammar would be longer than {MAX_WRITTEN_CHARS} characters."
            )

    def _marker(self, text: str) -> str:
        return f"MARKER_{self._markers.setdefault(text, len(self._markers))}"


def quoted(text: str) -> str:
    """A text as a Lark string, which is spelt as in JSON."""
    return json.dumps(text, ensure_ascii=False)


def without_texts(body: str, texts: Iterable[str]) -> str:
    """A terminal's body without what contains one of some texts."""
    alternatives = " | ".join(quoted(text) for text in dict.fromkeys(texts) if text)
    if not alternatives:
        return body
    return f"({body}) & ~({ANY_TEXT} ({alternatives}) {ANY_TEXT})"


def regex(pattern: str, *, ascii_words: bool = False) -> str:
    r"""A regular expression as Lark writes it between slashes; `\d` is 0 to 9.

    What engines make of one that has no Lark around it (`regex_to_lark` of llguidance).

    Args:
        pattern: In Rust's syntax.
        ascii_words: `\w` is the letters, digits and underscore of ASCII, as in ECMA-262.
    """
    classes = _ASCII_DIGITS | _ASCII_WORDS if ascii_words else _ASCII_DIGITS

    def spelt(match: re.Match[str]) -> str:
        escape, character = match.groups()
        if character is not None:
            return _BETWEEN_SLASHES[character]
        return classes.get(escape, _BETWEEN_SLASHES.get(escape, f"\\{escape}" if escape else ""))

    return f"/{_REGEX_PART.sub(spelt, pattern)}/"
