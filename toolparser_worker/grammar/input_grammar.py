"""The grammar of the text that a custom tool takes, put where a format writes that text."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from toolparser_worker.errors import UnsupportedToolsError
from toolparser_worker.grammar.lark import LarkWriter, regex, without_texts
from toolparser_worker.machine.tool_schemas import INPUT_GRAMMAR

_KEY: Final = INPUT_GRAMMAR
"""There a function has `{"rules": […], "terminals": [[plain, quoted], …]}`; there the schema of the
argument has it, too, once it is read."""
_RULE: Final = re.compile(r'(?:R\d{1,6}|T\d{1,6}|""|\{\d{1,4}(?:,\d{0,4})?\}|[()|?*+ ])+')
_NAME: Final = re.compile(r"([RT])(\d+)")


@dataclass(frozen=True, slots=True)
class InputGrammar:
    """Rules over terminals, of which the first is the beginning.

    Attributes:
        rules: Bodies with the names `R0`, `R1` … of rules and `T0`, `T1` … of terminals.
        terminals: Regular expressions of each: of texts as they are, and of texts within a JSON
            string.
    """

    rules: tuple[str, ...]
    terminals: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, function: Mapping[str, Any]) -> "InputGrammar | None":
        """That of a tool's function; None where it has none.

        Raises:
            UnsupportedToolsError: It is none.
        """
        value = function.get(_KEY)
        if value is None:
            return None
        try:
            rules = tuple(map(str, value["rules"]))
            terminals = tuple((str(plain), str(quoted)) for plain, quoted in value["terminals"])
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UnsupportedToolsError("the grammar of its input can't be read.") from error
        counts = {"R": len(rules), "T": len(terminals)}
        are_rules = all(map(_RULE.fullmatch, rules))
        names = [match for body in rules for match in _NAME.finditer(body)]
        if not rules or not are_rules or any(int(one[2]) >= counts[one[1]] for one in names):
            raise UnsupportedToolsError("the grammar of its input is no grammar.")
        return cls(rules, terminals)

    def written(self, writer: LarkWriter, *, is_quoted: bool, without: Iterable[str] = ()) -> str:
        """An expression for the text.

        Args:
            writer: Gets the rules.
            is_quoted: The text stands within a JSON string, without its quotes.
            without: Texts that no terminal contains, because they would end the argument.
        """
        rules = [writer.new_name() for _ in self.rules]
        ends = tuple(without)
        names = {
            "R": rules,
            "T": [
                writer.terminal(without_texts(regex(one[is_quoted]), ends))
                for one in self.terminals
            ],
        }
        for name, body in zip(rules, self.rules, strict=True):
            writer.rule(_NAME.sub(lambda match: names[match[1]][int(match[2])], body), name)
        return rules[0]


def with_grammar(parameters: Mapping[str, Any], grammar: InputGrammar) -> dict[str, Any]:
    """The schema of arguments that are one text, which knows the grammar of the text."""
    ((name, text),) = parameters["properties"].items()
    return {**parameters, "properties": {name: {**text, _KEY: grammar}}}


def grammar_of(schema: Mapping[str, Any]) -> InputGrammar | None:
    """The grammar that the schema of a text knows."""
    found = schema.get(_KEY)
    return found if isinstance(found, InputGrammar) else None
