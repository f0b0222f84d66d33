"""A Lark grammar without recursion as one regular expression.

The input of a custom tool is a JSON string of its call, which only a regular expression can be
applied to. Grammars of tools seldom need more: that of Codex's `apply_patch` doesn't.
https://lark-parser.readthedocs.io/en/stable/grammar.html
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

MAX_DEPTH: Final = 64
"""Of brackets and rules within one another, all together."""
_MAX_KEPT: Final = 32
START: Final = "start"
_COMMON: Final = {
    "DIGIT": "[0-9]",
    "HEXDIGIT": "[0-9a-fA-F]",
    "INT": "[0-9]+",
    "SIGNED_INT": "[+-]?[0-9]+",
    "DECIMAL": r"(?:[0-9]+\.[0-9]*|\.[0-9]+)",
    "FLOAT": r"(?:[0-9]+[eE][+-]?[0-9]+|(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)",
    "NUMBER": r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?",
    "SIGNED_NUMBER": r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?",
    "ESCAPED_STRING": r'"(?:[^"\\\n]|\\[^\n])*"',
    "LCASE_LETTER": "[a-z]",
    "UCASE_LETTER": "[A-Z]",
    "LETTER": "[a-zA-Z]",
    "WORD": "[a-zA-Z]+",
    "CNAME": "[_a-zA-Z][_a-zA-Z0-9]*",
    "WS_INLINE": r"[ \t]+",
    "WS": r"[ \t\f\r\n]+",
    "CR": r"\r",
    "LF": r"\n",
    "NEWLINE": r"(?:\r?\n)+",
}
"""Terminals of `common`."""
_TOKEN: Final = re.compile(
    r"(?P<space>[ \t\r]+|(?://|\#)[^\n]*)"
    r"|(?P<newline>\n)"
    r'|(?P<string>"(?:[^"\\\n]|\\.)*")(?P<folded>i?)'
    r"|/(?P<regex>(?!/)(?:[^/\\\n]|\\.)+)/(?P<flags>[a-z]*)"
    r"|(?P<directive>%[a-z]+)"
    r"|(?P<alias>->)"
    r"|(?P<range>\.\.)"
    r"|(?P<name>_?[A-Za-z][A-Za-z0-9_]*)"
    r"|(?P<number>\d+)"
    r"|(?P<mark>[:|()\[\]?*+~.,!{}])"
)
_ESCAPE: Final = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))")
_CONTROLS: Final = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "b": "\b", "a": "\a"}
_META: Final = re.compile(r"[\\^$.|?*+()\[\]{}\-&~#]")
_WRITTEN: Final = {"\n": r"\n", "\t": r"\t", "\r": r"\r", "\f": r"\f"}


class LarkError(ValueError):
    """A grammar is none, or more than a regular expression can say; the text says where."""


class _Token(NamedTuple):
    kind: str
    text: str
    more: str = ""


class _Rule(NamedTuple):
    """Tokens of a rule's body."""

    name: str
    body: list[_Token]


@lru_cache(maxsize=_MAX_KEPT)
def as_regex(grammar: str, most: int) -> str:
    """The regular expression of what `start` derives, without anchors.

    It is asked for several times in a request, so that the last few are kept.

    Args:
        grammar: Lark text.
        most: Characters that the expression may have.

    Raises:
        LarkError: It is no grammar, or not regular, or its expression would be too long.
    """
    rules = _Rules(most)
    for line in _statements(grammar):
        rules.add(line)
    return rules.of(START)


def _tokens(grammar: str) -> Iterator[_Token]:
    position = 0
    while position < len(grammar):
        match = _TOKEN.match(grammar, position)
        if match is None:
            line = grammar.count("\n", 0, position) + 1
            raise LarkError(f"line {line} can't be read at {grammar[position : position + 20]!r}")
        position = match.end()
        kind = match.lastgroup or ""
        if kind == "space":
            continue
        if kind == "folded":
            yield _Token("string", match["string"][1:-1], match["folded"])
        elif kind == "flags":
            yield _Token("regex", match["regex"], match["flags"])
        else:
            yield _Token(kind, match[0])


def _statements(grammar: str) -> Iterator[list[_Token]]:
    """Rules and directives: a line each, with lines that go on with `|` or within brackets."""
    found: list[_Token] = []
    depth = 0
    is_new = False
    for token in _tokens(grammar):
        if token.kind == "newline":
            is_new = True
            continue
        goes_on = depth or token == _Token("mark", "|") or not found or not _is_whole(found)
        if is_new and not goes_on:
            yield found
            found = []
        is_new = False
        if token.kind == "mark":
            depth += (token.text in "([") - (token.text in ")]")
        found.append(token)
    if found:
        yield found


def _is_whole(found: list[_Token]) -> bool:
    """Whether a statement may end here: a rule's body may begin on the next line."""
    return found[-1] not in (_Token("mark", ":"), _Token("mark", "|"))


class _Rules:
    """All rules of a grammar, and what has been made of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._bodies: dict[str, list[_Token]] = {}
        self._made: dict[str, str] = {}
        self._open: list[str] = []
        self._depth = 0

    def add(self, statement: list[_Token]) -> None:
        """One rule, terminal or directive."""
        first = statement[0]
        if first.kind == "directive":
            self._import(statement)
            return
        marks = (_Token("mark", "!"), _Token("mark", "?"))
        begin = next((at for at, token in enumerate(statement) if token not in marks), 0)
        statement = statement[begin:]
        texts = [token.text for token in statement]
        # A priority stands between the name and the colon.
        width = 3 if texts[1:2] == ["."] and statement[2:3] and statement[2].kind == "number" else 1
        if statement[0].kind != "name" or texts[width : width + 1] != [":"]:
            raise LarkError(f"a rule is expected at {' '.join(texts)[:40]!r}")
        name = statement[0].text
        if name in self._bodies or name in self._made:
            raise LarkError(f"`{name}` is defined twice")
        self._bodies[name] = statement[width + 1 :]

    def _import(self, statement: list[_Token]) -> None:
        texts = [token.text for token in statement]
        if texts[0] != "%import":
            raise LarkError(f"`{texts[0]}` is not supported")
        match texts[1:]:
            case ["common", "(", *names, ")"]:
                pairs = [(name, name) for name in names if name != ","]
            case ["common", ".", name]:
                pairs = [(name, name)]
            case ["common", ".", name, "->", own]:
                pairs = [(name, own)]
            case _:
                raise LarkError(f"`{' '.join(texts)[:60]}` is not supported: import from `common`")
        for name, own in pairs:
            if name not in _COMMON:
                raise LarkError(f"`common` has no `{name[:40]}` here")
            self._made[own] = _COMMON[name]

    def of(self, name: str) -> str:
        """The expression of a rule."""
        if name in self._made:
            return self._made[name]
        if name not in self._bodies:
            raise LarkError(f"there is no rule `{name[:40]}`")
        if name in self._open:
            raise LarkError(f"the rule `{name}` contains itself, which no regular expression can")
        self.enter()
        self._open.append(name)
        made = _Body(self, self._bodies[name]).whole()
        self._open.pop()
        self.leave()
        self._made[name] = made
        return made

    def enter(self) -> None:
        """A rule or a bracket begins within those that are open.

        Raises:
            LarkError: Too many are.
        """
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise LarkError(f"its rules and brackets are nested deeper than {MAX_DEPTH} levels")

    def leave(self) -> None:
        """It ends."""
        self._depth -= 1

    def fits(self, text: str) -> str:
        """A part of the expression.

        Raises:
            LarkError: It is too long.
        """
        self.check_length(len(text))
        return text

    def check_length(self, num_characters: int) -> None:
        """Check a part of the expression before it is put together.

        Raises:
            LarkError: It would be too long.
        """
        if num_characters > self._most:
            raise LarkError(f"its regular expression has more than {self._most} characters")


class _Body:
    """Reads the body of one rule."""

    def __init__(self, rules: _Rules, tokens: list[_Token]) -> None:
        self._rules = rules
        self._tokens = tokens
        self._at = 0

    def whole(self) -> str:
        """All of it."""
        made = self._alternatives()
        if self._at < len(self._tokens):
            raise LarkError(f"`{self._tokens[self._at].text[:20]}` is not expected")
        return made

    def _peek(self) -> _Token:
        return self._tokens[self._at] if self._at < len(self._tokens) else _Token("end", "")

    def _take(self) -> _Token:
        token = self._peek()
        self._at += 1
        return token

    def _alternatives(self) -> str:
        parts = [self._sequence()]
        length = len(parts[0])
        while self._peek() == _Token("mark", "|"):
            self._take()
            parts.append(self._sequence())
            length += 1 + len(parts[-1])
            self._rules.check_length(length)
        return self._rules.fits(parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})")

    def _sequence(self) -> str:
        parts: list[str] = []
        length = 0
        while True:
            token = self._peek()
            if token.kind == "alias":  # names a tree, of which nothing is made
                self._at += 2
                continue
            if token.kind == "end" or (token.text in ("|", ")", "]") and token.kind == "mark"):
                return "".join(parts)
            parts.append(self._repeated())
            length += len(parts[-1])
            self._rules.check_length(length)

    def _repeated(self) -> str:
        item = self._item()
        token = self._peek()
        if token.kind != "mark" or token.text not in "?*+~":
            return item
        self._take()
        times = token.text if token.text != "~" else self._times()
        return f"(?:{item}){times}"

    def _times(self) -> str:
        least = self._number()
        if self._peek().kind != "range":
            return f"{{{least}}}"
        self._take()
        most = self._number()
        if most < least:
            raise LarkError(f"`~{least}..{most}` ends before it begins")
        return f"{{{least},{most}}}"

    def _number(self) -> int:
        token = self._take()
        if token.kind != "number" or len(token.text) > 4:
            raise LarkError("a number of at most four digits is expected behind `~`")
        return int(token.text)

    def _item(self) -> str:
        token = self._take()
        if token.kind == "string":
            return self._string(token)
        if token.kind == "regex":
            return _regex(token)
        if token.kind == "name":
            if self._peek() == _Token("mark", "{"):
                raise LarkError("templates are not supported")
            return f"(?:{self._rules.of(token.text)})"
        if token.kind == "mark" and token.text in "([":
            return self._group(token.text)
        raise LarkError(f"`{token.text[:20]}` is not expected")

    def _group(self, opening: str) -> str:
        self._rules.enter()
        within = self._alternatives()
        if self._take() != _Token("mark", ")" if opening == "(" else "]"):
            raise LarkError("a bracket isn't closed")
        self._rules.leave()
        return f"(?:{within})" + ("?" if opening == "[" else "")

    def _string(self, token: _Token) -> str:
        text = _unescaped(token.text)
        if self._peek().kind == "range":
            self._take()
            last = self._take()
            end = _unescaped(last.text)
            if last.kind != "string" or len(text) != 1 or len(end) != 1 or end < text:
                raise LarkError("a range goes from one character to a later one")
            return f"[{_escaped(text)}-{_escaped(end)}]"
        if not text:
            raise LarkError("an empty string matches nothing")
        return f"(?i:{_escaped(text)})" if token.more else _escaped(text)


def _regex(token: _Token) -> str:
    if set(token.more) - set("imsx" + "u"):
        raise LarkError(f"the flags `{token.more}` of an expression are not supported")
    body = token.text.replace("\\/", "/")
    flags = token.more.replace("u", "")
    return f"(?{flags}:{body})"


def _unescaped(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        code = match[1] or match[2] or match[3]
        if code:
            if int(code, 16) > 0x10FFFF or 0xD800 <= int(code, 16) <= 0xDFFF:
                raise LarkError(f"there is no character {match[0]}")
            return chr(int(code, 16))
        return _CONTROLS.get(match[4], match[4])

    return _ESCAPE.sub(one, text)


def _escaped(text: str) -> str:
    return "".join(_WRITTEN.get(one) or _META.sub(r"\\\g<0>", one) for one in text)
