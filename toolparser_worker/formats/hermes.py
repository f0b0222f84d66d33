"""Hermes: one JSON object per `<tool_call>` tag (Hermes 2 Pro, Qwen 2.5 and 3, the demo model)."""

from toolparser_worker.machine.declarations import JsonObjectBody, ToolFormat

FORMATS = (
    ToolFormat(
        name="hermes",
        starts=("<tool_call>",),
        end="</tool_call>",
        body=JsonObjectBody(name_keys=("name",), argument_keys=("arguments",)),
        text_after_calls="drop",
        rendered_start="<tool_call>\n",
        rendered_end="\n</tool_call>",
        rendered_separator="\n",
    ),
)
