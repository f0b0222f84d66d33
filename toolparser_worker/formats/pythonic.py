"""Calls as Python writes them."""

from toolparser_worker.machine.declarations import PythonBody, ToolFormat

FORMATS = (
    ToolFormat(
        name="pythonic",
        listed="must",
        bare="first",
        body=PythonBody(),
        text_after_calls="drop",
        rendered_start="[",
        rendered_end="]",
        rendered_separator=", ",
    ),
    ToolFormat(
        name="llama4_pythonic",
        aliases=("llama4", "llama-4"),
        wrapper_starts=("<|python_start|>",),
        wrapper_ends=("<|python_end|>",),
        listed="must",
        bare="first",
        body=PythonBody(),
        text_after_calls="drop",
        rendered_start="<|python_start|>[",
        rendered_end="]<|python_end|>",
        rendered_separator=", ",
    ),
    ToolFormat(
        name="olmo3",
        aliases=("olmo-3",),
        wrapper_starts=("<function_calls>",),
        wrapper_ends=("</function_calls>",),
        body=PythonBody(),
        text_after_calls="drop",
        rendered_start="<function_calls>\n",
        rendered_end="\n</function_calls>",
    ),
    ToolFormat(
        name="lfm2",
        aliases=("lfm-2",),
        wrapper_starts=("<|tool_call_start|>",),
        wrapper_ends=("<|tool_call_end|>",),
        listed="must",
        body=PythonBody(repairs=True),
        trims=True,
        rendered_start="<|tool_call_start|>[",
        rendered_end="]<|tool_call_end|>",
        rendered_separator=", ",
    ),
)
