"""Llama 3 JSON: bare objects, separated by `;`, maybe after a tag (Llama 3.1 to 4)."""

from toolparser_worker.machine.declarations import JsonObjectBody, ToolFormat

FORMATS = (
    ToolFormat(
        name="llama3_json",
        aliases=("llama4_json",),
        starts=("<|python_tag|>",),
        starts_bare=True,
        body=JsonObjectBody(
            name_keys=("name",),
            argument_keys=("parameters", "arguments"),
            arguments_required=True,
            other_keys=("type", "id"),
        ),
        text_after_calls="drop",
        rendered_separator="; ",
    ),
)
