"""Rules for the values of a schema as formats spell them that don't write JSON."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any, Final

from toolparser_worker.errors import UnsupportedToolsError
from toolparser_worker.grammar.input_grammar import grammar_of
from toolparser_worker.grammar.keywords import (
    ARRAY_KEYWORDS,
    OBJECT_KEYWORDS,
    STRING_KEYWORDS,
    ImpossibleError,
    asserted,
)
from toolparser_worker.grammar.lark import LarkWriter, quoted
from toolparser_worker.grammar.read_types import read_types
from toolparser_worker.grammar.schemas import (
    Form,
    JsonType,
    SchemaReader,
)
from toolparser_worker.grammar.terminals import number_terminal, text_terminals
from toolparser_worker.machine.coercion import ExactFloat, written

_NAME: Final = "/[A-Za-z_][A-Za-z0-9_]{0,39}/"
_JSON_SCALARS: Final = frozenset({"integer", "number", "boolean", "null"})
_MAX_DISTINCT: Final = 7
_NO_ESCAPES: Final = {"json_allowed_escapes": 'nrt\\"'}


class ValueRules(ABC):
    """Writes rules for the values of one tool; a schema that recurs has one rule.

    Args:
        writer: Collects the rules.
        reader: Of the tool's schemas.
    """

    def __init__(self, writer: LarkWriter, reader: SchemaReader) -> None:
        self._writer = writer
        self._reader = reader
        # With the schema itself, so that its identity stays its own.
        self._rules: dict[tuple[int, str], tuple[Mapping[str, Any], str]] = {}

    def value(self, schema: Any) -> str:
        """The rule of a schema's values.

        Raises:
            UnsupportedToolsError: This format has no spelling for them.
        """
        resolved = self._reader.resolved(schema)
        name, is_new = self._name_of(resolved)
        if is_new:
            forms = self._forms(resolved)
            self._writer.rule(" | ".join(self._form(form) for form in forms), name)
        return name

    def _forms(self, schema: Mapping[str, Any]) -> list[Form]:
        """The kinds of value of a schema, as this format writes them."""
        return self._reader.forms(schema)

    def _name_of(self, schema: Mapping[str, Any], tag: str = "") -> tuple[str, bool]:
        """The rule's name of a schema, and whether the rule is still to be written."""
        known = self._rules.get((id(schema), tag))
        if known is not None:
            return known[1], False
        name = self._writer.new_name()
        self._rules[id(schema), tag] = (schema, name)
        return name, True

    def number(self, form: Form) -> str:
        """An expression for a form's numbers."""
        terminal = number_terminal(form)
        if terminal is not None:
            return self._writer.terminal(terminal)
        return self._writer.json(self._reader.json_schema(form))

    def json_literal(self, form: Form) -> str:
        """An expression for numbers, booleans, null or listed values, as JSON spells them.

        Listed values that are lists or objects are left to the model.
        """
        if form.values:
            if form.type in ("array", "object"):
                self._reader.leave_out(form.places, "enum", "it lists lists or objects")
                return self._form(Form(form.type, {"type": form.type}))
            return " | ".join(quoted(written(value)) for value in form.values)
        if form.type in ("boolean", "null"):
            self._reader.hold(form)
        if form.type == "boolean":
            return '"true" | "false"'
        return '"null"' if form.type == "null" else self.number(form)

    def listed(self, items: list[tuple[str, bool]], separator: str) -> str:
        """An expression for some items in order, the needless ones left out or not."""
        following = '""'
        beginning = '""'
        for expression, is_needed in reversed(items):
            with_this = self._writer.rule(
                self._writer.sequence(quoted(separator), expression, following)
            )
            first = self._writer.rule(self._writer.sequence(expression, following))
            if not is_needed:
                with_this = self._writer.rule(f"{with_this} | {following}")
                first = self._writer.rule(f"{first} | {beginning}")
            following, beginning = with_this, first
        return beginning

    def object_members(
        self, form: Form, opening: Callable[[str], str], free_opening: str, separator: str
    ) -> str:
        """An expression for the members of an object, declared ones or any.

        Args:
            form: The object.
            opening: What stands before the value of a member of some name; checks the name.
            free_opening: The same for a name that the schema leaves open, an expression.
            separator: Between two members.
        """
        declared = [
            (self._writer.sequence(quoted(opening(key)), self.value(schema)), is_needed)
            for key, schema, is_needed in held_members(self._reader, form)
        ]
        others = free_members(form)
        if declared or others is False:
            return self.listed(declared, separator)
        member = self._writer.rule(f"{free_opening} {self.value(others)}")
        least = int(form.schema.get("minProperties", 0))
        return self._counted(member, separator, least, form.schema.get("maxProperties"))

    def repeated(self, form: Form, item: Callable[[Any], str], separator: str) -> str:
        """An expression for the items of an array.

        Args:
            form: The array.
            item: An expression for an item of some schema.
            separator: Between two items.
        """
        schema = form.schema
        least, most = int(schema.get("minItems", 0)), schema.get("maxItems")
        items = schema.get("items", schema.get("unevaluatedItems", True))
        has_places = bool(schema.get("prefixItems")) or isinstance(items, list)
        enforced = {"minItems", "maxItems"}
        if not has_places:
            enforced.add("items")
            if "contains" not in schema:
                enforced.add("unevaluatedItems")
        if items is False and not has_places:
            most = 0
        values = None
        if schema.get("uniqueItems") is True and not has_places:
            values = self._few_values(items)
        if values is not None or (most is not None and most <= 1):
            enforced.add("uniqueItems")
        self._reader.hold(form, *enforced)
        if most is not None and most < least:
            raise ImpossibleError
        if most == 0:
            return '""'
        if values is not None:
            return self._distinct(
                [item({"const": value}) for value in values], separator, least, most
            )
        # What each place may hold is left to the model, and so are all of them.
        return self._counted(item(True if has_places else items), separator, least, most)

    def _counted(self, item: str, separator: str, least: int, most: int | None) -> str:
        """An expression for some items, at least and at most so many."""
        if most == 0:
            return '""'
        more = "*" if most is None else f"{{0,{int(most) - 1}}}"
        if least > 1:
            more = f"{{{least - 1},{'' if most is None else int(most) - 1}}}"
        following = self._writer.rule(self._writer.sequence(quoted(separator), item))
        expression = f"{item} {following}{more}"
        if separator == "":
            expression = f"{item} ({item}){more}"
        return expression if least else f"({expression})?"

    def _few_values(self, items: Any) -> list[Any] | None:
        """The values that items may have, when they are listed and few; else None."""
        values: list[Any] = []
        for form in self._reader.forms(items):
            # 1 and 1.0 are the same number.
            if not form.values or form.type in ("array", "object", "number"):
                return None
            values += form.values
        texts = {json.dumps(value): value for value in values}
        return list(texts.values()) if len(texts) <= _MAX_DISTINCT else None

    def _distinct(self, items: list[str], separator: str, least: int, most: int | None) -> str:
        """A rule for some of the items, in any order and none of them twice."""
        if least > len(items):
            raise ImpossibleError

        @cache
        def following(left: frozenset[int]) -> str:
            num_written = len(items) - len(left)
            before = quoted(separator) if num_written else '""'
            alternatives = ['""'] if num_written >= least else []
            if most is None or num_written < most:
                alternatives += [
                    self._writer.sequence(before, items[one], following(left - {one}))
                    for one in sorted(left)
                ]
            return self._writer.rule(" | ".join(alternatives))

        return following(frozenset(range(len(items))))

    def free_forms(self, form: Form) -> list[Form]:
        """A few kinds of value for a schema that allows any."""
        kinds: list[JsonType] = ["string", "number", "boolean", "null"]
        if ARRAY_KEYWORDS & form.schema.keys():
            kinds.append("array")
        if OBJECT_KEYWORDS & form.schema.keys():
            kinds.append("object")
        return [
            Form(
                kind,
                {"type": kind, **{key: form.schema[key] for key in asserted(form.schema, kind)}},
                places=form.places,
                unlike=form.unlike,
            )
            for kind in kinds
        ]

    @abstractmethod
    def _form(self, form: Form) -> str:
        """An expression for one kind of value."""


class PythonValues(ValueRules):
    """Values as Python's literals; strings in double quotes, with the escapes JSON has too."""

    def arguments(self, form: Form) -> str:
        """An expression for the members of an object as the arguments of a call."""

        def opening(key: str) -> str:
            if not key.isidentifier():
                raise UnsupportedToolsError(f"{key[:100]!r} is no name that Python has.")
            return f"{key}="

        free = self._writer.terminal(f'{_NAME} "="')
        return self.object_members(form, opening, free, ", ")

    def _form(self, form: Form) -> str:
        writer = self._writer
        if form.values:
            return " | ".join(quoted(python_text(value)) for value in form.values)
        match form.type:
            case "string" if (grammar := grammar_of(form.schema)) is not None:
                # JSON's escapes mean the same in Python.
                text = grammar.written(writer, is_quoted=True)
                return writer.sequence(quoted('"'), text, quoted('"'))
            case "string":
                self._reader.hold(form, *STRING_KEYWORDS)
                schema = {
                    key: form.schema[key]
                    for key in ("minLength", "maxLength", "pattern", "format")
                    if key in form.schema
                }
                options = {"x-guidance": {"whitespace_flexible": False, **_NO_ESCAPES}}
                schema = {"type": "string", **schema, "x-penstock-place": form.place}
                return writer.json(schema, options)
            case "integer" | "number":
                return self.number(form)
            case "boolean" | "null":
                self._reader.hold(form)
                return '"None"' if form.type == "null" else '"True" | "False"'
            case "array":
                return f'"[" ({self.repeated(form, self.value, ", ")}) "]"'
            case "object":
                free = writer.terminal(f'"\'" {_NAME} "\': "')
                members = self.object_members(form, lambda key: f"{key!r}: ", free, ", ")
                return writer.sequence('"{"', members, '"}"')
            case _:
                return " | ".join(self._form(free) for free in self.free_forms(form))


class BracedValues(ValueRules):
    """Values with quotes of their own around strings, and nothing around names.

    Args:
        quote: The quote.
    """

    def __init__(self, writer: LarkWriter, reader: SchemaReader, quote: str) -> None:
        super().__init__(writer, reader)
        self._quote = quote

    def _form(self, form: Form) -> str:
        writer = self._writer
        match form.type:
            case "string":
                opening = writer.text(self._quote)
                if form.values:
                    return " | ".join(
                        writer.sequence(opening, quoted(value), opening) for value in form.values
                    )
                grammar = grammar_of(form.schema)
                if grammar is not None:
                    text = grammar.written(writer, is_quoted=False, without=(self._quote,))
                    return writer.sequence(opening, text, opening)
                body = " & ".join(f"({one})" for one in text_terminals(self._reader, form))
                return writer.sequence(opening, writer.until(self._quote, body))
            case _ if form.values or form.type in _JSON_SCALARS:
                return self.json_literal(form)
            case "array":
                return f'"[" ({self.repeated(form, self.value, ",")}) "]"'
            case "object":
                return self.braces(form)
            case _:
                return " | ".join(self._form(free) for free in self.free_forms(form))

    def braces(self, form: Form) -> str:
        """An expression for an object."""

        def opening(key: str) -> str:
            check_key(key, ':{}[],"')
            return f"{key}:"

        free = self._writer.terminal(f'{_NAME} ":"')
        members = self.object_members(form, opening, free, ",")
        return self._writer.sequence('"{"', members, '"}"')


class ElementValues(ValueRules):
    """Values as the inside of elements, whose tags are the names of members.

    Args:
        tag_prefix: What stands before each tag.
        item: The tag of an array's items.
    """

    def __init__(
        self, writer: LarkWriter, reader: SchemaReader, *, tag_prefix: str, item: str
    ) -> None:
        super().__init__(writer, reader)
        self._tag_prefix = tag_prefix
        self._item = item

    def elements(self, form: Form) -> str:
        """An expression for the members of an object as elements."""
        members = []
        for key, schema, is_needed in held_members(self._reader, form, writes_free=False):
            check_key(key, "<>/")
            if key == self._item:
                raise UnsupportedToolsError(f"a member named {key!r} would be read as a list.")
            element = self._element(key, schema)
            members.append(element if is_needed else f"({element})?")
        return self._writer.sequence(*members) if members else '""'

    def _element(self, tag: str, schema: Any) -> str:
        """An element: its tag, its value and its end."""
        resolved = self._reader.resolved(schema)
        name, is_new = self._name_of(resolved, tag)
        if not is_new:
            return name
        forms = self._told_apart(resolved, self._forms(resolved))
        opening = self._writer.text(f"{self._tag_prefix}<{tag}>")
        bodies = " | ".join(self._element_form(form, tag) for form in forms)
        self._writer.rule(f"{opening} ({bodies})", name)
        return name

    def _told_apart(self, schema: Mapping[str, Any], forms: list[Form]) -> list[Form]:
        """The forms without what is read as another one: empty lists as texts, objects as lists."""
        kinds = read_types(schema, self._reader.referred)
        is_any_text = any(
            form.type == "string" and not (form.values or asserted(form.schema, "string"))
            for form in forms
        )
        is_text = "string" in kinds and not is_any_text
        found = []
        for form in forms:
            if form.type == "array" and "string" in kinds:
                least = max(1, int(form.schema.get("minItems", 0)))
                if form.schema.get("maxItems") == 0 or form.schema.get("items") is False:
                    continue
                form = replace(form, schema={**form.schema, "minItems": least})
            elif form.type == "object" and not form.values:
                choice = "anyOf" if "anyOf" in form.places else "type"
                if "array" in kinds:
                    self._reader.leave_out(form.places, choice, "an object is read as a list")
                elif is_text and not form.schema.get("required"):
                    self._reader.leave_out(form.places, choice, "an empty object is read as a text")
            found.append(form)
        return found

    def _element_form(self, form: Form, tag: str) -> str:
        """An expression for a value and the end of its element."""
        closing = f"{self._tag_prefix}</{tag}>"
        if form.type == "any":
            return " | ".join(self._element_form(free, tag) for free in self.free_forms(form))
        grammar = grammar_of(form.schema)
        if grammar is not None:
            ends = (f"{self._tag_prefix}<", closing)
            text = grammar.written(self._writer, is_quoted=False, without=ends)
            return self._writer.sequence(text, self._writer.text(closing))
        if form.type == "string" and not form.values:
            body = " & ".join(f"({one})" for one in text_terminals(self._reader, form))
            return self._writer.until(closing, body, without=(f"{self._tag_prefix}<",))
        return self._writer.sequence(f"({self._form(form)})", self._writer.text(closing))

    def _form(self, form: Form) -> str:
        match form.type:
            case "string":
                return " | ".join(quoted(value) for value in form.values)
            case _ if form.values or form.type in _JSON_SCALARS:
                return self.json_literal(form)
            case "array":
                return self.repeated(form, partial(self._element, self._item), "")
            case _:
                return self.elements(form)


def held_members(
    reader: SchemaReader, form: Form, *, writes_free: bool = True
) -> list[tuple[str, Any, bool]]:
    """Name, schema and necessity of an object's members that are written.

    Args:
        reader: Told of what they aren't held to.
        form: The object.
        writes_free: Whether members of any name are written, as many as the object may have, when
            it declares none.

    Raises:
        UnsupportedToolsError: The tool is strict, and what is written can't be held to its schema.
        ImpossibleError: A member is needed that may not be there.
    """
    schema = form.schema
    properties = schema.get("properties", {})
    required = schema.get("required", ())
    others = free_members(form)
    members = [
        (key, member, key in required)
        for key, member in properties.items()
        if member is not False or key in required
    ]
    members += [(key, others, True) for key in required if key not in properties]
    needed = {key for key, _, is_needed in members if is_needed}
    enforced = {"properties", "required"}
    least, most = schema.get("minProperties", 0), schema.get("maxProperties")
    if members or others is False or not writes_free:
        names = {key for key, _, _ in members}
        if least <= len(needed):
            enforced.add("minProperties")
        if most is None or most >= len(names):
            enforced.add("maxProperties")
        for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
            if all(
                key not in names or (isinstance(others, list) and needed >= set(others))
                for key, others in schema.get(keyword, {}).items()
            ):
                enforced.add(keyword)
    else:
        enforced.add("maxProperties")
        if least <= 1:  # the same name may come again
            enforced.add("minProperties")
    if members or not schema.get("patternProperties"):
        enforced |= {"additionalProperties", "unevaluatedProperties"}
    elif not writes_free:
        enforced |= {"patternProperties", "additionalProperties", "unevaluatedProperties"}
    reader.hold(form, *enforced)
    return members


def free_members(form: Form) -> Any:
    """The schema of an object's members that it doesn't declare."""
    if form.schema.get("patternProperties"):
        return True
    schema = form.schema
    return schema.get("additionalProperties", schema.get("unevaluatedProperties", True))


def check_key(key: str, forbidden: str) -> None:
    """Refuses a name that the format's own marks would cut.

    Raises:
        UnsupportedToolsError: It has one of the forbidden characters, or white space around it.
    """
    if not key or key != key.strip() or any(one in key for one in (*forbidden, "\n")):
        raise UnsupportedToolsError(f"the name {key[:100]!r} can't be written in this format.")


def python_text(value: Any) -> str:
    """A JSON value as Python writes it."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {python_text(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(python_text, value))}]"
    return value.text if isinstance(value, ExactFloat) else repr(value)
