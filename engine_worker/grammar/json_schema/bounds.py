"""Reads the keywords that bound a value of one type: lengths, counts, numbers, patterns."""

from decimal import Decimal
from typing import Any, Final

from engine_worker.grammar.json_schema.document import Document
from engine_worker.grammar.json_schema.shape import Shape, higher, lower

_MAX_COUNT: Final = 10**6


class BoundsReader:
    """Reads the bounds of one schema, which `Document.check` looked at."""

    def __init__(self, document: Document, schema: dict[str, Any]) -> None:
        self._document = document
        self._schema = schema

    def read(self, shape: Shape) -> None:
        """Narrow a shape by them."""
        self._read_numbers(shape)
        shape.min_length = max(shape.min_length, self._count("minLength") or 0)
        shape.max_length = _least(shape.max_length, self._count("maxLength"))
        shape.min_items = max(shape.min_items, self._count("minItems") or 0)
        shape.max_items = _least(shape.max_items, self._count("maxItems"))
        for keyword in ("minProperties", "maxProperties"):
            if keyword in self._schema:
                shape.counted_by.append((self._schema, keyword))
        shape.min_properties = max(shape.min_properties, self._count("minProperties") or 0)
        shape.max_properties = _least(shape.max_properties, self._count("maxProperties"))
        schema = self._schema
        for keyword, found in (("pattern", shape.patterns), ("format", shape.formats)):
            if keyword in schema:
                found.append((schema[keyword], schema))
        if schema.get("uniqueItems") is True:
            shape.unique.append(schema)
        required = schema.get("required", [])
        if isinstance(required, bool):
            self._document.leave_out(schema, "required", "it is a list of names.")
        else:
            shape.required.update(dict.fromkeys(required))
        self._read_contains(shape)

    def _read_contains(self, shape: Shape) -> None:
        schema = self._schema
        if "contains" not in schema:
            return
        least = self._count("minContains")
        least = 1 if least is None else least
        if "maxContains" in schema:
            self._document.leave_out(schema, "maxContains", "items are not counted.")
        shape.contains.append((schema["contains"], least, schema))

    def _read_numbers(self, shape: Shape) -> None:
        schema = self._schema
        for inclusive, exclusive, is_low in (
            ("minimum", "exclusiveMinimum", True),
            ("maximum", "exclusiveMaximum", False),
        ):
            bounds = []
            is_left_out = schema.get(exclusive) is True  # as in draft 4
            if inclusive in schema:
                bounds.append((inclusive, (self._number(inclusive), is_left_out)))
            if exclusive in schema and not isinstance(schema[exclusive], bool):
                bounds.append((exclusive, (self._number(exclusive), True)))
            for keyword, bound in bounds:
                if is_low and higher(shape.low, bound) != shape.low:
                    shape.low, shape.low_origin = bound, (schema, keyword)
                elif not is_low and lower(shape.high, bound) != shape.high:
                    shape.high, shape.high_origin = bound, (schema, keyword)
        if "multipleOf" in schema:
            shape.multiples.append((self._number("multipleOf"), schema))

    def _number(self, keyword: str) -> Decimal:
        return Decimal(self._schema[keyword])

    def _count(self, keyword: str) -> int | None:
        """A number of things; 1.0 is 1."""
        if keyword not in self._schema:
            return None
        return min(int(self._schema[keyword]), _MAX_COUNT)


def _least(left: int | None, right: int | None) -> int | None:
    if left is None or right is None:
        return right if left is None else left
    return min(left, right)
