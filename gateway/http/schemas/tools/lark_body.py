"""Reads the body of a rule or a terminal of a Lark grammar; what is made of it is for others."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gateway.http.schemas.tools.lark_tokens import Definition, LarkError, Token, unescaped

MAX_NESTED: Final = 64
"""Templates that are arguments of one another."""


@dataclass(frozen=True, slots=True)
class Literal:
    """A string, an expression or a range of characters, as a grammar has it.

    Attributes:
        text: A string, or the first character of a range.
        pattern: Of an expression; else empty.
        last: The last character of a range; else empty.
        flags: Of an expression.
        is_folded: A string of any case.
        line: Where it stands.
    """

    text: str = ""
    pattern: str = ""
    last: str = ""
    flags: str = ""
    is_folded: bool = False
    line: int = 0


class BodyReader(ABC):
    """Reads the tokens of one body from left to right.

    It is long because each construct of a body is a method, and so is what is made of it.

    Args:
        body: Of a rule or a terminal.
    """

    def __init__(self, body: Definition) -> None:
        self._tokens = body.body
        self._line = body.line
        self._at = 0
        self._num_nested = 0

    def whole(self) -> str:
        """What is made of all of it.

        Raises:
            LarkError: It is no body.
        """
        made = self._alternatives()
        if self._at < len(self._tokens):
            token = self._peek()
            raise LarkError(f"`{token.text[:20]}` is not expected", token.line)
        return made

    @abstractmethod
    def literal(self, literal: Literal) -> str:
        """What is made of a text."""

    @abstractmethod
    def name(self, token: Token) -> str:
        """What is made of the name of a rule or a terminal."""

    @abstractmethod
    def template(self, token: Token, arguments: list[str]) -> str:
        """What is made of the use of a template."""

    @abstractmethod
    def either(self, parts: list[str]) -> str:
        """What is made of alternatives, one or more."""

    @abstractmethod
    def joined(self, parts: list[str]) -> str:
        """What is made of some parts in order, none or more."""

    @abstractmethod
    def repeated(self, item: str, times: str) -> str:
        """What is made of an item and `?`, `*`, `+`, `{n}` or `{n,m}`."""

    @abstractmethod
    def group(self, within: Callable[[], str], line: int, *, is_optional: bool) -> str:
        """What is made of brackets; `within` reads what is in them."""

    @abstractmethod
    def check_length(self, num_characters: int) -> None:
        """Refuse what would be too long, before it is put together."""

    def _peek(self) -> Token:
        if self._at < len(self._tokens):
            return self._tokens[self._at]
        return Token("end", "", line=self._tokens[-1].line if self._tokens else self._line)

    def _take(self) -> Token:
        token = self._peek()
        self._at += 1
        return token

    def _alternatives(self) -> str:
        parts = [self._sequence()]
        length = len(parts[0])
        while self._peek().is_mark("|"):
            self._take()
            parts.append(self._sequence())
            length += 1 + len(parts[-1])
            self.check_length(length)
        return self.either(parts)

    def _sequence(self) -> str:
        parts: list[str] = []
        length = 0
        while True:
            token = self._peek()
            if token.kind == "alias":  # names a tree, of which nothing is made
                self._at += 2
                continue
            if token.kind == "end" or token.is_mark("|)]"):
                return self.joined(parts)
            parts.append(self._repeated())
            length += len(parts[-1])
            self.check_length(length)

    def _repeated(self) -> str:
        item = self._item()
        token = self._peek()
        if not token.is_mark("?*+~"):
            return item
        self._take()
        return self.repeated(item, token.text if token.text != "~" else self._times())

    def _times(self) -> str:
        line = self._peek().line
        least = self._number()
        if self._peek().kind != "range":
            return f"{{{least}}}"
        self._take()
        most = self._number()
        if most < least:
            raise LarkError(f"`~{least}..{most}` ends before it begins", line)
        return f"{{{least},{most}}}"

    def _number(self) -> int:
        token = self._take()
        if token.kind != "number" or len(token.text) > 4:
            raise LarkError("a number of at most four digits is expected behind `~`", token.line)
        return int(token.text)

    def _item(self) -> str:
        token = self._take()
        if token.kind == "string":
            return self.literal(self._string(token))
        if token.kind == "regex":
            return self.literal(_expression(token))
        if token.kind == "name":
            if self._peek().is_mark("{"):
                return self.template(token, self._arguments())
            return self.name(token)
        if token.is_mark("(["):
            return self._group(token)
        raise LarkError(f"`{token.text[:20]}` is not expected", token.line)

    def _group(self, opening: Token) -> str:
        closing = ")" if opening.text == "(" else "]"

        def within() -> str:
            made = self._alternatives()
            if not self._take().is_mark(closing):
                raise LarkError("a bracket isn't closed", opening.line)
            return made

        return self.group(within, opening.line, is_optional=opening.text == "[")

    def _arguments(self) -> list[str]:
        opening = self._take()
        self._num_nested += 1
        if self._num_nested > MAX_NESTED:
            raise LarkError(
                f"arguments of templates are nested deeper than {MAX_NESTED} levels", opening.line
            )
        found = [self._item()]
        while self._peek().is_mark(","):
            self._take()
            found.append(self._item())
        self._num_nested -= 1
        if not self._take().is_mark("}"):
            raise LarkError("the `{` of a template isn't closed", opening.line)
        return found

    def _string(self, token: Token) -> Literal:
        text = unescaped(token)
        if self._peek().kind == "range":
            self._take()
            last = self._take()
            end = unescaped(last)
            if last.kind != "string" or len(text) != 1 or len(end) != 1 or end < text:
                raise LarkError("a range goes from one character to a later one", token.line)
            return Literal(text, last=end, line=token.line)
        if not text:
            raise LarkError("an empty string matches nothing", token.line)
        return Literal(text, is_folded=bool(token.more), line=token.line)


def _expression(token: Token) -> Literal:
    if set(token.more) - set("imsxu"):
        raise LarkError(f"the flags `{token.more}` of an expression are not supported", token.line)
    pattern = token.text.replace("\\/", "/")
    return Literal(pattern=pattern, flags=token.more.replace("u", ""), line=token.line)
