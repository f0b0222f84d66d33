"""Texts of a grammar as they stand within a JSON string: regular expressions over its escapes.

Each character has one spelling: itself, or the shortest escape where JSON demands one. So what a
text is cut into stays the same, and a grammar of the texts is one of their spellings. The syntax of
expressions is that of Rust: https://docs.rs/regex/latest/regex/#syntax
"""

import json
import re
from collections.abc import Callable
from typing import Final

from gateway.http.schemas.tools.lark_body import Literal
from gateway.http.schemas.tools.lark_regex import escaped
from gateway.http.schemas.tools.lark_tokens import LarkError

_ESCAPED: Final = frozenset(map(chr, range(32))) | {'"', "\\"}
"""Characters that a JSON string has escapes for."""
_ESCAPES: Final = {one: escaped(json.dumps(one)[1:-1]) for one in _ESCAPED}
_OTHERS: Final = r'[^"\\\x00-\x1f]'
_MAX_DEPTH: Final = 64
_QUANTIFIER: Final = re.compile(r"[*+?]|\{\d{1,5}(?:,(?:\d{1,5})?)?\}")
_FLAGS: Final = re.compile(r"\?(?P<on>[imsxuU]*)(?:-(?P<off>[imsxU]+))?(?P<end>[:)])")
_NAMED: Final = re.compile(r"\?P?<[A-Za-z_][A-Za-z0-9_.\[\]]*>")
_CODE: Final = re.compile(
    r"x(?:([0-9A-Fa-f]{2})|\{([0-9A-Fa-f]{1,8})\})|u(?:([0-9A-Fa-f]{4})|\{([0-9A-Fa-f]{1,8})\})"
    r"|U(?:([0-9A-Fa-f]{8})|\{([0-9A-Fa-f]{1,8})\})"
)
_PROPERTY: Final = re.compile(r"[pP](?:\{\^?([A-Za-z_]+)\}|([A-Z]))")
_POSIX: Final = re.compile(r"\[:(\^?)([a-z]+):\]")
_CONTROLS: Final = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}
_SPACE: Final = frozenset("\t\n\v\f\r")
_CONTROL: Final = frozenset(map(chr, range(32)))
_MARKS: Final = frozenset('"\\')
_NONE: Final = frozenset[str]()
_PERL: Final = {"d": _NONE, "w": _NONE, "s": _SPACE}
_CLASSES: Final = {
    **dict.fromkeys(["alnum", "alpha", "digit", "lower", "upper", "word", "xdigit"], _NONE),
    "ascii": _ESCAPED,
    "blank": frozenset("\t"),
    "cntrl": _CONTROL,
    "graph": _MARKS,
    "print": _MARKS,
    "punct": _MARKS,
    "space": _SPACE,
}
_PROPERTIES: Final = {
    **dict.fromkeys(["L", "Letter", "Lu", "Ll", "Lt", "Lm", "Lo", "LC", "Alphabetic"], _NONE),
    **dict.fromkeys(["Lowercase", "Uppercase", "Lowercase_Letter", "Uppercase_Letter"], _NONE),
    **dict.fromkeys(["N", "Number", "Nd", "Nl", "No", "M", "Mark", "Mn", "Mc", "Me"], _NONE),
    **dict.fromkeys(["S", "Symbol", "Sm", "Sc", "Sk", "So", "Z", "Separator", "Zs"], _NONE),
    **dict.fromkeys(["Zl", "Zp", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Cf", "Co", "Cn"], _NONE),
    **dict.fromkeys(["Latin", "Greek", "Cyrillic", "Han", "Hiragana", "Katakana"], _NONE),
    **dict.fromkeys(["Arabic", "Hebrew", "Hangul", "Thai", "Devanagari", "Emoji"], _NONE),
    **dict.fromkeys(["P", "Punctuation", "Po"], _MARKS),
    **dict.fromkeys(["C", "Other", "Cc", "Control", "cntrl"], _CONTROL),
    **dict.fromkeys(["Any", "ASCII", "any", "ascii"], _ESCAPED),
    "White_Space": _SPACE,
}
"""Which of the escaped characters a class has."""


class JsonSpelling:
    """Texts as within a JSON string.

    Args:
        most: Characters that an expression may have.
    """

    def __init__(self, most: int) -> None:
        self._most = most

    def of(self, literal: Literal) -> str:
        """The expression for a string, an expression or a range.

        Raises:
            LarkError: An expression has what no language without look-around has, or what is not
                known here.
        """
        if literal.pattern:
            return _Reader(literal, self._most).whole()
        if literal.last:
            within = frozenset(one for one in _ESCAPED if literal.text <= one <= literal.last)
            return _either(f"[{escaped(literal.text)}-{escaped(literal.last)}]", within)
        return "".join(_spelt(one, is_folded=literal.is_folded) for one in literal.text)


def _spelt(character: str, *, is_folded: bool) -> str:
    if character in _ESCAPED:
        return _ESCAPES[character]
    # A flag for all of a text would hold for the letters of escapes too.
    has_case = is_folded and character.lower() != character.upper()
    return f"(?i:{character})" if has_case else escaped(character)


def _either(group: str, members: frozenset[str], *, is_folded: bool = False) -> str:
    """A character of a class, or the escape of one that is in it too."""
    others = f"[{group}&&{_OTHERS}]" if group else _OTHERS
    if is_folded:
        others = f"(?i:{others})"
    if not members:
        return others
    return f"(?:{others}|{'|'.join(_spelt(one, is_folded=False) for one in sorted(members))})"


class _Reader:
    """Reads one regular expression and writes that of its spellings.

    It is long because each construct of an expression is a method.
    """

    def __init__(self, literal: Literal, most: int) -> None:
        self._pattern = literal.pattern
        self._flags = frozenset(literal.flags)
        self._line = literal.line
        self._num_left = most
        self._at = 0
        self._depth = 0

    def whole(self) -> str:
        made = self._alternatives()
        if self._at < len(self._pattern):
            raise self._error("a `)` too many")
        return f"(?:{made})"

    def _error(self, words: str) -> LarkError:
        return LarkError(f"an expression has {words}", self._line)

    def _rest(self, text: str) -> bool:
        return self._pattern.startswith(text, self._at)

    def _match(self, expression: re.Pattern[str]) -> re.Match[str] | None:
        match = expression.match(self._pattern, self._at)
        if match is not None:
            self._at = match.end()
        return match

    def _alternatives(self) -> str:
        parts = [self._sequence()]
        while self._rest("|"):
            self._at += 1
            parts.append(self._sequence())
        return "|".join(parts)

    def _sequence(self) -> str:
        parts: list[str] = []
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            if "x" in self._flags and self._skipped():
                continue
            item = self._item()
            while (quantifier := self._match(_QUANTIFIER)) is not None:
                item = f"(?:{item}){quantifier[0]}"
                # Whether as few as possible are taken makes no other texts.
                self._at += self._rest("?")
            parts.append(item)
            self._num_left -= len(item)
            if self._num_left < 0:
                raise self._error("too many characters once it is spelt within a JSON string")
        return "".join(parts)

    def _skipped(self) -> bool:
        character = self._pattern[self._at]
        if character == "#":
            end = self._pattern.find("\n", self._at)
            self._at = len(self._pattern) if end < 0 else end
        elif not character.isspace():
            return False
        self._at += 1
        return True

    def _item(self) -> str:
        character = self._pattern[self._at]
        self._at += 1
        if character == "(":
            return self._group()
        if character == "[":
            start = self._at - 1
            members = self._class()
            return self._either(self._pattern[start : self._at], members)
        if character == "\\":
            return self._escape()
        if character == ".":
            return _either("", _ESCAPED if "s" in self._flags else _ESCAPED - {"\n"})
        if character in "^$":
            raise self._error(f"the anchor `{character}`")
        if character in "*+?{":
            raise self._error(f"a `{character}` that repeats nothing")
        return _spelt(character, is_folded="i" in self._flags)

    def _either(self, group: str, members: frozenset[str]) -> str:
        if "x" in self._flags and any(map(str.isspace, group)):
            raise self._error("white space in a class under the flag `x`")
        return _either(group, members, is_folded="i" in self._flags)

    def _group(self) -> str:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._error(f"brackets nested deeper than {_MAX_DEPTH} levels")
        outside = self._flags
        if self._rest("?"):
            flags = self._match(_FLAGS)
            if flags is not None:
                self._flags = (self._flags | frozenset(flags["on"])) - frozenset(flags["off"] or "")
                if flags["end"] == ")":
                    self._depth -= 1
                    return ""
            elif self._match(_NAMED) is None:
                raise self._error(f"the group `({self._pattern[self._at : self._at + 3]}`")
        made = self._alternatives()
        self._flags = outside
        if not self._rest(")"):
            raise self._error("a `(` that isn't closed")
        self._at += 1
        self._depth -= 1
        return f"(?:{made})"

    def _escape(self) -> str:
        """What stands behind a backslash, outside of classes."""
        start = self._at - 1
        character = self._character()
        if character is not None:
            return _spelt(character, is_folded="i" in self._flags)
        members = self._named_class()
        if members is not None:
            return self._either(f"[{self._pattern[start : self._at]}]", members)
        raise self._error(f"`{self._pattern[start : start + 2]}`")

    def _character(self) -> str | None:
        """The character that an escape stands for, read from behind the backslash."""
        code = self._match(_CODE)
        if code is not None:
            number = int(next(one for one in code.groups() if one is not None), 16)
            if number > 0x10FFFF or 0xD800 <= number <= 0xDFFF:
                raise self._error(f"no character `\\{code[0]}`")
            return chr(number)
        character = self._pattern[self._at : self._at + 1]
        # `\<` and `\>` are borders of words.
        is_mark = character not in "<>" and not character.isalnum()
        if character in _CONTROLS or (character and is_mark):
            self._at += 1
            return _CONTROLS.get(character, character)
        return None

    def _named_class(self) -> frozenset[str] | None:
        r"""What `\d`, `\s`, `\w`, `\p{…}` and their opposites have of the escaped characters."""
        letter = self._pattern[self._at : self._at + 1]
        if letter.lower() in _PERL and letter:
            self._at += 1
            members = _PERL[letter.lower()]
            return members if letter.islower() else _ESCAPED - members
        found = self._match(_PROPERTY)
        if found is None:
            return None
        name = found[1] or found[2]
        if name not in _PROPERTIES:
            raise self._error(f"the class `\\{found[0][:40]}`, which is not known")
        is_not = (found[0][0] == "P") != ("^" in found[0])
        return _ESCAPED - _PROPERTIES[name] if is_not else _PROPERTIES[name]

    def _class(self) -> frozenset[str]:
        """What a class in `[…]` has of the escaped characters, read from behind its `[`."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._error(f"brackets nested deeper than {_MAX_DEPTH} levels")
        is_not = self._rest("^")
        self._at += is_not
        while self._rest("-"):  # those that come first are characters
            self._at += 1
        # A `]` that comes first of all is one, too.
        members = self._union(is_first=self._pattern[self._at - 1] not in "-")
        while (operator := self._operator()) is not None:
            members = operator(members, self._union(is_first=False))
        self._at += 1
        self._depth -= 1
        return _ESCAPED - members if is_not else members

    def _operator(self) -> Callable[[frozenset[str], frozenset[str]], frozenset[str]] | None:
        operators: dict[str, Callable[[frozenset[str], frozenset[str]], frozenset[str]]] = {
            "&&": frozenset.intersection,
            "--": frozenset.difference,
            "~~": frozenset.symmetric_difference,
        }
        operator = operators.get(self._pattern[self._at : self._at + 2])
        self._at += 0 if operator is None else 2
        return operator

    def _union(self, *, is_first: bool) -> frozenset[str]:
        members: frozenset[str] = _NONE
        while True:
            if self._at >= len(self._pattern):
                raise self._error("a `[` that isn't closed")
            if self._rest("]") and not is_first:
                return members
            if any(map(self._rest, ("&&", "--", "~~"))) and not is_first:
                return members
            is_first = False
            members |= self._members()

    def _members(self) -> frozenset[str]:
        """What one part of a class has: a class within, a range or a character."""
        posix = self._match(_POSIX)
        if posix is not None:
            if posix[2] not in _CLASSES:
                raise self._error(f"the class `{posix[0][:40]}`, which is not known")
            return _ESCAPED - _CLASSES[posix[2]] if posix[1] else _CLASSES[posix[2]]
        if self._rest("["):
            self._at += 1
            return self._class()
        first = self._class_character()
        if isinstance(first, frozenset):
            return first
        following = self._pattern[self._at + 1 : self._at + 2]
        if not self._rest("-") or following in ("", "]", "-"):
            return _ESCAPED & {first}
        self._at += 1
        last = self._class_character()
        if isinstance(last, frozenset) or last < first:
            raise self._error(f"the range `{first}-` that ends before it begins")
        return frozenset(one for one in _ESCAPED if first <= one <= last)

    def _class_character(self) -> str | frozenset[str]:
        character = self._pattern[self._at]
        self._at += 1
        if character != "\\":
            return character
        found = self._character()
        if found is not None:
            return found
        members = self._named_class()
        if members is None:
            raise self._error(f"`\\{self._pattern[self._at : self._at + 1]}` in a class")
        return members
