"""The tokens and statements of a Lark grammar, with their lines.

https://lark-parser.readthedocs.io/en/stable/grammar.html
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

START: Final = "start"
COMMON: Final = {
    "DIGIT": "[0-9]",
    "HEXDIGIT": "[0-9a-fA-F]",
    "INT": "[0-9]+",
    "SIGNED_INT": "[+-]?[0-9]+",
    "DECIMAL": r"(?:[0-9]+\.[0-9]*|\.[0-9]+)",
    "FLOAT": r"(?:[0-9]+[eE][+-]?[0-9]+|(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)",
    "SIGNED_FLOAT": (
        r"[+-]?(?:[0-9]+[eE][+-]?[0-9]+|(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    ),
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
    "SH_COMMENT": r"#[^\n]*",
    "CPP_COMMENT": r"//[^\n]*",
    "SQL_COMMENT": r"--[^\n]*",
    "C_COMMENT": r"/\*(?:[^*]|\*+[^*/])*\*+/",
}
"""Terminals of `common`, as regular expressions."""
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
_HEAD: Final = re.compile(r"(?:\{ (\w+(?: , \w+)*) \})? ?(?:\. \d+)?")
_ESCAPE: Final = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))")
_CONTROLS: Final = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "b": "\b", "a": "\a"}


class LarkError(ValueError):
    """A grammar is none, or has what is not supported; the text says what and where.

    Args:
        words: What is wrong.
        line: Where, from 1; None where that says nothing.
    """

    def __init__(self, words: str, line: int | None = None) -> None:
        super().__init__(words if line is None else f"line {line}: {words}")


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a grammar.

    Attributes:
        kind: `string`, `regex`, `name`, `number`, `mark`, `directive`, `alias`, `range` or `end`.
        text: As it stands, strings and expressions without what is around them.
        more: The flags behind a string or an expression.
        line: Where it stands, from 1.
    """

    kind: str
    text: str
    more: str = ""
    line: int = 0

    def is_mark(self, texts: str) -> bool:
        """Whether it is one of some marks of one character."""
        return self.kind == "mark" and self.text in texts


def statements(grammar: str) -> Iterator[list[Token]]:
    """Rules and directives: a line each, with lines that go on with `|` or within brackets.

    Raises:
        LarkError: There is what is no token.
    """
    found: list[Token] = []
    depth = 0
    is_new = False
    for token in _tokens(grammar):
        if token.kind == "newline":
            is_new = True
            continue
        # A rule's body may begin on the next line.
        goes_on = depth or token.is_mark("|") or not found or found[-1].is_mark(":|")
        if is_new and not goes_on:
            yield found
            found = []
        is_new = False
        if token.kind == "mark":
            depth += (token.text in "([{") - (token.text in ")]}")
        found.append(token)
    if found:
        yield found


@dataclass(frozen=True, slots=True)
class Definition:
    """A rule or a terminal.

    Attributes:
        parameters: Of a template.
        body: Its tokens.
        line: Where it begins.
    """

    name: str
    parameters: tuple[str, ...]
    body: list[Token]
    line: int


def definition(statement: Sequence[Token]) -> Definition:
    """A statement that is no directive.

    Raises:
        LarkError: It is no rule.
    """
    begin = next((at for at, token in enumerate(statement) if not token.is_mark("!?")), 0)
    colon = next((at for at, token in enumerate(statement) if token.is_mark(":")), 0)
    name, line = statement[begin], statement[0].line
    # Between the name and the colon stand the parameters of a template, and a priority.
    head = " ".join(token.text for token in statement[begin + 1 : colon])
    match = _HEAD.fullmatch(head)
    if name.kind != "name" or not colon or match is None:
        words = " ".join(token.text for token in statement[begin : begin + 20])[:40]
        raise LarkError(f"a rule is expected at {words!r}", line)
    parameters = tuple((match[1] or "").replace(",", " ").split())
    return Definition(name.text, parameters, list(statement[colon + 1 :]), line)


def imported(statement: Sequence[Token]) -> dict[str, str]:
    """The terminals that a directive imports, by their names here, as regular expressions.

    Raises:
        LarkError: It imports from elsewhere than `common`, or is another directive.
    """
    texts, line = [token.text for token in statement], statement[0].line
    if texts[0] != "%import":
        raise LarkError(f"`{texts[0]}` is not supported", line)
    match texts[1:]:
        case ["common", "(", *names, ")"]:
            pairs = [(name, name) for name in names if name != ","]
        case ["common", ".", name]:
            pairs = [(name, name)]
        case ["common", ".", name, "->", own]:
            pairs = [(name, own)]
        case _:
            words = " ".join(texts)[:60]
            raise LarkError(f"`{words}` is not supported: import from `common`", line)
    for name, _ in pairs:
        if name not in COMMON:
            raise LarkError(f"`common` has no `{name[:40]}` here", line)
    return {own: COMMON[name] for name, own in pairs}


def unescaped(token: Token) -> str:
    """The text of a string.

    Raises:
        LarkError: It has an escape of no character.
    """

    def one(match: re.Match[str]) -> str:
        code = match[1] or match[2] or match[3]
        if code:
            if int(code, 16) > 0x10FFFF or 0xD800 <= int(code, 16) <= 0xDFFF:
                raise LarkError(f"there is no character {match[0]}", token.line)
            return chr(int(code, 16))
        return _CONTROLS.get(match[4], match[4])

    return _ESCAPE.sub(one, token.text)


def _tokens(grammar: str) -> Iterator[Token]:
    position, line = 0, 1
    while position < len(grammar):
        match = _TOKEN.match(grammar, position)
        if match is None:
            raise LarkError(f"line {line} can't be read at {grammar[position : position + 20]!r}")
        position = match.end()
        kind = match.lastgroup or ""
        if kind == "space":
            continue
        if kind == "folded":
            yield Token("string", match["string"][1:-1], match["folded"], line)
        elif kind == "flags":
            yield Token("regex", match["regex"], match["flags"], line)
        else:
            yield Token(kind, match[0], line=line)
        line += kind == "newline"
