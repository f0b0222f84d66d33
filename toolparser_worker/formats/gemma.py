"""Gemma's calls, `call:name{…}` with quotes of their own, and its channel of thought."""

from toolparser_worker.machine.declarations import BracedBody, ReasoningFormat, ToolFormat

FORMATS = (
    ToolFormat(
        name="gemma4",
        aliases=("gemma-4",),
        wrapper_starts=("<|tool_call>",),
        wrapper_ends=("<tool_call|>",),
        body=BracedBody(starts=("call:",), quote='<|"|>', undeclared="text"),
        text_after_calls="drop",
        trims=True,
        rendered_call_start="<|tool_call>",
        rendered_call_end="<tool_call|>",
        rendered_separator="",
    ),
    ToolFormat(
        name="functiongemma",
        aliases=("function-gemma", "function_gemma"),
        wrapper_starts=("<start_function_call>",),
        wrapper_ends=("<end_function_call>",),
        body=BracedBody(starts=("call:",), quote="<escape>", parses_strings=True),
        text_after_calls="drop",
        trims=True,
        rendered_call_start="<start_function_call>",
        rendered_call_end="<end_function_call>",
        rendered_separator="",
    ),
    ReasoningFormat(
        name="gemma4",
        aliases=("gemma-4",),
        starts=("<|channel>thought\n", "<|channel>"),
        ends=("<channel|>",),
        first_starts=("thought\n",),
        opens="marked",
        reopens=True,
        interrupted_by=("<|tool_call>call:",),
        calls_end_it=True,
    ),
)
