"""Rules for the calls of a format's tools, one body kind after the other."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from toolparser_worker.errors import UnsupportedToolsError
from toolparser_worker.grammar.input_grammar import InputGrammar, grammar_of, with_grammar
from toolparser_worker.grammar.lark import LarkWriter, quoted
from toolparser_worker.grammar.schemas import Form, SchemaReader, Steps
from toolparser_worker.grammar.terminals import number_terminal, text_terminals
from toolparser_worker.grammar.values import (
    BracedValues,
    ElementValues,
    PythonValues,
    check_key,
    free_members,
    held_members,
)
from toolparser_worker.machine.coercion import written
from toolparser_worker.machine.declarations import (
    BracedBody,
    CallBody,
    ElementBody,
    HeaderBody,
    JsonObjectBody,
    ParameterBody,
    PythonBody,
    ToolFormat,
)

_NO_PARAMETERS: Final = {"type": "object", "properties": {}, "additionalProperties": False}
_ANY_PARAMETERS: Final = {"type": "object"}
_INDEX: Final = "/0|[1-9][0-9]{0,2}/"
_UNREADABLE: Final = (
    UnsupportedToolsError,
    # What a schema leads to that has a part which nobody checked.
    TypeError,
    ValueError,
    AttributeError,
    KeyError,
)


@dataclass(frozen=True, slots=True)
class CallableTool:
    """A tool that the grammar lets the model call.

    Attributes:
        parameters: The JSON schema of its arguments.
        is_strict: All of the schema is enforced, or the request refused.
        grammar: Of the text that is its only argument, if that has one.
    """

    name: str
    parameters: Mapping[str, Any]
    is_strict: bool = False
    grammar: InputGrammar | None = None

    @classmethod
    def of(cls, tool: Mapping[str, Any], *, is_enforced: bool) -> "CallableTool":
        """From an entry of `tools`.

        Args:
            tool: Checked already.
            is_enforced: Whether its schema is; otherwise any arguments will do.
        """
        function = tool["function"]
        parameters = function.get("parameters")
        if not is_enforced:
            parameters = _ANY_PARAMETERS
        elif parameters is None:
            parameters = _NO_PARAMETERS
        schema = dict(parameters)
        if "$ref" not in schema and "anyOf" not in schema:
            schema.setdefault("type", "object")
        # What is no schema is refused once it is read.
        with suppress(TypeError):
            if schema.get("properties") and not _adds_members(schema):
                # A call with what nobody asked for helps nobody.
                schema.setdefault("additionalProperties", False)
        is_strict = is_enforced and bool(function.get("strict"))
        grammar = InputGrammar.of(function) if is_enforced else None
        if grammar is not None:
            schema = with_grammar(schema, grammar)
        return cls(function["name"], schema, is_strict, grammar)


class CallRules:
    """Writes the rules of one format's calls.

    Args:
        writer: Collects the rules.
        tool_format: How calls are spelt.
    """

    def __init__(self, writer: LarkWriter, tool_format: ToolFormat) -> None:
        self._writer = writer
        self._format = tool_format
        self._steps = Steps()

    def beginning(self) -> str:
        """What every first call begins with, up to where the tools' names part."""
        declared, body = self._format, self._format.body
        return declared.rendered_start + declared.rendered_call_start + _opening(body)

    def calls(self, tools: list[CallableTool], *, is_one: bool, skipped: int = 0) -> str:
        """An expression for one call, or for some.

        Args:
            tools: Those that may be called.
            is_one: Exactly one call is made.
            skipped: Characters of `beginning` that were written already.

        Raises:
            UnsupportedToolsError: A tool can't be written in this format; it is named.
        """
        writer, declared = self._writer, self._format
        tails = []
        for tool in tools:
            try:
                tails.append(self._tail(tool))
            except _UNREADABLE as error:
                reason = "its schema can't be read."
                if isinstance(error, UnsupportedToolsError):
                    reason = error.message
                raise UnsupportedToolsError(
                    f"Calls of the tool {tool.name!r} can't be enforced in the format"
                    f" {declared.name!r}: {reason}",
                    param="tools",
                ) from error
        tail = writer.rule(" | ".join(tails))
        call_end = writer.text(declared.rendered_call_end)
        first = writer.sequence(writer.text(self.beginning()[skipped:]), tail, call_end)
        if is_one:
            return writer.sequence(first, writer.text(declared.rendered_end))
        opening = declared.rendered_separator + declared.rendered_call_start
        next_call = writer.rule(
            writer.sequence(writer.text(opening + _opening(declared.body)), tail, call_end)
        )
        return writer.sequence(first, f"{next_call}*", writer.text(declared.rendered_end))

    def _tail(self, tool: CallableTool) -> str:
        """An expression for a call from its tool's name on."""
        reader = SchemaReader(
            tool.parameters,
            self._steps,
            is_strict=tool.is_strict,
            reads_types=not isinstance(self._format.body, PythonBody),
        )
        self._writer.is_strict = tool.is_strict
        match self._format.body:
            case JsonObjectBody() as body:
                tail = self._json_tail(body, tool)
            case HeaderBody() as body:
                tail = self._header_tail(body, tool)
            case ParameterBody() as body:
                tail = self._parameter_tail(body, tool, reader)
            case ElementBody() as body:
                tail = self._element_tail(body, tool, reader)
            case BracedBody() as body:
                tail = self._braced_tail(body, tool, reader)
            case PythonBody():
                tail = self._python_tail(tool, reader)
            case _:
                raise UnsupportedToolsError("its calls have no written form.")
        self._writer.unenforced.update(reader.unenforced)
        return self._writer.rule(tail)

    def _json_tail(self, body: JsonObjectBody, tool: CallableTool) -> str:
        name = json.dumps(tool.name)[1:]
        if body.name_is_key:
            opening = f"{name}: "
        else:
            opening = f"{name}, {json.dumps(body.argument_keys[0])}: "
        return self._writer.sequence(quoted(opening), self._json_arguments(tool), '"}"')

    def _json_arguments(self, tool: CallableTool) -> str:
        if tool.grammar is None:
            return self._writer.json(dict(tool.parameters))
        (name,) = tool.parameters["properties"]
        text = tool.grammar.written(self._writer, is_quoted=True)
        opening = f'{{{json.dumps(name, ensure_ascii=False)}: "'
        return self._writer.sequence(quoted(opening), text, quoted('"}'))

    def _header_tail(self, body: HeaderBody, tool: CallableTool) -> str:
        after = body.rendered_header.partition("{name}")[2]
        before_index, has_index, after_index = after.partition("{index}")
        parts = [quoted(tool.name), self._writer.text(before_index)]
        if has_index:
            parts += [self._writer.terminal(_INDEX), self._writer.text(after_index)]
        parts += [
            self._json_arguments(tool),
            self._writer.text(body.rendered_tail),
        ]
        return self._writer.sequence(*parts)

    def _parameter_tail(self, body: ParameterBody, tool: CallableTool, reader: SchemaReader) -> str:
        writer = self._writer
        after = body.rendered_name.partition("{name}")[2]
        before_index, has_index, after_index = after.partition("{index}")
        parts = [quoted(tool.name), writer.text(before_index)]
        if has_index:
            parts += [writer.terminal(_INDEX), writer.text(after_index)]
        values = _ParameterValues(writer, body, reader)
        parts.append(_one_of(values.parameters(root) for root in _roots(tool, reader)))
        parts.append(writer.text(body.rendered_space + body.end))
        return writer.sequence(*parts)

    def _element_tail(self, body: ElementBody, tool: CallableTool, reader: SchemaReader) -> str:
        values = ElementValues(self._writer, reader, tag_prefix=body.tag_prefix, item=body.item)
        inside = _one_of(values.elements(root) for root in _roots(tool, reader))
        return self._writer.sequence(quoted(f'{tool.name}">'), inside, self._writer.text(body.end))

    def _braced_tail(self, body: BracedBody, tool: CallableTool, reader: SchemaReader) -> str:
        values = (
            _QuotedValues(self._writer, reader, body.quote)
            if body.parses_strings
            else BracedValues(self._writer, reader, body.quote)
        )
        inside = _one_of(values.braces(root) for root in _roots(tool, reader))
        return self._writer.sequence(quoted(tool.name), inside)

    def _python_tail(self, tool: CallableTool, reader: SchemaReader) -> str:
        values = PythonValues(self._writer, reader)
        if not tool.name.replace(".", "_").isidentifier():
            raise UnsupportedToolsError("its name is none that Python has.")
        arguments = _one_of(values.arguments(root) for root in _roots(tool, reader))
        return self._writer.sequence(quoted(f"{tool.name}("), arguments, '")"')


class _QuotedValues(BracedValues):
    """Braces in which every value is in quotes, as text or as JSON."""

    def _forms(self, schema: Mapping[str, Any]) -> list[Form]:
        return self._reader.whole_forms(schema)

    def _form(self, form: Form) -> str:
        if form.type == "string":
            return super()._form(form)
        if form.type == "any":
            return " | ".join(self._form(free) for free in self.free_forms(form))
        quote = self._writer.text(self._quote)
        if form.type in ("number", "integer") and not form.values:
            return self._writer.sequence(quote, self.number(form), quote)
        schema = self._writer.json(self._reader.json_schema(form))
        return self._writer.sequence(quote, schema, quote)


class _ParameterValues:
    """Writes the parameters of one tool as elements of plain text."""

    def __init__(self, writer: LarkWriter, body: ParameterBody, reader: SchemaReader) -> None:
        self._writer = writer
        self._body = body
        self._reader = reader

    def parameters(self, form: Form) -> str:
        """An expression for the members of the arguments."""
        members = held_members(self._reader, form)
        others = free_members(form)
        if members or others is False:
            return self._writer.sequence(*(self.parameter(*member) for member in members))
        name = self._writer.terminal("/[A-Za-z_][A-Za-z0-9_]{0,39}/")
        forms = self._reader.whole_forms(others)
        free = self._writer.rule(" | ".join(self._form(one, name) for one in forms))
        least, most = form.schema.get("minProperties", 0), form.schema.get("maxProperties")
        if most == 0:
            return '""'
        return f"{free}*" if most is None and least == 0 else f"{free}{{{least},{most or ''}}}"

    def parameter(self, key: str, schema: Any, is_needed: bool) -> str:
        """An expression for one parameter."""
        escaped = key
        for spelt, meant in reversed(self._body.unescapes):
            escaped = escaped.replace(meant, spelt)
        check_key(escaped, '<>"')
        forms = " | ".join(
            self._form(form, quoted(escaped)) for form in self._reader.whole_forms(schema)
        )
        return f"({forms})" if is_needed else f"({forms})?"

    def _form(self, form: Form, key: str) -> str:
        """An expression for a parameter whose name is that of another expression."""
        writer, body = self._writer, self._body
        is_text = form.type in ("string", "any")
        type_name = {"any": "string", "integer": "number"}.get(form.type, form.type)
        before, _, after = body.rendered_key.partition("{key}")
        after = after.format(is_text="true" if is_text else "false", type=type_name)
        opening = writer.sequence(
            writer.text(body.rendered_space + body.parameters[0] + before),
            key,
            writer.text(after + body.rendered_trim),
        )
        if is_text and not form.values:
            return writer.sequence(opening, self._text(form))
        return writer.sequence(
            opening, self._value(form), writer.text(body.rendered_trim + body.value_end)
        )

    def _text(self, form: Form) -> str:
        """A string's text and the end of its element."""
        body = self._body
        end = body.rendered_trim + body.value_end
        ends = (body.value_end, *body.parameters, body.end)
        grammar = grammar_of(form.schema)
        if grammar is not None:
            text = grammar.written(self._writer, is_quoted=False, without=ends)
            return self._writer.sequence(text, self._writer.text(end))
        terminals = text_terminals(self._reader, form, is_trimmed=body.trims == "space")
        body_of_text = " & ".join(f"({one})" for one in terminals)
        return self._writer.until(end, body_of_text, without=ends)

    def _value(self, form: Form) -> str:
        if form.type == "string":
            for value in form.values:
                if self._body.value_end in value or (
                    self._body.trims != "none" and value != value.strip()
                ):
                    raise UnsupportedToolsError(f"{value[:100]!r} can't be written as it is.")
            return f"({' | '.join(quoted(value) for value in form.values)})"
        if form.values:
            return f"({' | '.join(quoted(written(value)) for value in form.values)})"
        if form.type in ("number", "integer"):
            terminal = number_terminal(form)
            if terminal is not None:
                return self._writer.terminal(terminal)
        return self._writer.json(self._reader.json_schema(form))


def _opening(body: CallBody) -> str:
    """What stands before the name in a call."""
    match body:
        case JsonObjectBody(name_is_key=True):
            return '{"'
        case JsonObjectBody():
            return f'{{{json.dumps(body.name_keys[0])}: "'
        case HeaderBody():
            return body.rendered_header.partition("{name}")[0]
        case ParameterBody():
            return body.starts[0] + body.rendered_name.partition("{name}")[0]
        case ElementBody():
            return f'{body.starts[0]}"'
        case BracedBody():
            return body.starts[0]
        case _:
            return ""


def _roots(tool: CallableTool, reader: SchemaReader) -> list[Form]:
    """The tool's arguments, each form that an object may have.

    Raises:
        UnsupportedToolsError: They are no object, or listed.
    """
    forms = [form for form in reader.forms(tool.parameters) if form.type in ("object", "any")]
    if not forms or any(form.values for form in forms):
        raise UnsupportedToolsError("its parameters must be an object with properties.")
    return [Form("object", {**form.schema, "type": "object"}, places=form.places) for form in forms]


def _one_of(expressions: Iterable[str]) -> str:
    """An expression for one of some."""
    alternatives = list(dict.fromkeys(expressions))
    return alternatives[0] if len(alternatives) == 1 else f"({' | '.join(alternatives)})"


def _adds_members(schema: Mapping[str, Any]) -> bool:
    """Whether what a schema combines may declare members, beside those that it declares itself."""
    properties, required = schema["properties"], schema.get("required", ())
    if {"$ref", "patternProperties", "dependentSchemas"} & schema.keys():
        return True
    if not all(isinstance(name, str) and name in properties for name in required):
        return True
    parts = [schema[key] for key in ("if", "then", "else") if key in schema]
    for keyword in ("allOf", "anyOf", "oneOf"):
        parts += schema.get(keyword, ())
    return any(isinstance(part, Mapping) and {"properties", "$ref"} & part.keys() for part in parts)
