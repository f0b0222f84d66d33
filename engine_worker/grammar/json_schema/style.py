"""How values of JSON are written: one way for each, so that nothing is left to choose."""

import json
import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

_ESCAPED: Final = re.compile("[\x7f\ud800-\udfff]")
_DEFAULT: Final = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}


@dataclass(frozen=True, slots=True)
class Style:
    """Separators, and what llguidance is told of values that it writes itself.

    Attributes:
        options: Its `x-guidance`.
    """

    item_separator: str
    key_separator: str
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Any) -> "Style":
        """From the `x-guidance` of a schema; the usual one without."""
        options = {**_DEFAULT, **(options if isinstance(options, dict) else {})}
        return cls(str(options["item_separator"]), str(options["key_separator"]), options)

    def schema(self, schema: dict[str, Any]) -> str:
        """A schema that llguidance compiles, as JSON text."""
        return dumped({"x-guidance": self.options, **schema})


def spelt(value: Any, style: Style) -> list[str]:
    """The ways in which a value is written; a number with a point also without a zero behind it."""
    if isinstance(value, Decimal) and value == value.to_integral_value():
        whole = f"{value.to_integral_value():f}"
        return list(dict.fromkeys([_number(value), "0" if whole == "-0" else whole]))
    return [dumped(value, style)]


def dumped(value: Any, style: Style | None = None) -> str:
    """JSON text of a value, digits as they were read."""
    item, key = (", ", ": ") if style is None else (style.item_separator, style.key_separator)
    match value:
        case Decimal():
            return _number(value)
        case dict():
            members = (f"{dumped(name)}{key}{dumped(one, style)}" for name, one in value.items())
            return f"{{{item.join(members)}}}"
        case list() | tuple():
            return f"[{item.join(dumped(one, style) for one in value)}]"
        case _:
            return text_literal(value) if isinstance(value, str) else json.dumps(value)


def text_literal(text: str) -> str:
    """A text as a string of JSON, and of Lark; each character in one way."""
    # Lexers have no raw DEL, and UTF-8 no half of a surrogate pair.
    written = json.dumps(text, ensure_ascii=False)
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", written)


def _number(value: Decimal) -> str:
    text = str(value)
    return text.replace("E+", "e").replace("E", "e")
