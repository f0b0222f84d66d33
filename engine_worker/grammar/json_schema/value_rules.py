"""What the rules of arrays and objects ask of whoever writes the values within them."""

from typing import Any, Protocol

from engine_worker.grammar.json_schema.document import Document, Schema
from engine_worker.grammar.json_schema.patterns import Patterns
from engine_worker.grammar.json_schema.rules import Expr, Rules
from engine_worker.grammar.json_schema.shape import Shape
from engine_worker.grammar.json_schema.style import Style
from engine_worker.grammar.json_schema.values import Verdict


class ValueRules(Protocol):
    """Writes the values of some schemas at once."""

    document: Document
    style: Style
    rules: Rules
    patterns: Patterns

    def value(self, schemas: tuple[Schema, ...]) -> Expr:
        """An expression for the values that all of some schemas allow."""

    def listed(self, schemas: tuple[Schema, ...]) -> list[Any] | None:
        """All values that some schemas allow, where they are listed; else None.

        Names what can't be told of them.
        """

    def admits(self, schemas: tuple[Schema, ...], value: Any) -> bool:
        """Whether a value is one that all of some schemas allow; names what can't be told."""

    def settled(self, verdict: Verdict) -> bool:
        """Whether a value may be written; names what can't be told of it."""

    def shapes(self, schemas: tuple[Schema, ...]) -> list[Shape]:
        """The shapes of which such a value has at least one."""
