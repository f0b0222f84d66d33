"""Rules for objects: declared members in their order, then others."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final

from engine_worker.grammar.json_schema.document import Schema
from engine_worker.grammar.json_schema.formats import FORMATS
from engine_worker.grammar.json_schema.rules import (
    EMPTY,
    NEVER,
    Expr,
    JsonValue,
    Repeat,
    Terminal,
    Text,
    alt,
    quoted,
    seq,
)
from engine_worker.grammar.json_schema.scalars import STRING_BODY
from engine_worker.grammar.json_schema.shape import Shape, conjunction
from engine_worker.grammar.json_schema.style import dumped
from engine_worker.grammar.json_schema.value_rules import ValueRules
from engine_worker.grammar.json_schema.values import name_matches, unknown_matches

MAX_PATTERNS: Final = 4
"""Patterns of names in one object: each set of them has a rule."""
MAX_STATES: Final = 5000
"""Rules of one object whose members are counted."""
_PLAIN_NAME: Final = re.compile(r'[^"\\\x00-\x1F\x7F\ud800-\udfff]*')
_PLAIN: Final = r'/[^"\\\x00-\x1F\x7F]*/'


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    schemas: tuple[Schema, ...]
    is_required: bool


class ObjectRules:
    """Writes expressions for objects.

    Args:
        inner: Writes their members' values.
    """

    def __init__(self, inner: ValueRules) -> None:
        self._inner = inner

    def object(self, shape: Shape) -> Expr:
        """An expression for the objects of a shape."""
        document = self._inner.document
        least, most = shape.min_properties, shape.max_properties
        for value, origin in shape.excluded:
            if value == {}:
                least = max(least, 1)
            elif isinstance(value, dict):
                document.leave_out_negation(origin, "what is forbidden is an object.")
        if most is not None and least > most:
            return NEVER
        if not (shape.objects or shape.required or shape.names or least or most is not None):
            return JsonValue(self._inner.style.schema({"type": "object"}))
        members = self._members(shape)
        declared = [member.name for member in members]
        listed = self._listed_names(shape)
        free: Expr = NEVER
        if listed is None:
            free = alt(*self._free(shape, declared))
        else:
            members += [
                _Member(name, self._member(shape, name), is_required=False)
                for name in listed
                if name not in declared
            ]
        if free == NEVER and most is not None and most >= len(members):
            most = None
        if (least or most is not None) and len(members) * (max(least, most or 0) + 1) > MAX_STATES:
            for schema, keyword in shape.counted_by:
                document.leave_out(schema, keyword, "there are too many members to count.")
            least, most = 0, None
        return seq(Text("{"), self._sequence(members, free, least, most), Text("}"))

    def _sequence(self, members: list[_Member], free: Expr, least: int, most: int | None) -> Expr:
        """Members in order, the needless ones left out or not, then free ones.

        Args:
            members: Those that have names.
            free: Any other one.
            least: Members that there must be.
            most: Members that there may be.
        """
        rules, separator = self._inner.rules, Text(self._inner.style.item_separator)
        # How many members are counted to: whether one came before is always needed.
        most_counted = max(1, least, most or 0)
        following: list[Expr] = []
        for count in range(most_counted + 1):
            left = None if most is None else most - count
            if left is not None and left < 0:
                following.append(NEVER)
            elif count:
                more = Repeat(seq(separator, free), max(0, least - count), left)
                following.append(rules.put(rules.new(), more))
            elif left == 0:
                following.append(EMPTY)
            else:
                others = None if left is None else left - 1
                some = seq(free, Repeat(seq(separator, free), max(0, least - 1), others))
                following.append(rules.put(rules.new(), some if least else alt(EMPTY, some)))
        for member in reversed(members):
            value = self._inner.value(member.schemas)
            opening = seq(Text(dumped(member.name)), Text(self._inner.style.key_separator))
            before = following
            following = []
            for count in range(most_counted + 1):
                after = min(count + 1, most_counted)
                ways: list[Expr] = []
                if most is None or count < most:
                    start = seq(separator if count else EMPTY, opening)
                    ways.append(seq(start, value, before[after]))
                if not member.is_required:
                    ways.append(before[count])
                following.append(rules.put(rules.new(), alt(*ways)))
        return following[0]

    def _members(self, shape: Shape) -> list[_Member]:
        names = dict.fromkeys(name for part in shape.objects for name in part.properties)
        names.update(shape.required)
        members = []
        for name in names:
            schemas = self._member(shape, name)
            if not all(self._inner.admits((schema,), name) for schema, _ in shape.names):
                schemas = (False,)
            members.append(_Member(name, schemas, name in shape.required))
        return members

    def _member(self, shape: Shape, name: str) -> tuple[Schema, ...]:
        matches = name_matches(shape, name, self._inner.patterns)
        self._inner.settled(unknown_matches(shape, matches))
        return shape.member(name, matches)

    def _patterns(self, shape: Shape) -> dict[str, str | None]:
        """The patterns of names with their terminals; None where only the model can follow."""
        found: dict[str, str | None] = {}
        for part in shape.objects:
            for pattern in part.patterns:
                if pattern not in found:
                    num_known = sum(body is not None for body in found.values())
                    is_one_more = num_known < MAX_PATTERNS
                    found[pattern] = self._inner.patterns.terminal(pattern) if is_one_more else None
                if found[pattern] is None and pattern in part.schema.get("patternProperties", ()):
                    self._inner.document.leave_out(
                        part.schema, "patternProperties", f"{pattern[:100]!r} can't be followed."
                    )
        return found

    def _listed_names(self, shape: Shape) -> list[str] | None:
        """All possible names where they are listed."""
        listed = self._inner.listed(conjunction([schema for schema, _ in shape.names]))
        if listed is None:
            return None
        return list(dict.fromkeys(name for name in listed if isinstance(name, str)))

    def _name_bodies(self, shape: Shape) -> list[str]:
        """Terminals that free names have to fit."""
        bodies: list[str] = []
        for schema, origin in shape.names:
            if schema is True or schema == {}:
                continue
            body = self._name_body(schema)
            if body is None:
                self._inner.document.leave_out(
                    origin, "propertyNames", "it isn't a pattern, a length or a list of names."
                )
            else:
                bodies += body
        return bodies

    def _name_body(self, schema: Schema) -> list[str] | None:
        shapes = self._inner.shapes((schema,))
        if len(shapes) != 1 or "string" not in shapes[0].types:
            return None
        (shape,) = shapes
        bodies = []
        for pattern, _ in shape.patterns:
            body = self._inner.patterns.terminal(pattern)
            if body is None:
                return None
            bodies.append(body)
        if any(name in FORMATS for name, _ in shape.formats):
            return None
        for value, _ in shape.excluded:
            if isinstance(value, str):
                # Names that have to fit a terminal are plain, so others are none of them anyway.
                is_plain = _PLAIN_NAME.fullmatch(value)
                bodies.append(f"/(?s:.*)/ & ~({quoted(value)})" if is_plain else "/(?s:.*)/")
        if shape.max_length is not None and shape.min_length > shape.max_length:
            bodies.append("/[^\\s\\S]/")
        elif shape.min_length or shape.max_length is not None:
            most = "" if shape.max_length is None else shape.max_length
            bodies.append(f"/(?s:.){{{shape.min_length},{most}}}/")
        return bodies

    def _free(self, shape: Shape, declared: list[str]) -> Iterator[Expr]:
        """Expressions for members that nobody declared, by which patterns their names have."""
        patterns, bodies = self._patterns(shape), self._name_bodies(shape)
        known = {pattern: body for pattern, body in patterns.items() if body is not None}
        unknown = {pattern: None for pattern, body in patterns.items() if body is None}
        for hits in product((True, False), repeat=len(known)):
            schemas = shape.member(None, {**unknown, **dict(zip(known, hits, strict=True))})
            if False in schemas:
                continue
            wanted = [
                f"({body})" if hit else f"~({body})"
                for body, hit in zip(known.values(), hits, strict=True)
            ]
            asked = [*wanted, *(f"({one})" for one in bodies)]
            body = self._key(declared, asked)
            if asked and not self._inner.patterns.has_texts(body):
                continue
            name = Terminal(body)
            value = self._inner.value(schemas)
            yield seq(name, Text(self._inner.style.key_separator), value)

    def _key(self, declared: list[str], bodies: list[str]) -> str:
        """A terminal's body for names in quotes, without those that are declared."""
        if not bodies:
            if not declared:
                return STRING_BODY
            return f"{STRING_BODY} & ~({' | '.join(quoted(dumped(one)) for one in declared)})"
        others = " & ".join(bodies)
        plain = [name for name in declared if _PLAIN_NAME.fullmatch(name)]
        if plain:
            others += f" & ~({' | '.join(map(quoted, plain))})"
        return f'"\\"" ({_PLAIN} & {others}) "\\""'
