"""A whole Lark grammar as rules over terminals, which are spelt in two ways.

Rules may contain themselves, templates are written out, and what `%ignore` names may stand between
any two terminals. What is made knows no format of calls: it is put where the text of an input is.
https://lark-parser.readthedocs.io/en/stable/grammar.html
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from gateway.http.schemas.tools.json_spelling import JsonSpelling
from gateway.http.schemas.tools.lark_body import BodyReader, Literal
from gateway.http.schemas.tools.lark_regex import MAX_DEPTH, Expressions, PlainSpelling
from gateway.http.schemas.tools.lark_tokens import (
    START,
    Definition,
    LarkError,
    Token,
    definition,
    imported,
    statements,
)

MAX_RULES: Final = 2000
"""With each use of a template that differs from the others."""
_TERMINAL: Final = re.compile(r"_?[A-Z][A-Z0-9_]*")


@dataclass(frozen=True, slots=True)
class LarkGrammar:
    """The rules of a grammar, the first of which is its start.

    Attributes:
        rules: Bodies of rules, of names (`R0` a rule, `T0` a terminal), brackets, `|`, `?`, `*`,
            `+`, `{n,m}` and `""`.
        terminals: The regular expressions of each terminal: for texts as they are, and for texts
            within a JSON string.
    """

    rules: tuple[str, ...]
    terminals: tuple[tuple[str, str], ...]

    def as_json(self) -> dict[str, Any]:
        """As a parser gets it."""
        return {"rules": list(self.rules), "terminals": [list(one) for one in self.terminals]}


def as_grammar(grammar: str, most: int) -> LarkGrammar:
    """The rules of a grammar.

    Args:
        grammar: Lark text.
        most: Characters that all of them may have, terminals included.

    Raises:
        LarkError: It is no grammar, or has what is not supported, or would be too long.
    """
    rules = _Rules(most)
    for statement in statements(grammar):
        first = statement[0]
        if first.kind == "directive" and first.text == "%ignore":
            rules.ignore(Definition("%ignore", (), statement[1:], first.line))
        elif first.kind == "directive":
            rules.add_imported(imported(statement))
        else:
            rules.add(definition(statement))
    return rules.whole()


class _Rules:
    """All rules and terminals of a grammar, and what has been made of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._num_characters = 0
        self._plain = Expressions(most, PlainSpelling())
        self._quoted = Expressions(most, JsonSpelling(most))
        self._defined: dict[str, Definition] = {}
        self._ignored: list[Definition] = []
        self._numbers: dict[tuple[str, ...], int] = {}
        self._bodies: list[str] = []
        self._waiting: list[tuple[int, Definition, tuple[str, ...]]] = []
        self._terminals: dict[tuple[str, str], int] = {}
        self._depth = 0
        self._between = ""

    def add(self, one: Definition) -> None:
        """One rule or terminal."""
        if one.name in self._defined or one.name in self._plain:
            raise LarkError(f"`{one.name[:40]}` is defined twice", one.line)
        if _TERMINAL.fullmatch(one.name) is None:
            self._defined[one.name] = one
            return
        if one.parameters:
            raise LarkError(f"the terminal `{one.name[:40]}` is a template", one.line)
        self._plain.add(one)
        self._quoted.add(one)

    def add_imported(self, patterns: dict[str, str]) -> None:
        """Terminals whose regular expressions are known."""
        self._plain.add_imported(patterns)
        self._quoted.add_imported(patterns)

    def ignore(self, one: Definition) -> None:
        """A text that may stand between terminals."""
        self._ignored.append(one)

    def whole(self) -> LarkGrammar:
        """The grammar that `start` begins."""
        begun = self._new_rule()
        if self._ignored:
            # It is read before there is anything between terminals, its own ones included.
            parts = [_RuleBody(self, one, {}).whole() for one in self._ignored]
            between = self._new_rule()
            self._put(between, f"({' | '.join(parts)})*")
            self._between = f" R{between}"
        start = self.rule(START, None, ())
        self._put(begun, f"{self._between} {start}".strip())
        while self._waiting:
            number, rule, arguments = self._waiting.pop()
            named = dict(zip(rule.parameters, arguments, strict=True))
            self._put(number, _RuleBody(self, rule, named).whole())
        return LarkGrammar(tuple(self._bodies), tuple(self._terminals))

    def rule(self, name: str, line: int | None, arguments: tuple[str, ...]) -> str:
        """The name of a rule, or of a template with its arguments."""
        rule = self._defined.get(name)
        if rule is None:
            raise LarkError(f"there is no rule `{name[:40]}`", line)
        if len(arguments) != len(rule.parameters):
            words = f"the template `{name[:40]}` has {len(rule.parameters)} parameters, not"
            raise LarkError(f"{words} {len(arguments)}", line)
        key = (name, *arguments)
        if key not in self._numbers:
            self._take(sum(map(len, arguments)))
            self._numbers[key] = self._new_rule()
            self._waiting.append((self._numbers[key], rule, arguments))
        return f"R{self._numbers[key]}"

    def terminal(self, name: str, line: int) -> str:
        """An expression for a terminal of the grammar."""
        if name not in self._plain:
            raise LarkError(f"there is no terminal `{name[:40]}`", line)
        return self._terminal(self._plain.of(name, line), self._quoted.of(name, line))

    def literal(self, literal: Literal) -> str:
        """An expression for a text that stands in a rule."""
        return self._terminal(self._plain.spelling.of(literal), self._quoted.spelling.of(literal))

    def enter(self, line: int) -> None:
        """A bracket begins within those that are open."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise LarkError(f"brackets are nested deeper than {MAX_DEPTH} levels", line)

    def leave(self) -> None:
        """It ends."""
        self._depth -= 1

    def check_length(self, num_characters: int) -> None:
        """Refuse a grammar that is too long with so many more characters."""
        if self._num_characters + num_characters > self._most:
            raise LarkError(f"its rules and terminals have more than {self._most} characters")

    def _terminal(self, plain: str, quoted: str) -> str:
        key = (plain, quoted)
        if key not in self._terminals:
            self._take(len(plain) + len(quoted))
            self._terminals[key] = len(self._terminals)
        name = f"T{self._terminals[key]}"
        return f"({name}{self._between})" if self._between else name

    def _new_rule(self) -> int:
        if len(self._bodies) >= MAX_RULES:
            raise LarkError(f"it has more than {MAX_RULES} rules, those of templates included")
        self._bodies.append("")
        return len(self._bodies) - 1

    def _put(self, number: int, body: str) -> None:
        self._take(len(body))
        self._bodies[number] = body

    def _take(self, num_characters: int) -> None:
        self.check_length(num_characters)
        self._num_characters += num_characters


class _RuleBody(BodyReader):
    """Makes the body of a rule over numbered names."""

    def __init__(self, rules: _Rules, rule: Definition, arguments: dict[str, str]) -> None:
        super().__init__(rule)
        self._rules = rules
        self._arguments_of = arguments

    def literal(self, literal: Literal) -> str:
        return self._rules.literal(literal)

    def name(self, token: Token) -> str:
        argument = self._arguments_of.get(token.text)
        if argument is not None:
            return argument
        if _TERMINAL.fullmatch(token.text) is not None:
            return self._rules.terminal(token.text, token.line)
        return self._rules.rule(token.text, token.line, ())

    def template(self, token: Token, arguments: list[str]) -> str:
        return self._rules.rule(token.text, token.line, tuple(arguments))

    def either(self, parts: list[str]) -> str:
        return parts[0] if len(parts) == 1 else f"({' | '.join(parts)})"

    def joined(self, parts: list[str]) -> str:
        return " ".join(parts) or '""'

    def repeated(self, item: str, times: str) -> str:
        # The engine's language has no repetition of nothing.
        return '""' if times in ("{0}", "{0,0}") else f"({item}){times}"

    def group(self, within: Callable[[], str], line: int, *, is_optional: bool) -> str:
        self._rules.enter(line)
        made = within()
        self._rules.leave()
        return f"({made})" + ("?" if is_optional else "")

    def check_length(self, num_characters: int) -> None:
        self._rules.check_length(num_characters)
