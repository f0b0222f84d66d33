"""Hermes: one JSON object per `<tool_call>` tag (Hermes 2 Pro, Qwen 2.5 and 3, the demo model)."""

from toolparser_worker.machine.declarations import JsonObjectBody, ToolFormat

FORMATS = (
    ToolFormat(
        name="hermes",
        aliases=("qwen", "qwen25", "qwen2.5"),
        body=JsonObjectBody(starts=("<tool_call>",), end="</tool_call>"),
        text_after_calls="drop",
        rendered_call_start="<tool_call>\n",
        rendered_call_end="\n</tool_call>",
    ),
)
