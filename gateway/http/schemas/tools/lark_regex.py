"""A Lark grammar without recursion as one regular expression, and terminals of any grammar.

A string of a JSON schema can be held to a regular expression by every format of calls. Grammars of
tools seldom need more: that of Codex's `apply_patch` doesn't.
"""

import re
from collections.abc import Callable
from typing import Final, Protocol

from gateway.http.schemas.tools.lark_body import BodyReader, Literal
from gateway.http.schemas.tools.lark_tokens import (
    START,
    Definition,
    LarkError,
    Token,
    definition,
    imported,
    statements,
)

MAX_DEPTH: Final = 64
"""Of brackets and rules within one another, all together."""
_META: Final = re.compile(r"[\\^$.|?*+()\[\]{}\-&~#]")
_WRITTEN: Final = {"\n": r"\n", "\t": r"\t", "\r": r"\r", "\f": r"\f"}


class NotRegularError(LarkError):
    """A grammar says more than a regular expression can, or than one of a bearable length."""


class Spelling(Protocol):
    """How the texts of a grammar are spelt where they are written, as regular expressions."""

    def of(self, literal: Literal) -> str:
        """The expression for a string, an expression or a range."""


class PlainSpelling:
    """Texts as they are."""

    def of(self, literal: Literal) -> str:
        """As in `Spelling`."""
        if literal.pattern:
            return f"(?{literal.flags}:{literal.pattern})"
        if literal.last:
            return f"[{escaped(literal.text)}-{escaped(literal.last)}]"
        text = escaped(literal.text)
        return f"(?i:{text})" if literal.is_folded else text


def as_regex(grammar: str, most: int) -> str:
    """The regular expression of what `start` derives, without anchors.

    Args:
        grammar: Lark text.
        most: Characters that the expression may have.

    Raises:
        NotRegularError: No regular expression of that length says the same.
        LarkError: It is no grammar, or has what is not supported.
    """
    rules = Expressions(most, PlainSpelling())
    for statement in statements(grammar):
        first = statement[0]
        if first.kind == "directive" and first.text == "%ignore":
            raise NotRegularError("`%ignore` may stand between any two texts", first.line)
        if first.kind == "directive":
            rules.add_imported(imported(statement))
        else:
            rules.add(definition(statement))
    return rules.of(START)


class Expressions:
    """Rules or terminals that don't contain themselves, and their expressions.

    Args:
        most: Characters that an expression may have.
        spelling: Of texts.
    """

    def __init__(self, most: int, spelling: Spelling) -> None:
        self.spelling = spelling
        self._most = most
        self._defined: dict[str, Definition] = {}
        self._made: dict[str, str] = {}
        self._open: list[str] = []
        self._depth = 0

    def __contains__(self, name: str) -> bool:
        return name in self._defined or name in self._made

    def add(self, one: Definition) -> None:
        """One rule or terminal.

        Raises:
            LarkError: There is one of its name.
            NotRegularError: It is a template.
        """
        if one.name in self:
            raise LarkError(f"`{one.name[:40]}` is defined twice", one.line)
        if one.parameters:
            raise NotRegularError(f"`{one.name[:40]}` is a template", one.line)
        self._defined[one.name] = one

    def add_imported(self, patterns: dict[str, str]) -> None:
        """Terminals whose regular expressions are known."""
        for name, pattern in patterns.items():
            self._made[name] = self.spelling.of(Literal(pattern=pattern))

    def of(self, name: str, line: int | None = None) -> str:
        """The expression of a rule.

        Raises:
            LarkError: There is none of this name, or its body is none.
            NotRegularError: It contains itself, or its expression would be too long.
        """
        if name in self._made:
            return self._made[name]
        if name not in self._defined:
            raise LarkError(f"there is no rule `{name[:40]}`", line)
        rule = self._defined[name]
        if name in self._open:
            raise NotRegularError(
                f"the rule `{name[:40]}` contains itself, which no regular expression can",
                rule.line,
            )
        self.enter(rule.line)
        self._open.append(name)
        made = _Body(self, rule).whole()
        self._open.pop()
        self.leave()
        self._made[name] = made
        return made

    def enter(self, line: int) -> None:
        """A rule or a bracket begins within those that are open.

        Raises:
            NotRegularError: Too many are.
        """
        self._depth += 1
        if self._depth > MAX_DEPTH:
            words = f"its rules and brackets are nested deeper than {MAX_DEPTH} levels"
            raise NotRegularError(words, line)

    def leave(self) -> None:
        """It ends."""
        self._depth -= 1

    def fits(self, text: str) -> str:
        """A part of the expression.

        Raises:
            NotRegularError: It is too long.
        """
        self.check_length(len(text))
        return text

    def check_length(self, num_characters: int) -> None:
        """Check a part of the expression before it is put together.

        Raises:
            NotRegularError: It would be too long.
        """
        if num_characters > self._most:
            raise NotRegularError(f"its regular expression has more than {self._most} characters")


class _Body(BodyReader):
    """Makes one regular expression of a body."""

    def __init__(self, rules: Expressions, body: Definition) -> None:
        super().__init__(body)
        self._rules = rules

    def literal(self, literal: Literal) -> str:
        return self._rules.spelling.of(literal)

    def name(self, token: Token) -> str:
        return f"(?:{self._rules.of(token.text, token.line)})"

    def template(self, token: Token, arguments: list[str]) -> str:
        raise NotRegularError(f"`{token.text[:40]}` is used as a template", token.line)

    def either(self, parts: list[str]) -> str:
        return self._rules.fits(parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})")

    def joined(self, parts: list[str]) -> str:
        return "".join(parts)

    def repeated(self, item: str, times: str) -> str:
        return f"(?:{item}){times}"

    def group(self, within: Callable[[], str], line: int, *, is_optional: bool) -> str:
        self._rules.enter(line)
        made = within()
        self._rules.leave()
        return f"(?:{made})" + ("?" if is_optional else "")

    def check_length(self, num_characters: int) -> None:
        self._rules.check_length(num_characters)


def escaped(text: str) -> str:
    """A text as a regular expression."""
    return "".join(_WRITTEN.get(one) or _META.sub(r"\\\g<0>", one) for one in text)
