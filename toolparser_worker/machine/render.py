"""Writes calls and reasoning as a format spells them: the way back from events to text."""

from collections.abc import Iterable
from typing import Any

from toolparser_worker.machine.coercion import Number, loaded, written
from toolparser_worker.machine.declarations import (
    BracedBody,
    CallBody,
    ElementBody,
    HeaderBody,
    JsonObjectBody,
    ParameterBody,
    PythonBody,
    ReasoningFormat,
    ToolFormat,
)


def render_calls(tool_format: ToolFormat, calls: Iterable[tuple[str, str]]) -> str:
    """The calls as the model would write them.

    Args:
        tool_format: How to spell them.
        calls: Name and arguments, these as the JSON text of an object. Formats that spell
            arguments as JSON take it verbatim.

    Raises:
        ValueError: The arguments are no JSON object though the format needs one.
    """
    parts = [
        f"{tool_format.rendered_call_start}"
        f"{_call(tool_format.body, name, arguments, index)}"
        f"{tool_format.rendered_call_end}"
        for index, (name, arguments) in enumerate(calls)
    ]
    return (
        tool_format.rendered_start
        + tool_format.rendered_separator.join(parts)
        + tool_format.rendered_end
    )


def render_reasoning(reasoning_format: ReasoningFormat, reasoning: str) -> str:
    """The reasoning between its markers."""
    start, end = reasoning_format.rendered_start, reasoning_format.rendered_end
    if start is None:
        start = next(iter(reasoning_format.starts), "")
    if end is None:
        end = next(iter(reasoning_format.ends), "")
    return f"{start}{reasoning}{end}"


def _call(body: CallBody, name: str, arguments: str, index: int) -> str:
    match body:
        case JsonObjectBody(name_is_key=True):
            return f"{{{written(name)}: {arguments}}}"
        case JsonObjectBody():
            keys = written(body.name_keys[0]), written(body.argument_keys[0])
            return f"{{{keys[0]}: {written(name)}, {keys[1]}: {arguments}}}"
        case HeaderBody():
            header = body.rendered_header.format(name=name, index=index)
            return f"{header}{arguments}{body.rendered_tail}"
        case ParameterBody():
            return _with_parameters(body, name, _object(arguments), index)
        case ElementBody():
            return _with_elements(body, name, _object(arguments))
        case BracedBody():
            return _with_braces(body, name, _object(arguments))
        case PythonBody():
            given = (f"{key}={_python(value)}" for key, value in _object(arguments).items())
            return f"{name}({', '.join(given)})"
        case _:
            raise ValueError(f"{type(body).__name__} cannot be written")


def _object(arguments: str) -> dict[str, Any]:
    value = loaded(arguments)
    if not isinstance(value, dict):
        raise ValueError("arguments must be an object")
    return value


def _with_parameters(body: ParameterBody, name: str, arguments: dict[str, Any], index: int) -> str:
    def in_tag(text: str) -> str:
        for escape, meant in reversed(body.unescapes):
            text = text.replace(meant, escape)
        return text

    parts = [body.starts[0] + body.rendered_name.format(name=in_tag(name), index=index + 1)]
    for key, value in arguments.items():
        is_text = isinstance(value, str)
        tag = body.rendered_key.format(
            key=in_tag(key), is_text="true" if is_text else "false", type=_type_of(value)
        )
        trim = body.rendered_trim
        parts.append(
            f"{body.parameters[0]}{tag}{trim}{value if is_text else written(value)}{trim}"
            f"{body.value_end}"
        )
    return body.rendered_space.join([*parts, body.end])


def _type_of(value: object) -> str:
    """The JSON type of a value, as formats name it that write it down."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, Number):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def _with_elements(body: ElementBody, name: str, arguments: dict[str, Any]) -> str:
    prefix = body.tag_prefix

    def inside(value: Any) -> str:
        if isinstance(value, dict):
            return "".join(element(key, item) for key, item in value.items())
        if isinstance(value, list):
            return "".join(element(body.item, item) for item in value)
        return value if isinstance(value, str) else written(value)

    def element(tag: str, value: Any) -> str:
        return f"{prefix}<{tag}>{inside(value)}{prefix}</{tag}>"

    return f'{body.starts[0]}"{name}">{inside(arguments)}{body.end}'


def _with_braces(body: BracedBody, name: str, arguments: dict[str, Any]) -> str:
    quote = body.quote

    def braced(value: Any) -> str:
        if isinstance(value, str):
            return f"{quote}{value}{quote}"
        if body.parses_strings:
            return f"{quote}{written(value)}{quote}"
        if isinstance(value, dict):
            return members(value)
        if isinstance(value, list):
            return f"[{','.join(map(braced, value))}]"
        return written(value)

    def members(value: dict[str, Any]) -> str:
        return f"{{{','.join(f'{key}:{braced(item)}' for key, item in value.items())}}}"

    return f"{body.starts[0]}{name}{members(arguments)}"


def _python(value: Any) -> str:
    """A JSON value as Python writes it."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_python(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_python, value))}]"
    return value.text if isinstance(value, Number) else repr(value)
