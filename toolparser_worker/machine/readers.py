"""Chooses the reader of a call by how the call is spelt."""

from typing import Any

from toolparser_worker.machine.braced_call import BracedCallReader
from toolparser_worker.machine.declarations import (
    BracedBody,
    CallBody,
    ElementBody,
    HeaderBody,
    JsonObjectBody,
    ParameterBody,
    PythonBody,
)
from toolparser_worker.machine.element_call import ElementCallReader
from toolparser_worker.machine.header_call import HeaderCallReader
from toolparser_worker.machine.json_call import JsonCallReader
from toolparser_worker.machine.parameter_call import ParameterCallReader
from toolparser_worker.machine.python_call import PythonCallReader
from toolparser_worker.machine.reading import CallReader, CallSink
from toolparser_worker.machine.tool_schemas import ToolSchemas


def new_reader(
    body: CallBody,
    sink: CallSink,
    tools: ToolSchemas,
    stops: tuple[str, ...] = (),
    *,
    follows_text: bool = True,
) -> CallReader[Any]:
    """The reader of one call.

    Args:
        body: How the call is spelt.
        sink: Is told the name and the arguments.
        tools: The request's tools.
        stops: What may follow a call whose arguments are missing.
        follows_text: Whether an object that is no call is followed to its end.
    """
    match body:
        case JsonObjectBody():
            return JsonCallReader(body, sink, tools, stops, follows_text=follows_text)
        case HeaderBody():
            return HeaderCallReader(body, sink, tools, stops)
        case ParameterBody():
            return ParameterCallReader(body, sink, tools, stops)
        case ElementBody():
            return ElementCallReader(body, sink, tools, stops)
        case BracedBody():
            return BracedCallReader(body, sink, tools, stops)
        case PythonBody():
            return PythonCallReader(body, sink, tools, stops)
        case _:
            raise TypeError(f"no reader for {type(body).__name__}")


def may_begin(body: CallBody, char: str) -> bool:
    """Whether a call without start marker may begin with this character."""
    match body:
        case JsonObjectBody():
            return char == "{"
        case PythonBody():
            return char.isalpha() or char == "_"
        case _:
            return not body.starts


def is_repeatable(body: CallBody) -> bool:
    """Whether the call's start marker is whole by itself, so that writing it twice means once."""
    return isinstance(body, JsonObjectBody | HeaderBody) or (
        isinstance(body, ParameterBody) and body.bare_name
    )


def ends_itself(body: CallBody) -> bool:
    """Whether the end marker belongs to the body and its reader takes it."""
    return isinstance(body, ParameterBody | ElementBody)
