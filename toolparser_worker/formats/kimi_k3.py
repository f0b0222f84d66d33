"""Kimi K3: everything between `<|open|>…<|sep|>` and `<|close|>…<|sep|>` tags."""

from toolparser_worker.machine.declarations import ParameterBody, ReasoningFormat, ToolFormat

CHANNEL_MARKERS = (
    "<|open|>response<|sep|>",
    "<|close|>response<|sep|>",
    "<|close|>message<|sep|>",
)

FORMATS = (
    ToolFormat(
        name="kimi_k3",
        aliases=("kimi-k3",),
        wrapper_starts=("<|open|>tools<|sep|>",),
        wrapper_ends=("<|close|>tools<|sep|>",),
        body=ParameterBody(
            starts=("<|open|>call",),
            name_ends=("<|sep|>",),
            name_attribute="tool",
            end="<|close|>call<|sep|>",
            parameters=("<|open|>argument",),
            key_end="<|sep|>",
            key_attribute="key",
            value_end="<|close|>argument<|sep|>",
            also_ends=("<|close|>tools<|sep|>", "<|open|>call"),
            text_attribute="type",
            text_values=("string",),
            rendered_name=' tool="{name}" index="{index}"<|sep|>',
            rendered_key=' key="{key}" type="{type}"<|sep|>',
            unescapes=(("&quot;", '"'), ("&amp;", "&")),
        ),
        dropped_markers=CHANNEL_MARKERS,
        rendered_start="<|open|>tools<|sep|>",
        rendered_end="<|close|>tools<|sep|>",
        rendered_separator="",
    ),
    ReasoningFormat(
        name="kimi_k3",
        aliases=("kimi-k3",),
        starts=("<|open|>think<|sep|>",),
        ends=("<|close|>think<|sep|>",),
        interrupted_by=("<|open|>response<|sep|>", "<|open|>tools<|sep|>"),
        drops_stray_ends=True,
        dropped_markers=CHANNEL_MARKERS,
    ),
)
