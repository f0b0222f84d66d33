"""Reads schemas: from several at once to the shapes of which a value must have one."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

from engine_worker.grammar.json_schema.bounds import BoundsReader
from engine_worker.grammar.json_schema.document import Document, Schema, UnresolvableError
from engine_worker.grammar.json_schema.patterns import Patterns
from engine_worker.grammar.json_schema.shape import (
    ALL_TYPES,
    ArrayPart,
    ObjectPart,
    Shape,
    higher,
    lower,
    meet_types,
    same,
    type_of,
)
from engine_worker.grammar.json_schema.values import Verdict, fits

MAX_SHAPES: Final = 64
"""Alternatives of one value; a keyword that would make more is left to the model."""
_MAX_NEGATIONS: Final = 16
_MAX_DEPTH: Final = 12


_Choice = tuple[tuple[Schema, bool], ...]
"""Schemas at once, each with whether it describes members and items, or only forbids."""
_NOBODY: Final[frozenset[int]] = frozenset()


@dataclass(frozen=True, slots=True)
class _Lenient:
    """Takes whatever is within a value."""

    patterns: Patterns

    def verdict(self, schemas: tuple[Schema, ...], value: Any) -> Verdict:
        return ()


@dataclass(slots=True)
class _State:
    """A shape in the making.

    Attributes:
        pending: Schemas to read yet, with the schemas that they are part of.
        seen: Those that were read.
        unevaluated: Schemas with keywords about what no other keyword described.
    """

    shape: Shape
    pending: list[tuple[Schema, frozenset[int]]]
    seen: frozenset[int] = frozenset()
    unevaluated: tuple[tuple[dict[str, Any], frozenset[int]], ...] = ()

    def branch(self, *more: tuple[Schema, frozenset[int]]) -> "_State":
        return _State(self.shape.copy(), [*more, *self.pending], self.seen, self.unevaluated)

    def adopt(self, schema: dict[str, Any], owners: frozenset[int]) -> None:
        """A schema that was read before is part of more schemas, with all that is part of it."""

        def grown(known: frozenset[int]) -> frozenset[int]:
            return known | owners if id(schema) in known else known

        shape = self.shape
        shape.objects = [replace(part, owners=grown(part.owners)) for part in shape.objects]
        shape.arrays = [replace(part, owners=grown(part.owners)) for part in shape.arrays]
        self.pending = [(one, grown(known)) for one, known in self.pending]
        self.unevaluated = tuple((one, grown(known)) for one, known in self.unevaluated)


class SchemaReader:
    """Reads the schemas of one document.

    Args:
        document: It learns which keywords are left to the model.
        patterns: Knows which texts have them.
    """

    def __init__(self, document: Document, patterns: Patterns) -> None:
        self.document = document
        self._lenient = _Lenient(patterns)
        self._negations: dict[int, list[Schema] | None] = {}
        self._is_comparing = False

    def shapes(self, schemas: tuple[Schema, ...]) -> list[Shape]:
        """The shapes of which a value of all these schemas has at least one.

        Raises:
            UnsupportedGrammarError: A keyword means nothing, or can't be enforced and must be.
        """
        first = _State(Shape(), [(schema, frozenset()) for schema in schemas])
        waiting, done = [first], []
        while waiting:
            state = waiting.pop()
            if state.shape.is_hopeless:
                continue
            if not state.pending:
                done.append(self._finished(state))
                continue
            schema, owners = state.pending.pop(0)
            if schema is False:
                continue
            if schema is True or id(schema) in state.seen:
                if owners and isinstance(schema, dict):
                    state.adopt(schema, owners)
                waiting.append(state)
                continue
            assert isinstance(schema, dict)
            state.seen |= {id(schema)}
            room = MAX_SHAPES - len(waiting) - len(done)
            waiting += reversed(self._read(state, schema, owners | {id(schema)}, room))
        return [shape for shape in done if not shape.is_hopeless]

    # One schema.

    def _read(
        self, state: _State, schema: dict[str, Any], owners: frozenset[int], room: int
    ) -> list[_State]:
        """The states that a schema makes of one."""
        document = self.document
        document.check(schema)
        following: list[Schema] = []
        for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
            if keyword in schema:
                target = self._target(schema, keyword)
                if target is not None:
                    following.append(target)
        if "$ref" in schema and document.has_old_references:
            return [state.branch(*((one, owners) for one in following))]
        self._read_types(state.shape, schema)
        BoundsReader(document, schema).read(state.shape)
        self._read_parts(state.shape, schema, owners)
        if "unevaluatedProperties" in schema or "unevaluatedItems" in schema:
            state.unevaluated += ((schema, owners),)
        following += schema.get("allOf", [])
        combined: list[_Choice] = [tuple((one, True) for one in following)]
        for keyword, choices in self._choices(schema):
            if len(combined) * len(choices) > max(room, 1) and len(choices) > 1:
                document.leave_out(schema, keyword, "it makes too many alternatives.")
                continue
            combined = [(*one, *choice) for one in combined for choice in choices]
        # What `not` says describes no member: it only forbids.
        return [
            state.branch(*((part, owners if counts else _NOBODY) for part, counts in choice))
            for choice in combined
        ]

    def _target(self, schema: dict[str, Any], keyword: str) -> Schema | None:
        reference = schema[keyword]
        try:
            if keyword == "$ref":
                return self.document.resolve(schema, reference)
            if keyword == "$recursiveRef":
                return self.document.resolve(schema, reference)
            target = self.document.resolve_dynamic(schema, reference)
            if target is not None:
                return target
            why = "where it goes depends on who asks."
        except UnresolvableError:
            why = f"{str(reference)[:100]!r} is outside of the schema."
        self.document.leave_out(schema, keyword, why)
        return None

    def _choices(self, schema: dict[str, Any]) -> Iterator[tuple[str, list[_Choice]]]:
        """For each keyword that branches: its alternatives, each some schemas at once."""
        if "anyOf" in schema:
            yield "anyOf", [((one, True),) for one in schema["anyOf"]]
        if "oneOf" in schema:
            yield "oneOf", self._one_of(schema)
        if "not" in schema:
            negated = self.negated(schema["not"])
            if negated is None:
                self.document.leave_out(schema, "not", "it isn't of a simple form.")
            else:
                yield "not", [((one, False),) for one in negated]
        if "if" in schema and ("then" in schema or "else" in schema):
            condition, then = schema["if"], schema.get("then", True)
            negated = self.negated(condition)
            if negated is None:
                self.document.leave_out(schema, "if", "its condition isn't of a simple form.")
            else:
                other = schema.get("else", True)
                yield (
                    "if",
                    [
                        ((condition, True), (then, True)),
                        *(((one, False), (other, True)) for one in negated),
                    ],
                )
        yield from self._dependencies(schema)

    def _dependencies(self, schema: dict[str, Any]) -> Iterator[tuple[str, list[_Choice]]]:
        made = self.document.made
        for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
            for name, needed in schema.get(keyword, {}).items():
                if isinstance(needed, list):
                    names = made({"type": "object", "required": [name, *needed]}, schema)
                    with_it: _Choice = ((names, True),)
                else:
                    present = made({"type": "object", "required": [name]}, schema)
                    with_it = ((present, True), (needed, True))
                without = made({"properties": {name: False}}, schema)
                yield keyword, [with_it, ((without, False),)]

    def _one_of(self, schema: dict[str, Any]) -> list[_Choice]:
        """Alternatives of which no two are true at once, as far as that can be made sure of."""
        branches = schema["oneOf"]
        if self._is_comparing:
            return [((branch, True),) for branch in branches]
        overlaps: dict[int, list[int]] = {}
        shapes = [self._quiet_shapes((branch,)) for branch in branches]
        for first in range(len(branches)):
            for second in range(first):
                if not self._all_disjoint(shapes[first], shapes[second]):
                    overlaps.setdefault(first, []).append(second)
                    overlaps.setdefault(second, []).append(first)
        found: list[_Choice] = []
        is_exact = True
        for index, branch in enumerate(branches):
            choices: list[_Choice] = [((branch, True),)]
            for other in overlaps.get(index, ()):
                negated = self.negated(branches[other])
                if negated is None or len(choices) * len(negated) > _MAX_NEGATIONS:
                    is_exact = False
                    continue
                choices = [(*choice, (one, False)) for choice in choices for one in negated]
            found += choices
        if not is_exact:
            why = "more than one of its schemas may be true at once."
            self.document.leave_out(schema, "oneOf", why)
        return found

    def _read_types(self, shape: Shape, schema: dict[str, Any]) -> None:
        declared = schema.get("type")
        if declared is not None and declared != "any":
            names = declared if isinstance(declared, list) else [declared]
            types = frozenset(names) - ({"integer"} if "number" in names else set())
            shape.types = meet_types(shape.types, types)
        for values in ([schema["const"]] if "const" in schema else None, schema.get("enum")):
            if values is None:
                continue
            known = shape.values
            shape.values = [
                value for value in values if known is None or any(same(value, one) for one in known)
            ]
        if self.document.is_made(schema):
            if "x-penstock-fraction" in schema:
                shape.fraction_origin = schema
            shape.excluded += [(value, schema) for value in schema.get("x-penstock-not", ())]

    def _read_parts(self, shape: Shape, schema: dict[str, Any], owners: frozenset[int]) -> None:
        """What a schema says of members and items."""
        properties, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        additional = schema.get("additionalProperties")
        if properties or patterns or additional is not None:
            shape.objects.append(ObjectPart(owners, schema, properties, patterns, additional))
        if "propertyNames" in schema:
            shape.names.append((schema["propertyNames"], schema))
        items, prefix = schema.get("items"), schema.get("prefixItems")
        rest = items
        if isinstance(items, list):
            prefix, rest = items, schema.get("additionalItems")
        if prefix or rest is not None:
            shape.arrays.append(ArrayPart(owners, schema, tuple(prefix or ()), rest))

    def _finished(self, state: _State) -> Shape:
        """A shape with what its unevaluated members and items have to be."""
        shape = state.shape
        # The innermost first: what it describes, an outer one finds described. What lies within
        # another one has all of its owners, and more.
        for schema, owners in sorted(state.unevaluated, key=lambda one: -len(one[1])):
            inner = [part for part in shape.objects if id(schema) in part.owners]
            rest = schema.get("unevaluatedProperties")
            if rest is not None and not any(part.additional is not None for part in inner):
                properties: dict[str, Schema] = {}
                patterns: dict[str, Schema] = {}
                for part in inner:
                    properties.update(dict.fromkeys(part.properties, True))
                    patterns.update(dict.fromkeys(part.patterns, True))
                shape.objects.append(ObjectPart(owners, schema, properties, patterns, rest))
            rest = schema.get("unevaluatedItems")
            arrays = [part for part in shape.arrays if id(schema) in part.owners]
            if rest is None or any(part.rest is not None for part in arrays):
                continue
            if shape.contains:
                self.document.leave_out(
                    schema, "unevaluatedItems", "`contains` says which items count."
                )
                continue
            longest = max((len(part.prefix) for part in arrays), default=0)
            shape.arrays.append(ArrayPart(owners, schema, (True,) * longest, rest))
        return shape

    # What is not so.

    def negated(self, schema: Schema, depth: int = 0) -> list[Schema] | None:
        """Schemas of which at least one is true just where this one is not; None when unknown."""
        if isinstance(schema, bool):
            return [] if schema else [True]
        if id(schema) not in self._negations:
            self._negations[id(schema)] = None  # while it is worked on, as for one that recurs
            self._negations[id(schema)] = self._negated(schema, depth)
        return self._negations[id(schema)]

    def _negated(self, schema: dict[str, Any], depth: int) -> list[Schema] | None:
        if depth > _MAX_DEPTH:
            return None
        self.document.check(schema)
        found: list[Schema] = []
        if "$ref" in schema and self.document.has_old_references:
            return self._negated_keyword(schema, "$ref", schema["$ref"], depth)
        for keyword, value in schema.items():
            if keyword in ("then", "else"):
                return None
            if keyword in ("x-penstock-not", "x-penstock-fraction") and self.document.is_made(
                schema
            ):
                return None
            if keyword not in _MEANINGFUL:
                continue
            part = self._negated_keyword(schema, keyword, value, depth)
            if part is None or len(found) + len(part) > _MAX_NEGATIONS:
                return None
            found += part
        return found

    def _negated_keyword(
        self, schema: dict[str, Any], keyword: str, value: Any, depth: int
    ) -> list[Schema] | None:
        def made(content: dict[str, Any]) -> Schema:
            return self.document.made(content, schema)

        match keyword:
            case "$ref":
                try:
                    return self.negated(self.document.resolve(schema, value), depth + 1)
                except UnresolvableError:
                    return None
            case "type":
                names = set(value if isinstance(value, list) else [value])
                if "any" in names:
                    return []
                left = sorted(ALL_TYPES - names - ({"number"} if "integer" in names else set()))
                others = [made({"type": left})] if left else []
                if "integer" in names and "number" not in names:
                    others.append(made({"type": "number", "x-penstock-fraction": True}))
                return others
            case "const":
                return [made({"x-penstock-not": [value]})]
            case "enum":
                return [made({"x-penstock-not": value})]
            case "not":
                return [value]
            case "allOf":
                parts = [self.negated(one, depth + 1) for one in schema[keyword]]
                if any(part is None for part in parts):
                    return None
                return [one for part in parts for one in part or ()]
            case "anyOf":
                parts = [self.negated(one, depth + 1) for one in schema[keyword]]
                whole: list[list[Schema]] = [[]]
                for part in parts:
                    if part is None or len(whole) * len(part) > _MAX_NEGATIONS:
                        return None
                    whole = [[*one, other] for one in whole for other in part]
                return [made({"allOf": one}) for one in whole]
            case "required":
                if not isinstance(value, list):
                    return None
                return [made({"type": "object", "properties": {name: False}}) for name in value]
            case "properties":
                found: list[Schema] = []
                for name, inner in schema[keyword].items():
                    part = self.negated(inner, depth + 1)
                    if part is None:
                        return None
                    found += [
                        made({"type": "object", "required": [name], "properties": {name: one}})
                        for one in part
                    ]
                return found
        opposite = _OPPOSITES.get(keyword)
        if opposite is None or not isinstance(value, int | Decimal) or isinstance(value, bool):
            return None
        type_name, other, step = opposite
        if type_name != "number" and value + step < 0:
            return []
        return [made({"type": type_name, other: value + step})]

    # Which shapes exclude each other.

    def _quiet_shapes(self, schemas: tuple[Schema, ...]) -> list[Shape]:
        """Shapes to compare: what they leave to the model is named where they are written."""
        document = self.document
        named, is_strict = document.unenforced, document.is_strict
        was_comparing = self._is_comparing
        document.unenforced, document.is_strict, self._is_comparing = {}, False, True
        try:
            return self.shapes(schemas)
        finally:
            document.unenforced, document.is_strict = named, is_strict
            self._is_comparing = was_comparing

    def _all_disjoint(self, left: list[Shape], right: list[Shape], depth: int = 0) -> bool:
        return all(self._are_disjoint(one, other, depth) for one in left for other in right)

    def _are_disjoint(self, left: Shape, right: Shape, depth: int) -> bool:
        common = meet_types(left.types, right.types)
        if left.values is not None and right.values is not None:
            return not any(same(one, other) for one in left.values for other in right.values)
        return all(self._differ(left, right, name, depth) for name in common)

    def _differ(self, left: Shape, right: Shape, type_name: str, depth: int) -> bool:
        """Whether no value of a type has both shapes."""
        for one, other in ((left, right), (right, left)):
            if one.values is not None and not any(
                self._may_hold(other, value, type_name) for value in one.values
            ):
                return True
        if type_name in ("number", "integer"):
            low = left.low if right.low is None else higher(left.low, right.low)
            high = left.high if right.high is None else lower(left.high, right.high)
            if low is not None and high is not None:
                return low[0] > high[0] or (low[0] == high[0] and (low[1] or high[1]))
            return False
        if type_name == "string":
            return _is_apart(left.min_length, left.max_length, right.min_length, right.max_length)
        if type_name == "array":
            return _is_apart(left.min_items, left.max_items, right.min_items, right.max_items)
        if type_name != "object" or depth > 2:
            return False
        for name in dict.fromkeys([*left.required, *right.required]):
            first, second = self._plain_member(left, name), self._plain_member(right, name)
            if first is None or second is None:
                continue
            if False in first or False in second:
                return True
            first_shapes, second_shapes = self._quiet_shapes(first), self._quiet_shapes(second)
            if self._all_disjoint(first_shapes, second_shapes, depth + 1):
                return True
        return False

    def _plain_member(self, shape: Shape, name: str) -> tuple[Schema, ...] | None:
        if any(part.patterns for part in shape.objects):
            return None
        return shape.member(name, {})

    def _may_hold(self, shape: Shape, value: Any, type_name: str) -> bool:
        """Whether a value might have a shape; true when in doubt."""
        return type_name in self._types_of(value) and fits(shape, value, self._lenient) is not None

    @staticmethod
    def _types_of(value: Any) -> tuple[str, ...]:
        name = type_of(value)
        return ("number", "integer") if name == "number" else (name,)


def _is_apart(low: int, high: int | None, other_low: int, other_high: int | None) -> bool:
    return (high is not None and other_low > high) or (other_high is not None and low > other_high)


_OPPOSITES: Final[dict[str, tuple[str, str, int]]] = {
    "minimum": ("number", "exclusiveMaximum", 0),
    "maximum": ("number", "exclusiveMinimum", 0),
    "exclusiveMinimum": ("number", "maximum", 0),
    "exclusiveMaximum": ("number", "minimum", 0),
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
    "minProperties": ("object", "maxProperties", -1),
    "maxProperties": ("object", "minProperties", 1),
}
"""For a bound: the type it is about, the keyword of what is beyond it, and what to add."""

_MEANINGFUL: Final = frozenset(
    [
        "$ref",
        "$dynamicRef",
        "$recursiveRef",
        "type",
        "enum",
        "const",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "if",
        "properties",
        "patternProperties",
        "additionalProperties",
        "required",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "propertyNames",
        "minProperties",
        "maxProperties",
        "items",
        "prefixItems",
        "additionalItems",
        "contains",
        "minContains",
        "maxContains",
        "minItems",
        "maxItems",
        "uniqueItems",
        "minLength",
        "maxLength",
        "pattern",
        "format",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "unevaluatedItems",
        "unevaluatedProperties",
    ]
)
"""Keywords that make a value invalid."""
