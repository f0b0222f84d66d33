"""Tells a tool call as OpenAI's deprecated `function_call`, to clients that gave functions."""

import orjson

from gateway.request.delivery.events import ToolCallArguments, ToolCallStarted
from gateway.request.jobs.answer_options import AnswerOptions


def finish_reason(reason: str, options: AnswerOptions) -> str:
    """Why a choice ended, in the client's words."""
    if options.names_functions and reason == "tool_calls":
        return "function_call"
    return reason


def function_delta(event: ToolCallStarted | ToolCallArguments) -> bytes:
    """A call's piece of a stream delta, without braces."""
    if isinstance(event, ToolCallArguments):
        return b'"function_call":{"arguments":%b}' % orjson.dumps(event.text)
    return b'"function_call":{"name":%b,"arguments":""}' % orjson.dumps(event.name)


def function_call(name: str, arguments: str) -> dict[str, str]:
    """The call of a whole answer's message."""
    return {"name": name, "arguments": arguments}
