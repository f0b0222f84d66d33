"""MiniMax M3: a tree of elements, each tag after a prefix of its own."""

from toolparser_worker.machine.declarations import (
    ElementBody,
    ReasoningFormat,
    ToolFormat,
    begins,
)

FORMATS = (
    ToolFormat(
        name="minimax_m3",
        aliases=("minimax-m3",),
        wrapper_starts=("]<]minimax[>[<tool_call>",),
        wrapper_ends=("]<]minimax[>[</tool_call>",),
        body=ElementBody(
            starts=("]<]minimax[>[<invoke name=",),
            end="]<]minimax[>[</invoke>",
            tag_prefix="]<]minimax[>[",
        ),
        text_after_calls="drop",
        rendered_start="]<]minimax[>[<tool_call>\n",
        rendered_end="\n]<]minimax[>[</tool_call>",
    ),
    ReasoningFormat(
        name="minimax_m3",
        aliases=("minimax-m3",),
        starts=("<mm:think>",),
        ends=("</mm:think>",),
        opens="marked",
        drops_stray_ends=True,
        reopens=True,
        interrupted_by=begins("]<]minimax[>[<tool_call>", "]<]minimax[>[<invoke"),
        calls_end_it=True,
    ),
)
