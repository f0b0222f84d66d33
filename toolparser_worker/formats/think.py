"""Reasoning between `<think>` tags, as most open reasoning models write it.

The three differ in what they make of a text without a start tag, and of calls inside: `think`
goes by what is there, `deepseek_r1` and `qwen3` are the rules of the models called so.
"""

from toolparser_worker.machine.declarations import ReasoningFormat

FORMATS = (
    ReasoningFormat(
        name="think",
        start="<think>",
        end="</think>",
        opens="marked",
        calls_end_it=True,
        drops_stray_ends=True,
    ),
    ReasoningFormat(
        name="deepseek_r1",
        aliases=("deepseek-r1",),
        start="<think>",
        end="</think>",
        opens="always",
    ),
    ReasoningFormat(
        name="qwen3",
        start="<think>",
        end="</think>",
        opens="always",
        interrupted_by=("<tool_call>",),
        drops_stray_ends=True,
    ),
)
