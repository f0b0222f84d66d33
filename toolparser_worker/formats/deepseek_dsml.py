"""DeepSeek's `<｜DSML｜…>` markup, whose parameters say themselves whether they are text."""

from toolparser_worker.machine.declarations import ParameterBody, ToolFormat

WRAPPER_ENDS = ("</｜DSML｜function_calls>", "</｜DSML｜tool_calls>")
BODY = ParameterBody(
    starts=("<｜DSML｜invoke",),
    name_ends=(">",),
    name_attribute="name",
    end="</｜DSML｜invoke>",
    parameters=("<｜DSML｜parameter",),
    key_end=">",
    key_attribute="name",
    value_end="</｜DSML｜parameter>",
    also_ends=(*WRAPPER_ENDS, "<｜DSML｜invoke"),
    value_also_ends=WRAPPER_ENDS,
    text_attribute="string",
    text_values=("true",),
    unwrapped=("arguments", "input"),
    rendered_name=' name="{name}">',
    rendered_key=' name="{key}" string="{is_text}">',
    rendered_space="\n",
)

FORMATS = (
    ToolFormat(
        name="deepseek_v32",
        aliases=("deepseek-v3.2", "deepseekv32", "deepseek_v3.2"),
        wrapper_starts=("<｜DSML｜function_calls>",),
        wrapper_ends=("</｜DSML｜function_calls>",),
        body=BODY,
        text_after_calls="drop",
        rendered_start="<｜DSML｜function_calls>\n",
        rendered_end="\n</｜DSML｜function_calls>",
    ),
    ToolFormat(
        name="deepseek_v4",
        aliases=("deepseek-v4", "deepseekv4"),
        wrapper_starts=("<｜DSML｜tool_calls>",),
        wrapper_ends=("</｜DSML｜tool_calls>",),
        body=BODY,
        text_after_calls="drop",
        rendered_start="<｜DSML｜tool_calls>\n",
        rendered_end="\n</｜DSML｜tool_calls>",
    ),
)
