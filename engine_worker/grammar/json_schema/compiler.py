"""Writes the rules of a JSON schema: the way in, and what is common to all kinds of value."""

import json
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from engine_worker.errors import UnsupportedGrammarError
from engine_worker.grammar.json_schema.arrays import ArrayRules
from engine_worker.grammar.json_schema.document import Document, Schema
from engine_worker.grammar.json_schema.numbers import num_digits
from engine_worker.grammar.json_schema.objects import ObjectRules
from engine_worker.grammar.json_schema.patterns import Patterns
from engine_worker.grammar.json_schema.reader import SchemaReader
from engine_worker.grammar.json_schema.rules import (
    NEVER,
    Expr,
    JsonValue,
    Ref,
    Rules,
    Text,
    alt,
    literals,
)
from engine_worker.grammar.json_schema.scalars import ScalarRules
from engine_worker.grammar.json_schema.shape import Shape, conjunction
from engine_worker.grammar.json_schema.style import Style
from engine_worker.grammar.json_schema.values import Verdict, any_of, fits

MAX_NUMBER_DIGITS: Final = 1000
"""Digits of a number in a schema, written without an exponent; a longer one is refused."""
NO_VALUE: Final = "The schema can't be satisfied: no value is valid."


@dataclass(frozen=True, slots=True)
class SchemaRules:
    """The rules of a schema.

    Attributes:
        lark: Lark text whose rule `start` is a value.
        unenforced: Keywords that are left to the model, as pointers into the schema.
    """

    lark: str
    unenforced: tuple[str, ...] = ()


def schema_rules(source: str, *, is_strict: bool = False, has_style: bool = True) -> SchemaRules:
    """The rules of a JSON schema's values.

    Args:
        source: JSON text.
        is_strict: Refuse a schema of which a keyword can't be enforced; a true `x-penstock-strict`
            in the schema does, too.
        has_style: Whether `x-guidance` in the schema says how values are written; if not, what it
            says is left out; and `x-penstock-place` where the schema is in the one that it is a
            part of, whose `$defs` and `definitions` it has.

    Raises:
        UnsupportedGrammarError: It is no schema, nothing satisfies it, or it is strict and more
            than can be enforced.
    """
    try:
        schema = json.loads(
            source, parse_float=_number, parse_int=_integer, parse_constant=_refuse_constant
        )
    except ValueError as error:
        raise UnsupportedGrammarError(f"The schema is not valid JSON: {error}.") from error
    if not isinstance(schema, dict | bool):
        raise UnsupportedGrammarError("A JSON schema is an object.")
    options, place = None, ""
    if isinstance(schema, dict):
        options = schema.pop("x-guidance", None)
        is_strict = schema.pop("x-penstock-strict", False) is True or is_strict
        place = schema.pop("x-penstock-place", "")
        if not has_style or not isinstance(place, str):
            place = ""
    style = Style.of(options if has_style else None)
    compiler = _Compiler(Document(schema, is_strict=is_strict, place=place), style)
    try:
        lark = compiler.lark(schema)
    except RecursionError as error:
        raise UnsupportedGrammarError("The schema is nested too deep.") from error
    if lark is None:
        raise UnsupportedGrammarError(NO_VALUE)
    return SchemaRules(lark, tuple(compiler.document.unenforced))


def _number(text: str) -> Decimal:
    try:
        number = Decimal(text)
    except InvalidOperation as error:  # its exponent has twenty digits
        raise _too_long() from error
    if num_digits(number) > MAX_NUMBER_DIGITS:
        raise _too_long()
    return number


def _integer(text: str) -> int:
    if len(text) > MAX_NUMBER_DIGITS:
        raise _too_long()
    return int(text)


def _too_long() -> UnsupportedGrammarError:
    return UnsupportedGrammarError(
        f"A number of the schema has more than {MAX_NUMBER_DIGITS} digits when it is written"
        " without an exponent."
    )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


class _Compiler:
    """Gives each conjunction of schemas one rule, so that a schema may refer to itself."""

    def __init__(self, document: Document, style: Style) -> None:
        self.document = document
        self.style = style
        self.rules = Rules()
        self.patterns = Patterns()
        self.reader = SchemaReader(document, self.patterns)
        self._known: dict[frozenset[int], Ref] = {}
        self._waiting: list[tuple[Ref, tuple[Schema, ...]]] = []
        self._scalars = ScalarRules(document, style, self.patterns)
        self._arrays = ArrayRules(self)
        self._objects = ObjectRules(self)

    def lark(self, schema: Schema) -> str | None:
        """The whole grammar; None when nothing satisfies the schema."""
        start = self.value(conjunction([schema]))
        while self._waiting:
            rule, schemas = self._waiting.pop()
            self.rules.put(rule, self._body(schemas))
        return self.rules.lark(start)

    def value(self, schemas: tuple[Schema, ...]) -> Expr:
        """An expression for the values that all of some schemas allow."""
        if not schemas:
            return JsonValue(self.style.schema({}))
        if False in schemas:
            return NEVER
        key = frozenset(map(id, schemas))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self.rules.new()
            self._waiting.append((known, schemas))
        return known

    def shapes(self, schemas: tuple[Schema, ...]) -> list[Shape]:
        """The shapes of which such a value has at least one."""
        return self.reader.shapes(schemas)

    def verdict(self, schemas: tuple[Schema, ...], value: Any) -> Verdict:
        """Whether a value is one that all of some schemas allow."""
        return any_of(fits(shape, value, self) for shape in self.reader.shapes(schemas))

    def admits(self, schemas: tuple[Schema, ...], value: Any) -> bool:
        """Whether a value is one that all of some schemas allow; names what can't be told."""
        return self.settled(self.verdict(schemas, value))

    def settled(self, verdict: Verdict) -> bool:
        """Whether a value may be written; names what can't be told of it."""
        for doubt in verdict or ():
            self.document.leave_out(doubt.schema, doubt.keyword, doubt.why)
        return verdict is not None

    def listed(self, schemas: tuple[Schema, ...]) -> list[Any] | None:
        """All values that some schemas allow, where they are listed; else None.

        Names what can't be told of them.
        """
        found: list[tuple[Shape, Any]] = []
        for shape in self.reader.shapes(schemas):
            values = shape.values
            if values is None and shape.types <= {"boolean", "null"}:
                values = [False, True, None]
            if values is None:
                return None
            found += [(shape, value) for value in values]
        return [value for shape, value in found if self.settled(self._fits(shape, value))]

    def _fits(self, shape: Shape, value: Any) -> Verdict:
        return fits(shape, value, self, is_listed=shape.values is not None)

    def _body(self, schemas: tuple[Schema, ...]) -> Expr:
        return alt(*(self._shape(shape) for shape in self.reader.shapes(schemas)))

    def _shape(self, shape: Shape) -> Expr:
        if shape.values is not None:
            values = [value for value in shape.values if self.settled(self._fits(shape, value))]
            return literals(values, self.style)
        if shape == Shape():
            return JsonValue(self.style.schema({}))
        return alt(*(self._of_type(shape, name) for name in sorted(shape.types)))

    def _of_type(self, shape: Shape, name: str) -> Expr:
        match name:
            case "null" | "boolean":
                values = [None] if name == "null" else [True, False]
                left = [one for one in values if self.settled(fits(shape, one, self))]
                return alt(*(Text(json.dumps(one)) for one in left))
            case "number" | "integer":
                return self._scalars.number(shape, is_integer=name == "integer")
            case "string":
                return self._scalars.string(shape)
            case "array":
                return self._arrays.array(shape)
            case _:
                return self._objects.object(shape)
