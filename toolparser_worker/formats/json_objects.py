"""Calls as one JSON object after a marker of their own."""

from toolparser_worker.machine.declarations import JsonObjectBody, ToolFormat

FORMATS = (
    ToolFormat(
        name="longcat",
        body=JsonObjectBody(starts=("<longcat_tool_call>",), end="</longcat_tool_call>"),
        text_after_calls="drop",
        rendered_call_start="<longcat_tool_call>\n",
        rendered_call_end="\n</longcat_tool_call>",
    ),
    ToolFormat(
        name="granite4",
        aliases=("granite-4", "granite4.0"),
        body=JsonObjectBody(starts=("<tool_call>",), end="</tool_call>"),
        rendered_call_start="<tool_call>\n",
        rendered_call_end="\n</tool_call>",
    ),
    ToolFormat(
        name="ernie45",
        aliases=("ernie-4.5", "ernie4.5"),
        body=JsonObjectBody(starts=("<tool_call>",), end="</tool_call>"),
        text_after_calls="drop",
        trims=True,
        dropped_markers=(
            "<response>\n",
            "<response>",
            "\n</response>\n",
            "\n</response>",
            "</response>\n",
            "</response>",
        ),
        rendered_call_start="<tool_call>\n",
        rendered_call_end="\n</tool_call>\n",
    ),
    ToolFormat(
        name="granite-20b-fc",
        aliases=("granite_20b_fc",),
        body=JsonObjectBody(starts=("<function_call>",)),
        text_after_calls="drop",
        rendered_call_start="<function_call> ",
        rendered_separator="",
    ),
    ToolFormat(
        name="internlm",
        aliases=("internlm2",),
        body=JsonObjectBody(
            starts=("<|action_start|><|plugin|>",),
            end="<|action_end|>",
            argument_keys=("parameters", "arguments"),
        ),
        text_after_calls="drop",
        rendered_call_start="<|action_start|><|plugin|>\n",
        rendered_call_end="<|action_end|>",
    ),
    ToolFormat(
        name="gigachat3",
        aliases=("gigachat",),
        body=JsonObjectBody(
            starts=(
                "<|function_call|>",
                "<|message_sep|>\n\nfunction call<|role_sep|>\n",
                "function call<|role_sep|>\n",
            ),
        ),
        dropped_markers=("<|message_sep|>", "</s>"),
        text_after_calls="drop",
        rendered_call_start="<|function_call|>",
    ),
    ToolFormat(
        name="minimax",
        aliases=("minimax_m1", "minimax-m1"),
        wrapper_starts=("<tool_calls>",),
        wrapper_ends=("</tool_calls>",),
        body=JsonObjectBody(),
        text_after_calls="drop",
        trims=True,
        opaque_spans=(("<think>", "</think>"),),
        rendered_start="<tool_calls>\n",
        rendered_end="\n</tool_calls>",
    ),
    ToolFormat(
        name="llama3_json",
        aliases=("llama4_json", "llama", "llama3", "llama-3"),
        body=JsonObjectBody(
            starts=("<|python_tag|>",),
            argument_keys=("parameters", "arguments"),
            arguments_required=True,
            other_keys=("type", "id"),
        ),
        bare="anywhere",
        text_after_calls="drop",
        rendered_separator="; ",
    ),
)
