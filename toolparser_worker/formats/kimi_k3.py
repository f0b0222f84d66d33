"""Kimi K3: everything between `<|open|>…<|sep|>` and `<|close|>…<|sep|>` tags, blanks allowed."""

from toolparser_worker.machine.declarations import (
    ParameterBody,
    ReasoningFormat,
    ToolFormat,
    spaced,
)

RESPONSE_START = spaced("<|open|>", "response", "<|sep|>")
RESPONSE_END = spaced("<|close|>", "response", "<|sep|>")
MESSAGE_END = spaced("<|close|>", "message", "<|sep|>")
TOOLS_START = spaced("<|open|>", "tools", "<|sep|>")
TOOLS_END = spaced("<|close|>", "tools", "<|sep|>")
CALL_START = spaced("<|open|>", "call")
CALL_END = spaced("<|close|>", "call", "<|sep|>")
VALUE_END = spaced("<|close|>", "argument", "<|sep|>")

FORMATS = (
    ToolFormat(
        name="kimi_k3",
        aliases=("kimi-k3",),
        wrapper_starts=TOOLS_START,
        wrapper_ends=TOOLS_END,
        body=ParameterBody(
            starts=CALL_START,
            name_ends=("<|sep|>",),
            name_attribute="tool",
            end=CALL_END[0],
            other_ends=CALL_END[1:],
            parameters=spaced("<|open|>", "argument"),
            key_end="<|sep|>",
            key_attribute="key",
            value_end=VALUE_END[0],
            other_value_ends=VALUE_END[1:],
            also_ends=TOOLS_END + CALL_START,
            text_attribute="type",
            text_values=("string",),
            rendered_name=' tool="{name}" index="{index}"<|sep|>',
            rendered_key=' key="{key}" type="{type}"<|sep|>',
            unescapes=(("&quot;", '"'), ("&amp;", "&")),
        ),
        dropped_markers=RESPONSE_START + RESPONSE_END + MESSAGE_END,
        rendered_start="<|open|>tools<|sep|>",
        rendered_end="<|close|>tools<|sep|>",
        rendered_separator="",
    ),
    ReasoningFormat(
        name="kimi_k3",
        aliases=("kimi-k3",),
        starts=spaced("<|open|>", "think", "<|sep|>"),
        ends=spaced("<|close|>", "think", "<|sep|>"),
        interrupted_by=RESPONSE_START + TOOLS_START,
        calls_end_it=True,
        drops_stray_ends=True,
        dropped_markers=RESPONSE_START + RESPONSE_END + MESSAGE_END,
    ),
)
