"""Calls whose name stands in a header before plain JSON arguments."""

from toolparser_worker.machine.declarations import HeaderBody, ToolFormat

CALLS_START = ("<｜tool▁calls▁begin｜>",)
CALLS_END = ("<｜tool▁calls▁end｜>",)
CALL_START = ("<｜tool▁call▁begin｜>",)
CALL_END = "<｜tool▁call▁end｜>"

FORMATS = (
    ToolFormat(
        name="deepseek_v3",
        aliases=("deepseek_r1", "deepseek-v3", "deepseek-r1"),
        wrapper_starts=CALLS_START,
        wrapper_ends=CALLS_END,
        body=HeaderBody(
            starts=CALL_START,
            end=CALL_END,
            header_start="function<｜tool▁sep｜>",
            separators=("```json",),
            tails=("```",),
            rendered_header="function<｜tool▁sep｜>{name}\n```json\n",
            rendered_tail="\n```",
        ),
        text_after_calls="drop",
        rendered_start="<｜tool▁calls▁begin｜>",
        rendered_end="<｜tool▁calls▁end｜>",
        rendered_call_start="<｜tool▁call▁begin｜>",
        rendered_call_end="<｜tool▁call▁end｜>",
    ),
    ToolFormat(
        name="deepseek_v31",
        aliases=("deepseek-v3.1", "deepseekv31", "deepseek_v3.1"),
        wrapper_starts=CALLS_START,
        wrapper_ends=CALLS_END,
        body=HeaderBody(
            starts=CALL_START,
            end=CALL_END,
            separators=("<｜tool▁sep｜>",),
            rendered_header="{name}<｜tool▁sep｜>",
        ),
        text_after_calls="drop",
        rendered_start="<｜tool▁calls▁begin｜>",
        rendered_end="<｜tool▁calls▁end｜>",
        rendered_call_start="<｜tool▁call▁begin｜>",
        rendered_call_end="<｜tool▁call▁end｜>",
        rendered_separator="",
    ),
    ToolFormat(
        name="kimi_k2",
        aliases=("kimi-k2", "kimi"),
        wrapper_starts=("<|tool_calls_section_begin|>", "<|tool_call_section_begin|>"),
        wrapper_ends=("<|tool_calls_section_end|>", "<|tool_call_section_end|>"),
        body=HeaderBody(
            starts=("<|tool_call_begin|>",),
            end="<|tool_call_end|>",
            header=r"(?:functions\.)?(?P<name>.+?):\d+",
            separators=("<|tool_call_argument_begin|>",),
            rendered_header="functions.{name}:{index}<|tool_call_argument_begin|>",
        ),
        text_after_calls="drop",
        id_style="indexed",
        rendered_start="<|tool_calls_section_begin|>",
        rendered_end="<|tool_calls_section_end|>",
        rendered_call_start="<|tool_call_begin|>",
        rendered_call_end="<|tool_call_end|>",
        rendered_separator="",
    ),
)
