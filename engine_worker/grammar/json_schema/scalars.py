"""Rules for numbers and strings."""

from decimal import Decimal
from fractions import Fraction
from math import ceil, floor, gcd, lcm
from typing import Any, Final

from engine_worker.grammar.json_schema.document import Document, Schema
from engine_worker.grammar.json_schema.formats import (
    MAX_LENGTHS,
    NATIVE_FORMATS,
    OWN_FORMATS,
    UNENFORCED_FORMATS,
)
from engine_worker.grammar.json_schema.numbers import (
    MAX_DIGITS,
    has_room,
    has_whole,
    num_digits,
    number_body,
    spellings,
)
from engine_worker.grammar.json_schema.patterns import Patterns
from engine_worker.grammar.json_schema.rules import NEVER, Expr, JsonValue, Terminal, quoted
from engine_worker.grammar.json_schema.shape import Bound, Shape, type_of
from engine_worker.grammar.json_schema.style import Style, dumped

STRING_BODY: Final = r'/"([^"\\\x00-\x1F\x7F]|\\["\\bfnrt]|\\u00(0[0-7bef]|1[0-9a-f]|7f))*"/'
"""Strings in which each character is written in one way, so that texts can be told apart."""
_MAX_EXACT: Final = 2**53
_MAX_FRACTION_DIGITS: Final = 9
_MAX_MULTIPLE: Final = 10_000
"""Remainders of a division that are told apart: each is a state."""


class ScalarRules:
    """Writes expressions for numbers and strings.

    Args:
        document: Learns what is left to the model.
        style: How strings are written.
        patterns: Knows which can be enforced.
    """

    def __init__(self, document: Document, style: Style, patterns: Patterns) -> None:
        self._document = document
        self._style = style
        self._patterns = patterns

    def number(self, shape: Shape, *, is_integer: bool) -> Expr:
        """An expression for the numbers of a shape."""
        low, high = (
            self._bound(shape.low, *shape.low_origin),
            self._bound(shape.high, *shape.high_origin),
        )
        if not (has_whole(low, high) if is_integer else has_room(low, high)):
            return NEVER
        if shape.is_fraction and is_integer:
            return NEVER
        multiple = self._multiple(shape, low, high, is_integer=is_integer)
        excluded = [(one, schema) for one, schema in shape.excluded if type_of(one) == "number"]
        if multiple is not None:
            origins = [schema for _, schema in excluded]
            if shape.fraction_origin is not None:
                origins.append(shape.fraction_origin)
            for schema in origins:
                self._document.leave_out_negation(
                    schema, "what is forbidden stands beside `multipleOf`."
                )
            return self._value(multiple)
        body = number_body(low, high, is_integer=is_integer)
        if excluded or shape.is_fraction:
            forbidden = [f"/{spellings(Decimal(one))}/" for one, _ in excluded]
            if shape.is_fraction:
                forbidden.append(r"/-?(0|[1-9][0-9]*)(\.0+)?/")
            if not is_integer and low is None and high is None:
                # Without exponents, in which a number has many spellings.
                body = r"/-?(0|[1-9][0-9]*)(\.[0-9]+)?/"
            body = f"({body}) & ~({' | '.join(forbidden)})"
            if not self._patterns.has_texts(body):
                return NEVER
        return Terminal(body)

    def _bound(self, bound: Bound | None, origin: Schema, keyword: str) -> Bound | None:
        if bound is None or num_digits(bound[0]) <= MAX_DIGITS:
            return bound
        self._document.leave_out(origin, keyword, f"it has more than {MAX_DIGITS} digits.")
        return None

    def _multiple(
        self, shape: Shape, low: Bound | None, high: Bound | None, *, is_integer: bool
    ) -> dict[str, Any] | None:
        """A schema of llguidance's for numbers that are multiples; None without any."""
        multiples = [Fraction(one) for one, _ in shape.multiples]
        if is_integer and not any(one != 1 for one in multiples):
            return None
        if not multiples:
            return None
        common = multiples[0]
        for one in multiples[1:]:
            common = Fraction(
                lcm(common.numerator, one.numerator), gcd(common.denominator, one.denominator)
            )
        if is_integer:
            common = Fraction(common.numerator)  # the least integer that is one
        schema: dict[str, Any] = {"type": "integer" if common.denominator == 1 else "number"}
        digits = Decimal(common.numerator) / Decimal(common.denominator)
        exponent = digits.as_tuple().exponent
        is_exact = (
            common.numerator <= _MAX_MULTIPLE
            and isinstance(exponent, int)
            and -exponent <= _MAX_FRACTION_DIGITS
        )
        bounds = [bound for bound in (low, high) if bound is not None]
        is_exact = is_exact and all(
            abs(bound) < _MAX_EXACT and num_digits(bound) <= 15 for bound, _ in bounds
        )
        if not is_exact:
            for _, origin in shape.multiples:
                self._document.leave_out(origin, "multipleOf", "its digits are too many.")
            return None
        schema["multipleOf"] = digits
        # llguidance takes 1 for one above 1 and below 1.5, so bounds are multiples themselves.
        if low is not None:
            schema["minimum"] = _nearest(low, common, up=True)
        if high is not None:
            schema["maximum"] = _nearest(high, common, up=False)
        return schema

    def string(self, shape: Shape) -> Expr:
        """An expression for the strings of a shape."""
        schema: dict[str, Any] = {"type": "string"}
        least, most = shape.min_length, shape.max_length
        excluded = [(one, schema) for one, schema in shape.excluded if isinstance(one, str)]
        if any(one == "" for one, _ in excluded):
            least = max(least, 1)
            excluded = [(one, origin) for one, origin in excluded if one]
        patterns: dict[str, None] = {}
        for pattern, origin in shape.patterns:
            if self._patterns.are_known(pattern):
                patterns[self._patterns.as_rust(pattern)] = None
            else:
                self._document.leave_out(
                    origin, "pattern", "it has parts that no grammar can follow."
                )
        native = None
        for name, origin in shape.formats:
            if name in OWN_FORMATS:
                patterns[f"^({OWN_FORMATS[name]})$"] = None
                if name in MAX_LENGTHS:
                    most = MAX_LENGTHS[name] if most is None else min(most, MAX_LENGTHS[name])
            elif name in NATIVE_FORMATS and native in (None, name):
                native = name
            elif name in NATIVE_FORMATS or name in UNENFORCED_FORMATS:
                self._document.leave_out(origin, "format", f"{name!r} is none that is enforced.")
        if most is not None and least > most:
            return NEVER
        if least:
            schema["minLength"] = least
        if most is not None:
            schema["maxLength"] = most
        if native is not None:
            schema["format"] = native
        if len(patterns) == 1:
            (schema["pattern"],) = patterns
        elif patterns:
            schema["allOf"] = [{"pattern": pattern} for pattern in patterns]
        if excluded and len(schema) == 1:
            forbidden = " | ".join(quoted(dumped(one)) for one, _ in excluded)
            return Terminal(f"{STRING_BODY} & ~({forbidden})")
        for _, origin in excluded:
            self._document.leave_out_negation(
                origin, "what is forbidden stands beside other keywords of strings."
            )
        return self._value(schema)

    def _value(self, schema: dict[str, Any]) -> Expr:
        written = self._style.schema(schema)
        return JsonValue(written) if self._patterns.has_values(written) else NEVER


def _nearest(bound: Bound, multiple: Fraction, *, up: bool) -> Decimal:
    """The nearest multiple within a bound."""
    number, is_left_out = bound
    steps = Fraction(number) / multiple
    whole = ceil(steps) if up else floor(steps)
    if is_left_out and whole == steps:
        whole += 1 if up else -1
    found = whole * multiple
    return Decimal(found.numerator) / Decimal(found.denominator)
