"""Rules for arrays."""

from typing import Any, Final

from engine_worker.grammar.json_schema.document import Schema
from engine_worker.grammar.json_schema.rules import (
    EMPTY,
    NEVER,
    Expr,
    JsonValue,
    Ref,
    Repeat,
    Text,
    alt,
    literals,
    seq,
)
from engine_worker.grammar.json_schema.shape import Shape, conjunction, same
from engine_worker.grammar.json_schema.value_rules import ValueRules

MAX_UNIQUE: Final = 7
"""Values of an enum whose arrays without repetition are enforced: each subset has a rule."""
MAX_CONTAINED: Final = 8


class ArrayRules:
    """Writes expressions for arrays.

    Args:
        inner: Writes their items.
    """

    def __init__(self, inner: ValueRules) -> None:
        self._inner = inner

    def array(self, shape: Shape) -> Expr:
        """An expression for the arrays of a shape."""
        least, most = shape.min_items, shape.max_items
        for value, origin in shape.excluded:
            if value == []:
                least = max(least, 1)
            elif isinstance(value, list):
                self._inner.document.leave_out_negation(origin, "what is forbidden is an array.")
        if most is not None and least > most:
            return NEVER
        num_prefix = shape.num_prefix
        if shape.unique and (most is None or most > 1):
            unique = self._unique(shape, least, most) if num_prefix == 0 else None
            if unique is not None:
                return unique
            for schema in shape.unique:
                self._inner.document.leave_out(
                    schema, "uniqueItems", "its items aren't a few listed values."
                )
        if _wanted(shape):
            containing = self._containing(shape, least, most)
            if containing is not None:
                return containing
        if not shape.arrays and not least and most is None:
            return JsonValue(self._inner.style.schema({"type": "array"}))
        return seq(Text("["), self._items(shape, num_prefix, least, most), Text("]"))

    def _items(self, shape: Shape, num_prefix: int, least: int, most: int | None) -> Expr:
        rest = self._inner.value(shape.item(num_prefix))
        separator = Text(self._inner.style.item_separator)
        more = seq(separator, rest)
        if most is None or most > num_prefix:
            left = None if most is None else most - num_prefix
            if num_prefix:
                body: Expr = Repeat(more, max(0, least - num_prefix), left)
            else:
                following = Repeat(more, max(0, least - 1), None if left is None else left - 1)
                body = seq(rest, following)
                body = body if least else alt(EMPTY, body)
        else:
            num_prefix = most
            body = EMPTY
        for index in reversed(range(num_prefix)):
            item = self._inner.value(shape.item(index))
            here = seq(separator if index else EMPTY, item, body)
            body = self._inner.rules.put(
                self._inner.rules.new(), here if index < least else alt(EMPTY, here)
            )
        return body

    def _unique(self, shape: Shape, least: int, most: int | None) -> Expr | None:
        listed = self._inner.listed(shape.item(0))
        if listed is None or _wanted(shape):
            return None
        values: list[Any] = []
        for value in listed:
            if not any(same(value, one) for one in values):
                values.append(value)
            if len(values) > MAX_UNIQUE:
                return None
        spellings = [literals([value], self._inner.style) for value in values]
        separator = Text(self._inner.style.item_separator)
        known: dict[frozenset[int], Ref] = {}

        def after(used: frozenset[int]) -> Ref:
            if used not in known:
                known[used] = self._inner.rules.new()
                ways: list[Expr] = [EMPTY] if len(used) >= least else []
                if most is None or len(used) < most:
                    ways += [
                        seq(separator if used else EMPTY, spellings[index], after(used | {index}))
                        for index in range(len(values))
                        if index not in used
                    ]
                self._inner.rules.put(known[used], alt(*ways))
            return known[used]

        return seq(Text("["), after(frozenset()), Text("]"))

    def _containing(self, shape: Shape, least: int, most: int | None) -> Expr | None:
        """Arrays that contain something; None when only the model can see to it."""
        contains = _wanted(shape)
        wanted, number, _ = contains[0]
        if (
            len(contains) > 1
            or number > MAX_CONTAINED
            or shape.num_prefix
            or most is not None
            or least > number
        ):
            for _, _, schema in contains:
                self._inner.document.leave_out(
                    schema, "contains", "it stands beside other keywords of arrays."
                )
            return None
        item = shape.item(0)
        rest = self._inner.value(item)
        hit = self._inner.value(conjunction([*item, wanted]))
        separator = Text(self._inner.style.item_separator)
        before, behind = (
            Repeat(seq(rest, separator), 0, None),
            Repeat(seq(separator, rest), 0, None),
        )
        more = seq(separator, before, hit)
        return seq(Text("["), before, hit, Repeat(more, number - 1, number - 1), behind, Text("]"))


def _wanted(shape: Shape) -> list[tuple[Schema, int, Schema]]:
    """The schemas of items of which there must be some."""
    return [one for one in shape.contains if one[1]]
